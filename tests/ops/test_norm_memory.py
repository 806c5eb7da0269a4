"""The promise of the map of norms: H x H numbers a token, where published code holds n x n x H x width (1.4 TB)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux' /proc")
def test_norms_of_a_cell_of_v2_316m_within_2_gb() -> None:
    """4096 tokens, 18 heads, 1152 wide; the probabilities alone of one layer would be 1.2 GB."""
    command = [sys.executable, "-m", "tests.ops.norm_memory", "4096", "18", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    growth = int(done.stdout)
    assert growth < 2e9, f"grew by {growth / 1e6:.0f} MB"
    assert growth < 0.5e9, f"grew by {growth / 1e6:.0f} MB: inputs, projections and working memory are 0.3 GB"
    assert growth > 4096 * 1152 * 4 * 4, "less than x, q, k and v: was anything measured?"
