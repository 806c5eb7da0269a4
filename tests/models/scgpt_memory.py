"""The whole-human scGPT and one cell at full length, rolled out in a process of its own.

Prints by how many bytes the process grew at its peak beyond the weights.

Usage: scgpt_memory.py THREADS
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from scfast.attention import Recorder
from scfast.models.scgpt import ScgptSource, genes_of
from scfast.models.scgpt_tokens import Rules
from scfast.models.scgpt_weights import ScgptNetwork, ScgptShape
from scfast.observables import Rollout
from tests.models.test_scgpt import tokens_of
from tests.run.peak_memory import status

#: Of the published whole-human model.
SHAPE = ScgptShape(n_layers=12, n_heads=8, hidden=512, intermediate=512, vocabulary=60697)
CONTEXT = 1200


def growth(source: ScgptSource, tokens: int) -> int:
    """Bytes by which the process grows at its peak while one cell is rolled out."""
    ids = torch.randint(0, 60694, (tokens,))
    values = torch.randint(1, 51, (tokens,)).float()
    cell = tokens_of(ids, values, [tokens])
    recorder = Recorder([Rollout("cls")])
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = status("VmRSS")
    source.forward(cell, recorder)
    peak = status("VmHWM") - before
    assert abs(float(recorder["rollout"][0].sum()) - 1) < 1e-4
    return peak


def main() -> None:
    """Measure."""
    torch.set_num_threads(int(sys.argv[1]))
    rules = Rules(cls=60695, cls_value=-2.0, n_bins=51, max_tokens=CONTEXT, seed=0)
    network = ScgptNetwork.initialised(SHAPE, torch.float32, 0)
    source = ScgptSource("whole-human", network, genes_of({"GENE": 0}, {}), rules)
    growth(source, 33)  # thread pools and lazily loaded code are not the analysis's memory
    print(growth(source, CONTEXT))


if __name__ == "__main__":
    main()
