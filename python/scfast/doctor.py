"""What this machine has, as data: machine, packages, kernels, and the backend of every op."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Any

#: Packages that some feature uses, and which.
OPTIONAL = {
    "triton": "attention and cosine similarities on GPUs",
    "scanpy": "datasets.pbmc68k, the demo, tl.compare_de",
    "scikit-learn": "probes",
    "distributed": "scfast run --dask",
    "networkx": "scfast grn, pl.grn",
    "igraph": "tl.gene_programs",
    "leidenalg": "tl.gene_programs",
    "pyarrow": "references and networks as .parquet",
}
#: Packages whose versions decide what a bug report means.
PACKAGES = (
    "scfast", "torch", "numpy", "scipy", "pandas", "anndata", "h5py", "transformers", "safetensors", "matplotlib",
    "zarr", "click", "jinja2",
)  # fmt: skip
#: Variables that change what scfast and torch do.
VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "PYTHONPATH", "LD_PRELOAD")


def examine() -> dict[str, dict[str, Any]]:
    """Look at this machine and this installation.

    Returns
    -------
    Sections ``machine``, ``packages``, ``optional packages``, ``environment``, ``kernels`` and ``backends``, each name
    -> value. Nothing is timed and nothing is changed.

    Examples
    --------
    >>> from scfast import doctor
    >>> sorted(doctor.examine())
    ['backends', 'environment', 'kernels', 'machine', 'optional packages', 'packages']
    """
    return {
        "machine": _machine(),
        "packages": {name: _version(name) for name in PACKAGES},
        "optional packages": {f"{name} ({use})": _version(name) for name, use in OPTIONAL.items()},
        "environment": _environment(),
        "kernels": _kernel_build(),
        "backends": _backends(),
    }


def _machine() -> dict[str, Any]:
    import torch

    gpus = []
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        gpus.append(f"{torch.cuda.get_device_name(i)}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free")
    return {
        "system": platform.platform(),
        "python": platform.python_version(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": _memory(),
        "memory available": _available(),
        "memory limit (cgroup)": _limit(Path("/sys/fs/cgroup")),
        "torch threads": torch.get_num_threads(),
        "GPUs": gpus,
        "torch's CUDA": torch.version.cuda or "none",
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory() -> str:
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return "unknown"
    return f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.1f} GiB"


def _available() -> str:
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return f"{int(line.split()[1]) / 2**20:.1f} GiB"
    return "unknown"


def _limit(root: Path) -> str:
    """The smallest limit on memory of this process's control groups, of either version; a container's is the root's."""
    mine = Path("/proc/self/cgroup")
    groups = [line.split(":", 2)[1:] for line in mine.read_text().splitlines()] if mine.exists() else []
    files = [root / "memory.max", root / "memory" / "memory.limit_in_bytes"]
    for controllers, path in groups:
        steps = [Path(path.lstrip("/")), *Path(path.lstrip("/")).parents]
        if not controllers:
            files += [root / step / "memory.max" for step in steps]
        elif "memory" in controllers.split(","):
            files += [root / "memory" / step / "memory.limit_in_bytes" for step in steps]
    limits = [text for file in files if file.is_file() and (text := file.read_text().strip()).isdecimal()]
    smallest = min(map(int, limits), default=None)
    return "none" if smallest is None or smallest >= 2**60 else f"{smallest / 2**30:.1f} GiB"


def _environment() -> dict[str, Any]:
    """Where scfast lies, which extras are there in full, and variables that are set."""
    import scfast

    names = [*VARIABLES, *sorted(name for name in os.environ if name.startswith("SCFAST_"))]
    return {
        "scfast from": str(Path(scfast.__file__).parent),
        **{
            f"extra {name}": text
            for name, text in _extras(importlib.metadata.requires("scfast") or []).items()
        },
        **{name: os.environ.get(name, "not set") for name in names},
    }


def _extras(requirements: list[str]) -> dict[str, str]:
    """Extra -> whether all its packages are here, or which are not, from requirements as metadata have them.

    Examples
    --------
    >>> _extras(['numpy>=1.26; extra == "full"', 'no-such-package>=3; extra == "other"'])
    {'full': 'complete', 'other': 'lacks no-such-package'}
    """
    missing: dict[str, list[str]] = {}
    for requirement in requirements:
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", requirement)
        name = re.match(r"[\w.-]+", requirement)
        if extra and name and extra[1] not in ("docs", "lint", "test", "fuzz"):
            absent = missing.setdefault(extra[1], [])
            absent += [name[0]] * (_version(name[0]) is None)
    return {
        extra: f"lacks {', '.join(absent)}" if absent else "complete" for extra, absent in missing.items()
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _kernel_build() -> dict[str, Any]:
    import torch  # noqa: F401  # before the extension

    from scfast import _kernels
    from scfast.kernels.tiles import OWN_ROWS

    return {
        "instruction set": _kernels.instruction_set(),
        "available": list(_kernels.instruction_sets()),
        "SCFAST_INSTRUCTION_SET": os.environ.get("SCFAST_INSTRUCTION_SET") or "not set",
        "bfloat16 dot products": "avx512_bf16" in _kernels.instruction_sets(),
        **_cuda(_kernels.cuda_build()),
        f"GPU tiles of one's own ({OWN_ROWS})": os.environ.get(OWN_ROWS) or "none",
    }


def _cuda(build: dict[str, Any] | None) -> dict[str, Any]:
    if build is None:
        return {"compiled with CUDA": False}
    devices = [
        f"{device['name']} (sm_{device['capability'][0]}{device['capability'][1]}, "
        f"{device['memory'] / 2**30:.0f} GiB, loads code for sm_{device['binary']})"
        for device in build["devices"]
    ]
    return {
        "compiled with CUDA": f"{build['toolkit'] // 1000}.{build['toolkit'] % 1000 // 10}",
        "for": build["architectures"],
        "CUDA devices": devices or [f"none: {build['error']}"],
    }


def _backends() -> dict[str, str]:
    """Op -> the backend that ``"auto"`` picks for CPU tensors, and why each other one is passed over."""
    import torch

    from scfast import ops
    from scfast.ops._dispatch import BACKENDS, BackendError, choose

    probes = {
        "attention": {name: torch.zeros(1, 1, 64) for name in ("q", "k")},
        "cosine": {name: torch.zeros(1, 64) for name in ("x", "y")},
    }
    chosen = {}
    for op in sorted(name for name in ops.__all__ if name.partition("_")[0] in probes):
        probe = probes[op.partition("_")[0]]
        try:
            picked = choose(op, "auto", **probe)
        except BackendError as error:
            chosen[op] = f"none: {error}"
            continue
        others = []
        for name, unsupported in BACKENDS.items():
            if name == picked:
                continue
            reasons = unsupported(op, **probe)
            why = "; ".join(reasons) if reasons else "takes them too, on request"
            others.append(f"{name}: {why}")
        chosen[op] = f"{picked} for float32 on the CPU" + (f"  ({'. '.join(others)})" if others else "")
    for op in ("bin_values", "rank_values"):
        chosen[op] = "cpu for CSR counts  (reference: takes them too, on request)"
    return chosen
