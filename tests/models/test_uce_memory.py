"""The promise of UCE: a cell of 1024 genes through all 33 layers within 3 GB beyond the weights.

Its maps are 3.0 GB in float32, 6.2 GB at the longest; q and k of all layers, which the sweep keeps, 0.36 GB.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: float32 q and k of all layers.
KEPT = 4 * 33 * 2 * 1280 * (1 + 1024 + 2 * 24)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux' /proc")
def test_a_whole_cell_through_33_layers(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.models.uce_memory", "2", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    growth = int(done.stdout)
    assert growth < 3e9, f"grew by {growth / 1e6:.0f} MB"
    assert growth < 2 * KEPT, f"grew by {growth / 1e6:.0f} MB, where q and k have {KEPT / 1e6:.0f} MB"
    assert growth > KEPT, f"grew by {growth / 1e6:.0f} MB: was anything measured?"
