"""The promise of scGPT: a cell of 1200 tokens through all layers of the whole-human model within 1 GB.

Its maps are 0.55 GB in float32; q and k of all layers, which the sweep keeps, 59 MB.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: float32 q and k of all layers.
KEPT = 4 * 12 * 2 * 512 * 1200


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux' /proc")
def test_a_whole_cell_through_the_whole_human_model() -> None:
    command = [sys.executable, "-m", "tests.models.scgpt_memory", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    growth = int(done.stdout)
    assert growth < 1e9, f"grew by {growth / 1e6:.0f} MB"
    assert growth < 3 * KEPT, f"grew by {growth / 1e6:.0f} MB, where q and k have {KEPT / 1e6:.0f} MB"
    assert growth > KEPT, f"grew by {growth / 1e6:.0f} MB: was anything measured?"
