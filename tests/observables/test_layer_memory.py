"""The promise of norms and gradients: a layer of V2-316M and a cell of 4096 tokens within 2 GB.

Published code holds n x n x H x width, 1.4 TB, for the norms, and n x n x H several times over for the gradients.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: float32 numbers of one token: the residual stream; q, k, v and the attention output; the feed-forward part.
LAYER = 4 * 4096 * (1152 + 4 * 1152 + 4608)


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux' /proc")
@pytest.mark.parametrize("method", ["norms", "gradients"])
def test_a_whole_cell_through_one_layer(method: str) -> None:
    command = [sys.executable, "-m", "tests.observables.layer_memory", "4096", method, "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    growth = int(done.stdout)
    assert growth < 2e9, f"grew by {growth / 1e6:.0f} MB"
    assert growth < 4 * LAYER, f"grew by {growth / 1e6:.0f} MB, where a layer has {LAYER / 1e6:.0f} MB"
    assert growth > LAYER, f"grew by {growth / 1e6:.0f} MB: was anything measured?"
