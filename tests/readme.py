"""Follow README.md word for word, as a stranger does: ``python tests/readme.py scfast-demo``.

Its Python and its ``scfast`` commands run one after the other in a directory that holds nothing but what ``make demo``
wrote, with an empty home, in the environment of the Python that runs this; nothing else is needed.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"
#: What needs a clone and the network; .ci/run gives these commands itself.
OF_A_CLONE = ("make demo", "make test", "pip install .")
#: What README.md says is there afterwards.
WRITTEN = ("rollout.png", "results/report.html")


def steps(text: str) -> Iterator[tuple[str, str]]:
    """(language, what is to be run), in order: a block of Python, or one command of a shell."""
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        if language == "python":
            yield language, block
        elif language == "sh":
            for line in block.replace("\\\n", " ").splitlines():
                if command := re.sub(r"\s+#.*", "", line).strip():
                    yield language, command
        else:
            raise ValueError(f"README.md has a block of {language!r}: nobody follows it")


def follow(demo: Path, folder: Path) -> dict[str, str]:
    """Run every step in ``folder``; step -> what it printed. ``demo`` becomes its ``scfast-demo``."""
    home, here = folder / "home", folder / "here"
    home.mkdir(parents=True)
    shutil.copytree(demo, here / "scfast-demo")
    printed = {}
    for language, step in steps(README.read_text(encoding="utf-8")):
        if step in OF_A_CLONE:
            continue
        if language == "sh" and not step.startswith("scfast "):
            raise ValueError(f"README.md says {step!r}: nobody follows it")
        command = [sys.executable, "-c", step] if language == "python" else shlex.split(step)
        started = time.perf_counter()
        done = subprocess.run(
            command,
            cwd=here,
            env=environment(home),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"README.md, followed word for word, failed:\n{step}\n\n{done.stdout}")
        printed[step] = done.stdout
        print(f"{time.perf_counter() - started:5.1f} s  {step.splitlines()[0]}", flush=True)
    if missing := [name for name in WRITTEN if not (here / name).is_file()]:
        raise RuntimeError(f"README.md was followed, but wrote no {', '.join(missing)}")
    return printed


def environment(home: Path) -> dict[str, str]:
    """A stranger's: commands of this Python's environment, and no settings."""
    own = {
        name: value for name, value in os.environ.items() if not re.match("PYTHON|SCFAST|MPL|XDG|HF_", name)
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return own | {"HOME": str(home), "PATH": path}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        follow(Path(sys.argv[1]).resolve(), Path(scratch))
