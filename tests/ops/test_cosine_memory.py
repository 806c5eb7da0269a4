"""The promise of the cosine ops: pairs are not held, where all similarities would take 4.3 GB."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS, COLUMNS, THREADS = 32_768, 512, 2
NEAREST = 12 * 128 * ROWS  # bytes of values and indices


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux' /proc")
def test_cosines_of_many_rows_within_64_mb() -> None:
    command = [sys.executable, "-m", "tests.ops.cosine_memory", *map(str, (ROWS, COLUMNS, THREADS))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    growth = {name: int(size) for name, size in (line.split() for line in done.stdout.splitlines())}
    assert set(growth) == {"histogram", "threshold", "topk"}
    for name, size in growth.items():
        assert size < 64e6, f"{name} grew by {size / 1e6:.0f} MB"
    assert growth["topk"] > NEAREST, "less than the lists: was anything measured?"
    for name in ("histogram", "threshold"):
        assert growth[name] < 16e6, (
            f"{name} grew by {growth[name] / 1e6:.0f} MB: panels and tables of two threads"
        )
