"""tl.strongest_edges: the largest entries of maps that are held."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

import scfast
from tests import materialised
from tests.same import assert_same
from tests.toy import BACKEND, toy_adata, toy_source


def run(adata, source, *args, **options):
    scfast.tl.strongest_edges(adata, source, *args, backend=BACKEND, **options)
    return adata.uns["strongest_edges"]


def expected(adata, source, layer, heads):
    """All edges between genes, by cell: a Series of weights by (source, target)."""
    recorder = materialised.MapRecorder()
    tokens = source.tokenize(adata.X, adata.var)
    with torch.inference_mode():
        source.forward(tokens, recorder)
    fuse = {"mean": torch.mean, "sum": torch.sum, "max": torch.amax, "min": torch.amin}[heads]
    cells = []
    for cell, p in enumerate(recorder.maps[layer]):
        gene = tokens.select([cell]).gene_index.numpy()
        query, key = np.nonzero((gene[:, None] >= 0) & (gene[None] >= 0))
        weight = fuse(p, dim=0).numpy()[query, key]
        index = pd.MultiIndex.from_arrays([adata.var_names[gene[key]], adata.var_names[gene[query]]])
        cells.append(pd.Series(weight, index=index))
    return cells


@pytest.mark.parametrize(("layer", "heads"), [(-1, "mean"), (0, "max"), (1, "sum"), (2, "min")])
@pytest.mark.parametrize("n", [1, 7, 1000])
@pytest.mark.parametrize("cls", [False, True])
def test_edges_are_the_largest_entries(cls, n, layer, heads):
    adata, source = toy_adata(), toy_source(cls=cls)
    edges = run(adata, source, n, layer=layer, heads=heads)["edges"]
    cells = expected(adata, source, layer, heads)
    assert list(edges["cell"].unique()) == list(range(adata.n_obs))
    assert edges["weight"].dtype == np.float32
    for (_, part), weights in zip(edges.groupby("cell"), cells, strict=True):
        largest = weights.sort_values(ascending=False).head(n)
        assert len(part) == len(largest)
        np.testing.assert_allclose(part["weight"], largest, rtol=1e-5)
        pairs = pd.MultiIndex.from_frame(part[["source", "target"]].astype(str))
        assert pairs.is_unique
        np.testing.assert_allclose(part["weight"], weights.loc[pairs], rtol=1e-5)


def test_batches_change_nothing_but_rounding():
    free, tight, source = toy_adata(), toy_adata(), toy_source(cls=True)
    run(free, source, 5)
    uns = run(tight, source, 5, memory=100_000)
    assert uns["params"]["plan"]["batches"] > 1
    pd.testing.assert_frame_equal(uns["edges"], free.uns["strongest_edges"]["edges"], rtol=1e-5)


@pytest.mark.filterwarnings("ignore:.*left out", "ignore:Changing the sparsity structure")
def test_cells_without_genes_have_no_edges():
    adata = toy_adata()
    adata.X[4] = 0
    edges = run(adata, toy_source(), 3)["edges"]
    assert 4 not in set(edges["cell"])
    assert edges["cell"].nunique() == adata.n_obs - 1


def test_copy_and_file(tmp_path):
    adata = toy_adata()
    before = adata.copy()
    copied = scfast.tl.strongest_edges(adata, toy_source(), 4, copy=True, backend=BACKEND)
    assert_same(adata, before)
    copied.write_h5ad(tmp_path / "x.h5ad")
    read = anndata.read_h5ad(tmp_path / "x.h5ad").uns["strongest_edges"]
    assert_same(read["edges"], copied.uns["strongest_edges"]["edges"])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_edges": 0}, ValueError, "n_edges=0 must be a whole number, 1 or more"),
        ({"n_edges": 2.5}, ValueError, "n_edges=2.5 must be a whole number"),
        ({"layer": 3}, ValueError, "layer=3 does not exist: toy has layers 0 to 2"),
        ({"heads": "none"}, ValueError, "heads='none' is not a fusion of one map; use one of mean, sum"),
        ({"key_added": "a/b"}, ValueError, "must be a name without"),
        ({"memory": "much"}, ValueError, "memory='much' is not an amount"),
        ({"counts_layer": "raw"}, KeyError, "counts_layer='raw' is not in adata.layers"),
    ],
)
def test_bad_input(options, error, message):
    adata = toy_adata()
    before = adata.copy()
    with pytest.raises(error, match=message):
        scfast.tl.strongest_edges(adata, toy_source(), **options)
    assert_same(adata, before)


def test_geneformer_by_its_folder(cells, folders):
    adata = cells.copy()
    edges = run(adata, f"geneformer:{folders['v2']}", 10)["edges"]
    assert (edges.groupby("cell").size() == 10).all()
    assert edges["weight"].between(0, 1).all()
    assert set(edges["source"].astype(str)) <= set(adata.var_names)
