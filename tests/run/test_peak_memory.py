"""The promise of ``memory=``: a run grows the process by no more than that, plus 200 MB around it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from scfast.run import parse_memory
from tests.models import fixtures

SLACK = 200 * 10**6
ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux' /proc")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Random weights in the shape of V1-10M, for cells of 2048 and of 4096 tokens."""
    genes = [f"ENSG{number:011d}" for number in range(1, 5001)]
    shape = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_hidden_layers": 6}
    return {
        tokens: fixtures.write_v1(
            tmp_path_factory.mktemp(f"v1_{tokens}"), genes, max_position_embeddings=tokens, **shape
        )
        for tokens in (2048, 4096)
    }


def grow(folder, memory, tokens, cells, most, tool="rollout"):
    """(bytes, batches) of a run; an error of the run as a RuntimeError."""
    command = [
        sys.executable,
        "-m",
        "tests.run.peak_memory",
        *map(str, (folder, memory, tokens, cells, most)),
        tool,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return tuple(map(int, done.stdout.split()))


@pytest.mark.parametrize("memory", ["0.5GB", "1GB", "4GB"])
@pytest.mark.parametrize("tokens", [2048, 4096])
def test_peak_growth(folders, memory, tokens):
    """Batches as large as the budget allows; 65,536 tokens at once would take 1.2 GB."""
    total = 2**16 if memory == "1GB" else 2**15
    growth, batches = grow(folders[tokens], memory, tokens, total // tokens, 10**9)
    assert growth < parse_memory(memory) + SLACK, f"grew by {growth / 1e6:.0f} MB"
    assert batches == {"0.5GB": 2, "1GB": 2, "4GB": 1}[memory]
    assert growth > 0.2 * min(parse_memory(memory), 0.6e9), "so little: was anything measured?"


def test_two_models_share_the_budget(folders):
    """q and k of all layers of the first are there while the second runs."""
    growth, batches = grow(folders[2048], "0.5GB", 2048, 12, 10**9, "attention_shift")
    assert growth < parse_memory("0.5GB") + SLACK, f"grew by {growth / 1e6:.0f} MB"
    assert batches > 1
    assert growth > 0.2e9, "so little: was anything measured?"


def test_too_little_for_one_cell(folders):
    """The error says how much is needed, and with that it runs."""
    with pytest.raises(RuntimeError, match="the longest cell has 4096 tokens") as error:
        grow(folders[4096], "50MB", 4096, 2, 10**9)
    enough = re.search(r"pass memory='(\d+MB)'", str(error.value))[1]
    growth, batches = grow(folders[4096], enough, 4096, 2, 10**9)
    assert batches == 2
    assert growth < parse_memory(enough) + SLACK
