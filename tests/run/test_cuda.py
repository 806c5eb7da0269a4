"""The runner on a GPU: the numbers of the CPU, through real streams and a memory that really runs out.

The reference backend computes the attention, so that these tests need no kernel; nor do they need anndata.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from scfast.analyses import CellScores, Embedding, GroupExpression, GroupScores, Strata
from scfast.models.bert import BertEncoder
from scfast.models.bert_shape import BertShape
from scfast.observables import HiddenStates, Received, Rollout
from scfast.run import Counts, make_plan, resolve_device, run
from scfast.run.memory import free_device_memory
from tests.toy import ToySource

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

DEVICE = torch.device("cuda", 0)
N_CELLS, N_GENES, GB = 60, 40, 10**9
GENES = [f"G{i}" for i in range(N_GENES)]


def made_counts():
    counts = np.random.default_rng(0).poisson(0.8, (N_CELLS, N_GENES)).astype(np.float32)
    counts[:, 0] = 1
    return Counts(sparse.csr_matrix(counts), pd.DataFrame(index=GENES))


COUNTS = made_counts()
SHAPE = BertShape(
    n_layers=2, n_heads=2, hidden=32, intermediate=64, vocabulary=N_GENES, positions=64, token_types=2, eps=1e-12,
    activation="relu", initializer_range=0.5, pad=0,
)  # fmt: skip


def observe(tokens):
    return [Rollout("mean", layers="prefix"), HiddenStates(-1, pool="mean"), Received()]


def go(source, budget=None, plan=None):
    strata = Strata.from_codes(np.arange(N_CELLS) % 3, 3)
    analyses = {
        "scores": GroupScores(strata, N_GENES),
        "received": GroupScores(strata, N_GENES, name="received"),
        "expression": GroupExpression(strata, N_GENES),
        "cells": CellScores(N_GENES),
        "vectors": Embedding(16),
    }
    tokens = source.tokenize(COUNTS.matrix, COUNTS.var)
    if plan is None:
        plan = make_plan(np.array(tokens.lengths), token_budget=budget, device=source.device)
    return run(source, COUNTS, analyses, plan, observe, tokens=tokens, backend="reference", progress=False)


def assert_close(got, expected, rtol=1e-4, atol=1e-5):
    np.testing.assert_array_equal(got["scores"].cells, expected["scores"].cells)
    for name in ("scores", "received"):
        np.testing.assert_allclose(got[name].mean, expected[name].mean, rtol=rtol, atol=atol)
    np.testing.assert_array_equal(got["expression"].detection, expected["expression"].detection)
    np.testing.assert_allclose(got["vectors"], expected["vectors"], rtol=rtol, atol=atol)
    np.testing.assert_array_equal(got["cells"].indices, expected["cells"].indices)
    np.testing.assert_allclose(got["cells"].data, expected["cells"].data, rtol=rtol, atol=atol)


@pytest.mark.parametrize("budget", [30, 200, 10**6])
def test_the_numbers_are_those_of_the_cpu(budget):
    host = ToySource(GENES)
    assert_close(go(host.to(DEVICE), budget), go(host, budget))


def test_one_plan_gives_the_same_rows_again():
    source = ToySource(GENES).to(DEVICE)
    first, second = go(source, 100), go(source, 100)
    np.testing.assert_array_equal(first["vectors"], second["vectors"])


class Hungry(ToySource):
    """Takes 16 MB for every token."""

    def forward(self, tokens, recorder):
        hold = torch.empty(tokens.n_tokens * 16 * 10**6, dtype=torch.uint8, device=self.device)
        super().forward(tokens, recorder)
        del hold


def test_memory_that_really_runs_out():
    """A batch of 100 tokens takes 1.6 GB, of which the process may have less than 1."""
    total = torch.cuda.mem_get_info(DEVICE)[1]
    torch.cuda.empty_cache()
    allowed = torch.cuda.memory_allocated(DEVICE) + GB
    torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / total), DEVICE)
    try:
        assert free_device_memory(DEVICE) <= GB
        got = go(Hungry(GENES).to(DEVICE), 100)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, DEVICE)
    assert got.plan.n_batches > go(ToySource(GENES), 100).plan.n_batches
    assert_close(got, go(ToySource(GENES), plan=got.plan))


def test_a_cell_that_really_does_not_fit():
    total = torch.cuda.mem_get_info(DEVICE)[1]
    torch.cuda.empty_cache()
    allowed = torch.cuda.memory_allocated(DEVICE) + GB // 10
    torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / total), DEVICE)
    try:
        with pytest.raises(
            MemoryError, match=r"tokens, for which toy needs about .* MB on cuda:0, where \d+ MB"
        ):
            go(Hungry(GENES).to(DEVICE), 100)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, DEVICE)


def test_free_memory_is_at_least_what_the_driver_says():
    free, total = torch.cuda.mem_get_info(DEVICE)
    assert 0.9 * free <= free_device_memory(DEVICE) <= total


def test_the_encoder_gives_the_states_of_the_cpu():
    from scfast.attention.recorder import Recorder

    tokens = ToySource(GENES).tokenize(COUNTS.matrix, COUNTS.var)
    encoder = BertEncoder.initialised(SHAPE, torch.float32, 0)
    states = {}
    for device in ("cpu", DEVICE):
        recorder = Recorder([HiddenStates()], backend="reference", keep=False)
        moved = tokens.to(device)
        recorder.begin(SHAPE.n_layers, moved.packing)
        encoder.to(device).forward(moved, recorder)
        recorder.finish()
        states[str(device)] = recorder.batch["hidden_states"]
    assert states["cuda:0"].device == DEVICE
    torch.testing.assert_close(states["cuda:0"].cpu(), states["cpu"], rtol=1e-4, atol=1e-4)


def test_blocks_of_tokens_give_the_same_scores():
    from scfast.attention.recorder import Recorder

    tokens = ToySource(GENES).tokenize(COUNTS.matrix, COUNTS.var).to(DEVICE)
    encoder = BertEncoder.initialised(SHAPE, torch.float32, 0).to(DEVICE)
    results = []
    for block_tokens in (None, 100):
        recorder = Recorder(observe(tokens), backend="reference", keep=False)
        recorder.begin(SHAPE.n_layers, tokens.packing)
        encoder.forward(tokens, recorder, block_tokens)
        recorder.finish()
        results.append(recorder.batch)
    for name, whole in results[0].items():
        torch.testing.assert_close(results[1][name], whole, rtol=1e-4, atol=1e-4)


def test_devices_that_are_and_are_not_there():
    assert resolve_device("cuda:0") == DEVICE
    with pytest.raises(ValueError, match="torch sees"):
        resolve_device(f"cuda:{torch.cuda.device_count()}")
