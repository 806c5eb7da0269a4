"""tl.embed: vectors against the model's own states."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import scfast
from tests.toy import BACKEND, ToySource, toy_adata, toy_source


def expected_vectors(source: ToySource, adata, pool: str, layer: int) -> np.ndarray:
    """One cell at a time, with torch's own softmax."""
    tokens = source.tokenize(adata.X, adata.var)
    vectors = []
    for cell in range(tokens.n_cells):
        alone = tokens.select([cell])
        states = source.table[alone.ids] + alone.positions[:, None] / 50
        for wq, wk, wv in source.weights[:layer]:
            q, k, v = ((states @ w).reshape(-1, 2, 8).transpose(0, 1) for w in (wq, wk, wv))
            out = torch.softmax(q @ k.transpose(1, 2) / 8**0.5, -1) @ v
            states = torch.nn.functional.layer_norm(states + out.transpose(0, 1).reshape(-1, 16), (16,))
        vectors.append(states[0] if pool == "cls" else states[alone.gene_index >= 0].mean(0))
    return torch.stack(vectors).numpy()


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize(("layer", "number"), [(-1, 3), (0, 0), (2, 2)])
def test_vectors(pool, layer, number):
    adata, source = toy_adata(), toy_source(cls=True)
    scfast.tl.embed(adata, source, pool=pool, layer=layer, memory="40KB", backend=BACKEND)
    assert adata.uns["X_toy"]["params"]["plan"]["batches"] > 1
    assert adata.obsm["X_toy"].dtype == np.float32
    np.testing.assert_allclose(
        adata.obsm["X_toy"], expected_vectors(source, adata, pool, number), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("cls", [False, True])
def test_default_pool_is_the_model_s(cls):
    adata, source = toy_adata(), toy_source(cls=cls)
    copy = scfast.tl.embed(adata, source, key_added="X_here", backend=BACKEND, copy=True)
    assert "X_here" not in adata.obsm
    pool = "cls" if cls else "mean"
    np.testing.assert_allclose(
        copy.obsm["X_here"], expected_vectors(source, adata, pool, 3), rtol=1e-4, atol=1e-5
    )


def test_cells_without_genes_are_nan():
    adata = toy_adata()
    adata.X.data[adata.X.indptr[4] : adata.X.indptr[5]] = 0
    with pytest.warns(UserWarning, match="1 of 23 cells express no gene"):
        scfast.tl.embed(adata, toy_source(), backend=BACKEND)
    assert np.flatnonzero(np.isnan(adata.obsm["X_toy"]).any(1)).tolist() == [4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": "cls"}, "no cls token; use pool='mean'"),
        ({"pool": "max"}, "pool='max' is unknown"),
        ({"layer": 4}, "layer=4 does not exist"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError, match=message):
        scfast.tl.embed(toy_adata(), toy_source(), **options)
