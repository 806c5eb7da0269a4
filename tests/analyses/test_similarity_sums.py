"""TokenSimilarity and GeneStates: laws, and against the definitions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from scfast.analyses import Batch, GeneStates, Strata, TokenSimilarity
from tests.laws import assert_accumulator_laws
from tests.toy import toy_adata, toy_source

ADATA = toy_adata()
SOURCE = toy_source(cls=True)
TOKENS = SOURCE.tokenize(ADATA.X, ADATA.var)
BINS, STATES = 5, 2
COLUMNS = np.array([0, 3, 4, 17, 39])  # the model does not know gene 3
OF_TOKENS = torch.rand(TOKENS.n_tokens, STATES, 3, generator=torch.Generator().manual_seed(1)).double() - 0.5


def histograms() -> torch.Tensor:
    """float64 [cells, states, 3, bins + 6] of random similarities; some cells have no pairs of a kind."""
    rng = np.random.default_rng(2)
    edges = np.linspace(-1, 1, BINS + 1)
    packed = np.zeros((ADATA.n_obs, STATES, 3, BINS + 6))
    for index in np.ndindex(packed.shape[:3]):
        alike = rng.uniform(-1, 1, 0 if index[0] % 4 == index[2] else rng.integers(1, 9))
        packed[index][:BINS] = np.histogram(alike, edges)[0]
        low, high = (alike.min(), alike.max()) if len(alike) else (np.inf, -np.inf)
        packed[index][BINS:] = 0, rng.integers(3), low, high, alike.sum(), (alike**2).sum()
    return torch.from_numpy(packed)


HISTOGRAMS = histograms()


def cells(rows: Sequence[int]) -> Batch:
    rows = np.asarray(rows, dtype=np.int64)
    starts = np.asarray(TOKENS.packing.starts_q)
    where = [np.arange(starts[row], starts[row] + TOKENS.lengths[row]) for row in rows]
    kept = np.concatenate([*where, np.empty(0, dtype=np.int64)]).astype(np.int64)
    gene = TOKENS.gene_index.numpy()[kept]
    there = np.intersect1d(gene, COLUMNS)
    sums = [OF_TOKENS[kept[gene == column]].sum(0) for column in there]
    observed = {"token_cosines": HISTOGRAMS[rows]}
    observed["gene_state_sums"] = torch.stack(sums) if sums else torch.zeros(0, STATES, 3).double()
    return Batch(rows, TOKENS.select(rows), observed)


def strata(*, replicates: bool) -> Strata:
    groups = ADATA.obs["type"].cat.codes.to_numpy()
    donors = ADATA.obs["donor"].astype("category").cat.codes.to_numpy()
    return Strata.from_codes(groups, 3, donors if replicates else None)


WHOLE = Strata.from_codes(np.zeros(ADATA.n_obs, dtype=np.int64), 1)
ACCUMULATORS = {
    "tokens": lambda: TokenSimilarity(strata(replicates=False), STATES, BINS),
    "tokens over replicates": lambda: TokenSimilarity(strata(replicates=True), STATES, BINS),
    "genes": lambda: GeneStates(WHOLE, COLUMNS, STATES, 3),
}


@pytest.mark.parametrize("name", ACCUMULATORS)
def test_laws(name):
    assert_accumulator_laws(ACCUMULATORS[name], cells, ADATA.n_obs)


@pytest.mark.parametrize("name", ACCUMULATORS)
def test_no_cells(name):
    for part in ACCUMULATORS[name]().result():
        assert np.all((part == 0) | np.isnan(part))


@pytest.mark.parametrize("replicates", [False, True])
def test_distributions_of_groups(replicates):
    found = TokenSimilarity(strata(replicates=replicates), STATES, BINS)
    found.update(cells(range(ADATA.n_obs)))
    result, packed = found.result(), HISTOGRAMS.numpy()
    for group in range(3):
        mine = packed[ADATA.obs["type"].cat.codes.to_numpy() == group]
        pairs = mine[..., :BINS].sum(-1)
        np.testing.assert_array_equal(result.counts[group], mine[..., :BINS].sum(0))
        np.testing.assert_array_equal(result.pairs[group], pairs.sum(0))
        np.testing.assert_allclose(result.mean[group], mine[..., BINS + 4].sum(0) / pairs.sum(0))
        spread = mine[..., BINS + 5].sum(0) / pairs.sum(0) - result.mean[group] ** 2
        np.testing.assert_allclose(result.sd[group], np.sqrt(spread))
        np.testing.assert_array_equal(result.min[group], mine[..., BINS + 2].min(0))
        np.testing.assert_array_equal(result.max[group], mine[..., BINS + 3].max(0))
        np.testing.assert_array_equal(result.zeros[group], mine[..., BINS + 1].sum(0))
        np.testing.assert_array_equal(result.cells[group], (pairs > 0).sum(0))
        means = np.where(pairs > 0, mine[..., BINS + 4] / np.maximum(pairs, 1), np.nan)
        np.testing.assert_allclose(result.cell_mean[group], np.nanmean(means, 0))
        if not replicates:
            error = np.nanstd(means, 0, ddof=1) / np.sqrt((pairs > 0).sum(0))
            np.testing.assert_allclose(result.cell_se[group], error)
    assert np.isfinite(result.cell_se).all()


def test_mean_states_of_genes():
    found = ACCUMULATORS["genes"]()
    for start in range(0, ADATA.n_obs, 6):
        found.update(cells(range(start, min(start + 6, ADATA.n_obs))))
    mean, n = found.result()
    for place, column in enumerate(COLUMNS):
        here = (TOKENS.gene_index == column).numpy()
        assert n[place] == here.sum()
        if here.any():
            np.testing.assert_allclose(mean[place], OF_TOKENS.numpy()[here].mean(0), rtol=1e-12)
    assert n[1] == 0
    assert np.isnan(mean[1]).all()


def test_refusals():
    with pytest.raises(ValueError, match="must ascend"):
        GeneStates(WHOLE, COLUMNS[::-1], STATES, 3)
    with pytest.raises(ValueError, match="1 cells of a batch are in no group"):
        GeneStates(strata(replicates=False), COLUMNS, STATES, 3).update(cells(range(ADATA.n_obs)))
    with pytest.raises(ValueError, match=r"expected \[1, 2, 3\]"):
        GeneStates(WHOLE, COLUMNS[:1], STATES, 3).update(cells(range(3)))
