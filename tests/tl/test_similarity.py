"""tl.similarity and pl.layer_map: cosines, blocks and change, against the definitions."""

from __future__ import annotations

from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from sklearn.metrics import silhouette_score

import scfast
from scfast.tl._blocks import find_blocks, silhouette
from tests.same import assert_same
from tests.toy import BACKEND, toy_adata, toy_source


def states(adata, source, pool):
    """float64 [cells, 4, d]: of every layer, by tl.embed."""
    vectors = []
    for layer in range(4):
        scfast.tl.embed(adata, source, pool=pool, layer=layer, key_added="X_here", backend=BACKEND)
        vectors.append(adata.obsm["X_here"].astype(np.float64))
    return np.stack(vectors, axis=1)


@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_maps_are_mean_cosines(pool):
    adata, source = toy_adata(), toy_source(cls=True)
    options = {"groupby": "type", "tokens": False, "memory": "60KB", "backend": BACKEND}
    scfast.tl.similarity(adata, source, readout=pool, **options)
    results = adata.uns["similarity"]
    assert results["params"]["plan"]["batches"] > 1
    vectors = states(adata, source, pool)
    unit = vectors / np.linalg.norm(vectors, axis=2, keepdims=True)
    cosine = np.einsum("ckd,cld->ckl", unit, unit)
    for number, group in enumerate(results["groups"].index):
        cells = (adata.obs["type"] == group).to_numpy()
        np.testing.assert_allclose(results["map"][number], cosine[cells].mean(0), rtol=1e-5, atol=1e-6)
        error = cosine[cells].std(0, ddof=1) / np.sqrt(cells.sum())
        np.testing.assert_allclose(results["map_se"][number], error, rtol=1e-3, atol=2e-6)
        table = results["table"][results["table"]["group"] == group]
        np.testing.assert_allclose(table["change"].to_numpy()[1:], 1 - np.diag(results["map"][number], 1))
        np.testing.assert_allclose(table["to_last"], results["map"][number][:, -1])
        assert results["groups"].loc[group, "cells"] == cells.sum()
        blocks = table.set_index("layer")["block"]
        assert (blocks.loc[results["groups"].loc[group, "last_block"] :] == blocks.iloc[-1]).all()
        assert (blocks == blocks.iloc[-1]).idxmax() == results["groups"].loc[group, "last_block"]


def test_replicates_and_default_readout():
    adata = toy_adata()
    scfast.tl.similarity(adata, toy_source(), replicate_key="donor", backend=BACKEND)
    assert adata.uns["similarity"]["params"]["readout"] == "mean"
    assert adata.uns["similarity"]["map"].shape == (1, 4, 4)
    assert np.isfinite(adata.uns["similarity"]["map_se"]).all()


def test_vectors_of_zeros_are_like_no_other_and_counted():
    adata, source = toy_adata(), toy_source()
    source.table = torch.zeros_like(source.table)  # with one token at position 0, the mean state is zero
    adata.X.data[adata.X.indptr[4] + 1 : adata.X.indptr[5]] = 0
    scfast.tl.similarity(adata, source, backend=BACKEND)
    table = adata.uns["similarity"]["table"]
    assert table["zeros"].iloc[0] == 1
    assert np.isfinite(adata.uns["similarity"]["map"]).all()


def test_best_blocks_by_trying_all():
    rng = np.random.default_rng(0)
    for n in (3, 4, 7):
        states = np.cumsum(rng.normal(size=(n, 5)) * rng.choice([0.2, 2.0], (n, 1)), axis=0)
        states /= np.linalg.norm(states, axis=1, keepdims=True)
        alike = states @ states.T
        distance = 1 - alike
        best = None
        for count in range(2, n):  # the cheapest of each number of blocks, then the clearest
            cheapest = min(
                (labels(borders, n) for borders in combinations(range(1, n), count - 1)),
                key=lambda of_layer: cost(distance, of_layer),
            )
            value = silhouette(distance, cheapest)
            if best is None or value > best[0] + 1e-12:
                best = value, cheapest
        found = find_blocks(alike)
        np.testing.assert_array_equal(found.of_layer, best[1])
        np.testing.assert_allclose(found.silhouette, best[0])


def labels(borders, n):
    return np.repeat(np.arange(len(borders) + 1), np.diff([0, *borders, n]))


def cost(distance, of_layer):
    return sum(
        distance[np.ix_(of_layer == block, of_layer == block)].sum() / (2 * np.sum(of_layer == block))
        for block in np.unique(of_layer)
    )


def test_silhouette_equals_scikit_learn():
    rng = np.random.default_rng(1)
    points = rng.normal(size=(9, 3))
    distance = np.linalg.norm(points[:, None] - points[None], axis=2)
    of_item = np.array([0, 0, 0, 1, 1, 2, 3, 3, 3])
    np.testing.assert_allclose(
        silhouette(distance, of_item), silhouette_score(distance, of_item, metric="precomputed")
    )


def test_few_layers_are_one_block():
    assert find_blocks(np.ones((2, 2))).of_layer.tolist() == [0, 0]
    assert find_blocks(np.eye(5), max_blocks=1).of_layer.tolist() == [0] * 5


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"readout": "max"}, ValueError, "readout='max' is unknown"),
        ({"readout": "cls"}, ValueError, "no cls token; use readout='mean'"),
        ({"max_blocks": 0}, ValueError, "max_blocks=0"),
        ({"groupby": "nowhere"}, KeyError, "groupby='nowhere'"),
    ],
)
def test_errors(options, error, message):
    adata = toy_adata()
    before = adata.copy()
    with pytest.raises(error, match=message):
        scfast.tl.similarity(adata, toy_source(), backend=BACKEND, **options)
    assert_same(adata, before)


def test_states_that_are_nan():
    source = toy_source()
    source.weights = source.weights.clone()
    source.weights[1] = torch.nan
    with pytest.raises(ValueError, match=r"nan or infinite at layers \[2, 3\]"):
        scfast.tl.similarity(toy_adata(), source, backend=BACKEND)


def test_drawn_maps_are_the_results(tmp_path):
    plt.switch_backend("Agg")
    adata = toy_adata()
    scfast.tl.similarity(adata, toy_source(), groupby="type", backend=BACKEND)
    scfast.tl.similarity(adata, toy_source(seed=3), groupby="type", key_added="other", backend=BACKEND)
    axes = scfast.pl.layer_map(adata, key=["similarity", "other"], save=tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5000
    assert len(axes) == 6
    for number, panel in enumerate(axes):
        results = adata.uns["similarity" if number < 3 else "other"]
        np.testing.assert_array_equal(panel.images[0].get_array(), results["map"][number % 3])
        assert len(panel.patches) == 2 * results["groups"]["blocks"].iloc[number % 3]
    assert len({panel.images[0].get_clim() for panel in axes}) == 1
    scfast.io.write_h5ad(adata, tmp_path / "cells.h5ad")
    with pytest.raises(KeyError, match=r"scfast\.tl\.similarity.*key_added='nothing'"):
        scfast.pl.layer_map(adata, key="nothing")
    with pytest.raises(ValueError, match="one ax takes one map"):
        scfast.pl.layer_map(adata, ax=plt.subplots()[1])
    plt.close("all")
