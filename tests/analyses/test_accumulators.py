"""Every accumulator obeys the laws; one that breaks them is caught."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from scfast.analyses import (
    Addition,
    Batch,
    CellMeans,
    GenePairs,
    GeneShares,
    GroupExpression,
    GroupScores,
    LayerCosines,
    LayerScores,
    MapCosines,
    RankProfile,
    StateGram,
    StateSums,
    Strata,
)
from scfast.analyses.state_sums import symmetric
from tests.laws import assert_accumulator_laws
from tests.toy import toy_adata, toy_source

ADATA = toy_adata()
SOURCE = toy_source(cls=True)
TOKENS = SOURCE.tokenize(ADATA.X, ADATA.var)
SCORES = torch.rand(3, TOKENS.n_tokens, generator=torch.Generator().manual_seed(5))
OF_CELLS = torch.rand(ADATA.n_obs, 2, 3, generator=torch.Generator().manual_seed(7))
EACH = torch.rand(2, 3, TOKENS.n_tokens, generator=torch.Generator().manual_seed(6))  # [layers, heads, T]
#: [cells, layers, heads, 3]: <P1, P2>, |P1|^2, |P2|^2
PRODUCTS = torch.rand(ADATA.n_obs, 3, 2, 3, generator=torch.Generator().manual_seed(7)).double() + 0.5
#: [cells, layers, readouts, width]; some cells lack the second readout
STATES = torch.rand(ADATA.n_obs, 2, 2, 3, generator=torch.Generator().manual_seed(8)) - 0.3
STATES[::4, :, 1] = torch.nan


def cells(rows: Sequence[int]) -> Batch:
    """A batch of rows; every token keeps its score wherever its cell goes."""
    rows = np.asarray(rows, dtype=np.int64)
    starts = np.asarray(TOKENS.packing.starts_q)
    where = [np.arange(starts[row], starts[row] + TOKENS.lengths[row]) for row in rows]
    kept = torch.from_numpy(np.concatenate([*where, np.empty(0, dtype=np.int64)]).astype(np.int64))
    observed = {"rollout": SCORES[:, kept], "each": EACH[..., kept], "of cells": OF_CELLS[rows]}
    observed["token_states"] = STATES[rows]
    observed["map_shift"] = PRODUCTS[rows]
    return Batch(rows, TOKENS.select(rows), observed, ADATA.X[rows])


def strata(*, replicates: bool) -> Strata:
    groups = ADATA.obs["type"].cat.codes.to_numpy()
    donors = ADATA.obs["donor"].astype("category").cat.codes.to_numpy()
    return Strata.from_codes(groups, 3, donors if replicates else None)


ACCUMULATORS = {
    "scores": lambda: GroupScores(strata(replicates=False), ADATA.n_vars),
    "scores between replicates": lambda: GroupScores(strata(replicates=True), ADATA.n_vars, row=0),
    "expression": lambda: GroupExpression(strata(replicates=False), ADATA.n_vars),
    "expression over replicates": lambda: GroupExpression(strata(replicates=True), ADATA.n_vars),
    "shares": lambda: GeneShares(strata(replicates=False), ADATA.n_vars),
    "shares between replicates": lambda: GeneShares(
        strata(replicates=True), ADATA.n_vars, row=0, sum_to_one=0
    ),
    "layers": lambda: LayerScores(strata(replicates=True), ADATA.n_vars, 3),
    "numbers of cells": lambda: CellMeans(strata(replicates=False), 6, "of cells"),
    "means over tokens": lambda: CellMeans(strata(replicates=True), 4, "each", per_token=1),
    "ranks": lambda: RankProfile(strata(replicates=False), 24, name="rollout", row=1),
    "ranks over replicates": lambda: RankProfile(strata(replicates=True), 30, name="each", row=4),
    "cosines": lambda: MapCosines(strata(replicates=False), 3, 2),
    "cosines over replicates": lambda: MapCosines(strata(replicates=True), 3, 2),
    "pairs of genes": lambda: GenePairs(
        strata(replicates=False), ADATA.n_vars, np.array([5, 0, 12]), np.arange(ADATA.n_vars)
    ),
    "chosen pairs of layers": lambda: GenePairs(
        strata(replicates=True), ADATA.n_vars, np.array([5, 0]), np.array([7, 5, 39]), 3, "each"
    ),
    "cosines of layers": lambda: LayerCosines(strata(replicates=False), 2, "of cells"),
    "cosines of layers over replicates": lambda: LayerCosines(strata(replicates=True), 2, "of cells"),
    "states": lambda: StateSums(strata(replicates=False), 4, 3),
    "states over replicates": lambda: StateSums(strata(replicates=True), 4, 3),
    "second moments": lambda: StateGram(strata(replicates=True), 4, 3),
    "heads of layers": lambda: LayerScores(strata(replicates=False), ADATA.n_vars, 6, name="each"),
}


@pytest.mark.parametrize("name", ACCUMULATORS)
def test_laws(name):
    assert_accumulator_laws(ACCUMULATORS[name], cells, ADATA.n_obs)


@pytest.mark.parametrize("name", ACCUMULATORS)
def test_no_cells(name):
    """Nothing seen: counts of zero, means of nan, and no warning."""
    result = ACCUMULATORS[name]().result()
    for part in result if isinstance(result, tuple) else [result]:
        assert np.all((part == 0) | np.isnan(part))


class Forgetful(GroupScores):
    """Breaks a law: merging takes the other's cells, but not its scores."""

    def merge(self, other):
        self.sums["cells"] += other.sums["cells"]


class Greedy(GroupScores):
    """Breaks a law: merging changes the other."""

    def merge(self, other):
        super().merge(other)
        other.sums["score"] += 1


class Rounded(GroupScores):
    """Breaks a law: sums in float32."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.sums["score"] = self.sums["score"].astype(np.float32)


class Hasty(GroupScores):
    """Breaks a law: adds some before it knows all."""

    def additions(self, batch):
        found = super().additions(batch)
        self.add(found[:1])
        return found[1:]


@pytest.mark.parametrize("broken", [Forgetful, Greedy, Rounded, Hasty])
def test_law_breakers_are_caught(broken):
    with pytest.raises(AssertionError):
        assert_accumulator_laws(lambda: broken(strata(replicates=False), ADATA.n_vars), cells, ADATA.n_obs)


def test_adding_allocates_no_array():
    """Else memory could run out when half of a batch is added."""
    accumulator = GroupScores(strata(replicates=False), 100_000)
    places = np.arange(0, 300_000, 2)
    additions = [
        Addition("score", places, np.ones(places.size)),
        Addition("count", places, np.ones(places.size, dtype=np.int64)),
    ]
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        accumulator.add(additions)
        grown = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert accumulator.sums["score"].sum() == accumulator.sums["count"].sum() == places.size
    assert grown < 20_000 < places.nbytes  # NumPy's own buffers take 5 kB, whatever is added


def test_merge_refuses_other_groups_and_genes():
    mine = GroupScores(strata(replicates=False), ADATA.n_vars)
    with pytest.raises(ValueError, match="different cells or groups"):
        mine.merge(GroupScores(strata(replicates=True), ADATA.n_vars))
    with pytest.raises(ValueError, match="n_genes=40 and n_genes=41"):
        mine.merge(GroupScores(strata(replicates=False), 41))


def test_a_profile_refuses_cells_that_are_too_long():
    with pytest.raises(ValueError, match="gene tokens; this profile has 20 ranks"):
        RankProfile(strata(replicates=False), 20, name="rollout").update(cells(range(ADATA.n_obs)))


def test_second_moments_and_sums_of_states():
    """Against the definition; a state that a cell lacks adds nothing."""
    grams, sums = StateGram(strata(replicates=True), 4, 3), StateSums(strata(replicates=True), 4, 3)
    for start in range(0, ADATA.n_obs, 5):
        for each in (grams, sums):
            each.update(cells(range(start, min(start + 5, ADATA.n_obs))))
    stratum = grams.strata.of_row
    states = np.nan_to_num(STATES.double().reshape(-1, 4, 3).numpy())
    for number in range(grams.strata.n):
        mine = states[stratum == number]
        expected = np.einsum("cui,cuj->uij", mine, mine)
        np.testing.assert_allclose(symmetric(grams.result()[number]), expected, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(sums.result().sum[number], mine.sum(0), rtol=1e-12, atol=1e-14)
        held = ~np.isnan(STATES.reshape(-1, 4, 3).numpy()[stratum == number]).any(-1)
        np.testing.assert_array_equal(sums.result().cells[number], held.sum(0))


def test_second_moments_are_added_in_place():
    """BLAS adds to the array itself, so that adding allocates nothing."""
    grams = StateGram(strata(replicates=False), 4, 200)
    batch = Batch(np.arange(2), TOKENS.select([0, 1]), {"token_states": torch.ones(2, 4, 200)})
    additions = grams.additions(batch)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        grams.add(additions)
        grown = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert np.tril(grams.sums["gram"][:, 0].sum(0)).sum() == 2 * 200 * 201 / 2
    assert grown < 20_000 < 200 * 200 * 8


def test_expression_needs_counts():
    batch = cells([0, 1])
    with pytest.raises(ValueError, match="counts"):
        GroupExpression(strata(replicates=False), 40).update(Batch(batch.rows, batch.tokens, batch.observed))
