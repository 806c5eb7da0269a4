"""The machine that a figure belongs to, and the memory that a call takes on it."""

from __future__ import annotations

import datetime
import os
import platform
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from scfast import _kernels

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"


def cpu_model() -> str:
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def commit() -> str:
    """The commit that was measured; '+' where the tree held changes beyond results and tables."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(ROOT), *words], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    try:
        changed = git(
            "status", "--porcelain", "--", "csrc", "python", "bench/*.py", "bench/ops", "CMakeLists.txt"
        )
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def describe() -> dict[str, Any]:
    """What a reader needs to place the figures."""
    return {
        "name": name(),
        "cpu": cpu_model(),
        "cores": cores(),
        "instruction_set": _kernels.instruction_set(),
        "torch": torch.__version__,
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "scfast": _kernels.version,
        "commit": commit(),
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def name() -> str:
    """Folder of this machine's results."""
    words = re.sub(r"\((r|tm)\)|cpu|processor", " ", cpu_model().lower())
    model = re.sub(r"[^a-z0-9.]+", "-", words).strip("-")
    isa = _kernels.instruction_sets()[0].replace("_", "-")
    return f"{model}-{isa}-{cores()}-cores"


def peak_growth(call: Callable[[], object]) -> int:
    """Bytes by which the resident memory's high-water mark rises during ``call`` (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # the mark falls back to what is resident now
    before = status("VmRSS")
    call()
    return max(status("VmHWM") - before, 0)


def available_memory() -> int:
    """Bytes that programs may still take without swapping (Linux)."""
    match = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    if match is None:
        raise RuntimeError("/proc/meminfo has no MemAvailable: lengths are measured on Linux only")
    return int(match[1]) * 1024


def status(field: str) -> int:
    """A field of /proc/self/status, in bytes (Linux)."""
    match = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if match is None:
        raise RuntimeError(f"/proc/self/status has no {field}: peak memory is measured on Linux only")
    return int(match[1]) * 1024
