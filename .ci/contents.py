"""Check what is published, a wheel and an sdist: tag, size, and that they hold what they should and nothing else."""

import re
import sys
import tarfile
import zipfile
from pathlib import Path

#: Bytes at most; a wheel was 1.7 to 2.1 MB and an sdist 1.2 MB when these were set.
LARGEST = {".whl": 4_000_000, ".gz": 2_000_000}
TAG = re.compile(r"scfast-[\d.]+-cp3\d+-cp3\d+-manylinux_2_\d+_\w+\.whl")
IN_WHEEL = (
    r"scfast/_kernels\..*\.so",
    r"scfast/_kernels\.pyi",
    r"scfast/py\.typed",
    r"scfast/kernels/tiles\.toml",
)
IN_SDIST = ("CMakeLists.txt", "csrc/module.cpp", "python/scfast/py.typed", "LICENSE", "CITATION.cff")
#: What a build or a run leaves behind, and what an archive of the sources does not need.
NEVER = re.compile(r"\.(so|o|a|pyc|h5ad|pkl|pt|safetensors)$|^(\.|build/|dist/|bench/results/)|__pycache__")


def problems(path: Path) -> list[str]:
    """Whatever is wrong with a wheel or an sdist."""
    size, most = path.stat().st_size, LARGEST[path.suffix]
    found = [f"{size:,} bytes, more than {most:,}"] if size > most else []
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
        found += [] if TAG.fullmatch(path.name) else ["not a manylinux tag"]
        found += [f"no {kind}" for kind in IN_WHEEL if not any(re.fullmatch(kind, name) for name in names)]
        extensions = [name for name in names if name.endswith(".so")]
        found += [] if len(extensions) == 1 else [f"libraries that are not ours: {extensions}"]
        found += [
            f"{name} is no part of scfast"
            for name in names
            if not name.startswith(("scfast/", "scfast_cli/", "scfast-"))
        ]
    else:
        with tarfile.open(path) as sources:
            names = [name.partition("/")[2] for name in sources.getnames()]
        found += [f"no {name}" for name in IN_SDIST if name not in names]
        found += [f"{name} has no place in it" for name in names if NEVER.search(name)]
    print(f"{path.name}: {size:,} bytes, {len(names)} files")
    return [f"{path.name}: {problem}" for problem in found]


if __name__ == "__main__":
    wrong = [problem for name in sys.argv[1:] for problem in problems(Path(name))]
    sys.exit("\n".join(wrong) or None)
