"""The loop: rows come back in order, the bar shows cells, an interruption passes through."""

from __future__ import annotations

import numpy as np
import pytest

from scfast.analyses import CellScores, Embedding, RowBlock
from scfast.observables import HiddenStates, Rollout
from scfast.run import Counts, make_plan, run, survey
from scfast.run.collect import Collector
from tests.toy import BACKEND, toy_adata, toy_source

ADATA = toy_adata()
COUNTS = Counts(ADATA.X, ADATA.var)


def go(analyses, budget=60, tokens=None, **options):
    source = toy_source()
    plan = make_plan(survey(source, COUNTS).lengths, token_budget=budget)
    observe = lambda _: [Rollout("mean"), HiddenStates(-1, pool="mean")]  # noqa: E731
    return run(source, COUNTS, analyses, plan, observe, tokens=tokens, backend=BACKEND, **options), plan


def test_survey():
    source = toy_source(cls=True)
    tokens = source.tokenize(ADATA.X, ADATA.var)
    found = survey(source, COUNTS, gene=5)
    assert found.lengths.tolist() == list(tokens.lengths)
    assert (found.lengths - found.gene_tokens).tolist() == [1] * ADATA.n_obs
    holds = [5 in tokens.select([cell]).gene_index for cell in range(ADATA.n_obs)]
    assert found.holds.tolist() == holds


def test_survey_keeps_the_tokens_of_all_cells_where_they_are_few(monkeypatch):
    adata = toy_adata()
    counts, source = Counts(adata.X, adata.var), toy_source()
    monkeypatch.setattr(
        "scfast.run.runner.AHEAD_TOKENS", 24 * adata.n_obs
    )  # all of them, and more than one part
    found = survey(source, counts)
    assert found.tokens is not None
    assert found.tokens.n_cells == adata.n_obs
    np.testing.assert_array_equal(found.tokens.lengths, found.lengths)


def test_survey_in_parts_keeps_no_tokens(monkeypatch):
    whole = survey(toy_source(), COUNTS, gene=5)
    assert whole.tokens is not None
    monkeypatch.setattr("scfast.run.runner.AHEAD_TOKENS", 24 * 4)
    parts = survey(toy_source(), COUNTS, gene=5)
    assert parts.tokens is None
    for name in ("lengths", "gene_tokens", "holds"):
        np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))


@pytest.mark.parametrize("ahead", [1, 24 * 5, 10**6])
@pytest.mark.parametrize("kept", [False, True])
def test_rows_come_back_in_order(ahead, kept, monkeypatch):
    monkeypatch.setattr("scfast.run.runner.AHEAD_TOKENS", ahead)
    tokens = toy_source().tokenize(ADATA.X, ADATA.var)
    results, plan = go({"cells": CellScores(40), "vectors": Embedding(16)}, tokens=tokens if kept else None)
    assert plan.n_batches > 3
    cells = results["cells"]
    assert cells.has_sorted_indices
    assert cells.shape == ADATA.shape
    for row in range(ADATA.n_obs):
        expected = np.sort(tokens.select([row]).gene_index.numpy())
        np.testing.assert_array_equal(cells.indices[cells.indptr[row] : cells.indptr[row + 1]], expected)
    alone, _ = go({"vectors": Embedding(16)}, budget=10**6)
    np.testing.assert_allclose(results["vectors"], alone["vectors"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("progress", "shown"), [(True, True), (False, False), (None, False)])
def test_progress(progress, shown, capfd):
    go({}, progress=progress, label="rolling")
    assert ("rolling: 100%" in capfd.readouterr().err) == shown  # None: this is no terminal


def test_interruption_passes_through(capfd):
    class Stops:
        n_columns, fill = 1, 0.0

        def rows(self, batch):
            raise KeyboardInterrupt("now")

    with pytest.raises(KeyboardInterrupt, match="now"):
        go({"stops": Stops()}, progress=True)


def test_what_is_no_analysis_is_refused():
    class OnlyUpdates:
        def update(self, batch):
            raise AssertionError("it runs")

    with pytest.raises(TypeError, match="'mine' is a OnlyUpdates, neither an Accumulator nor a RowWriter"):
        go({"mine": OnlyUpdates()})


def test_collector_without_blocks():
    assert Collector(CellScores(3), 2).result().shape == (2, 3)
    assert np.isnan(Collector(Embedding(3), 2).result()).all()


def test_vectors_of_another_width_are_refused():
    with pytest.raises(ValueError, match=r"shape \(\d+, 16\); expected \(\d+, 17\)"):
        go({"vectors": Embedding(17)})


def test_dense_rows_keep_their_type():
    collector = Collector(Embedding(2), 3)
    collector.add(RowBlock(np.array([2, 0]), np.ones((2, 2), dtype=np.float32)))
    result = collector.result()
    assert result.dtype == np.float32
    assert np.isnan(result[:, 0]).tolist() == [False, True, False]
