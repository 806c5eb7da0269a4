"""Sums of edges obey the laws, and refuse cells of no group and sums of another shape."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scfast.analyses import Batch, GeneEdges, GeneStateTotals, Strata
from tests.laws import assert_accumulator_laws
from tests.toy import toy_adata, toy_source

ADATA = toy_adata()
TOKENS = toy_source(cls=True).tokenize(ADATA.X, ADATA.var)
EACH = torch.rand(ADATA.n_obs, 3, 5, generator=torch.Generator().manual_seed(0)).double()
GENES, SOURCES = np.full((2, ADATA.n_vars), -1)
GENES[[4, 0, 9, 11, 30]] = range(5)
SOURCES[[0, 2, 30, 31]] = range(4)


def cells(rows):
    rows = np.asarray(rows, dtype=np.int64)
    observed = {"gene_edges": EACH[rows].sum(0), "gene_queries_keys": EACH[rows].sum(0)[None]}
    return Batch(rows, TOKENS.select(rows), observed)


def everyone(n=ADATA.n_obs):
    return Strata.from_codes(np.where(np.arange(ADATA.n_obs) < n, 0, -1), 1)


def test_laws_of_edges():
    assert_accumulator_laws(lambda: GeneEdges(everyone(), GENES, SOURCES, 1, 4), cells, ADATA.n_obs)


def test_laws_of_totals():
    assert_accumulator_laws(lambda: GeneStateTotals(everyone(), 1, 3, 5), cells, ADATA.n_obs)


def test_cells_that_hold_both_genes_are_counted():
    edges = GeneEdges(everyone(), GENES, SOURCES, 1, 4)
    edges.update(cells(range(ADATA.n_obs)))
    holds = np.zeros((ADATA.n_obs, ADATA.n_vars), dtype=int)
    gene = TOKENS.gene_index.numpy()
    cell = np.repeat(np.arange(ADATA.n_obs), TOKENS.lengths)
    holds[cell[gene >= 0], gene[gene >= 0]] = 1
    found = edges.result()
    np.testing.assert_array_equal(found.cells, holds[:, [2, 30, 31]].T @ holds[:, [4, 0, 9, 11, 30]])
    np.testing.assert_allclose(found.score, EACH.sum(0))


def test_what_is_refused():
    with pytest.raises(ValueError, match="1 cells of a batch are in no group"):
        GeneEdges(everyone(4), GENES, SOURCES, 1, 4).additions(cells([3, 4]))
    with pytest.raises(ValueError, match=r"sums \[3, 5\]; expected \[2, 5\]"):
        GeneEdges(everyone(), GENES, SOURCES, 2, 4).additions(cells([3]))
