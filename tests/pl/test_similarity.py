"""pl.similarity_distribution, similarity_heatmap and clustermap: what is drawn is what was computed."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform

import scfast
from tests.toy import BACKEND, toy_adata, toy_source

GENES = ["G0", "G1", "G2", "G4", "G5", "G6", "G8", "G9", "G11", "G12"]


@pytest.fixture(scope="module")
def adata():
    adata = toy_adata(40)
    options = {"groupby": "type", "genes": GENES, "min_cells": 2, "cell": "cell7", "backend": BACKEND}
    scfast.tl.similarity(adata, toy_source(cls=True), **options)
    scfast.tl.similarity(adata, toy_source(cls=True, seed=7), key_added="other", **options)
    scfast.tl.similarity(
        adata, toy_source(), key_added="no cls", genes=GENES[:4], min_cells=2, backend=BACKEND
    )
    return adata


def test_ridges_are_the_histograms(adata, tmp_path):
    axes = scfast.pl.similarity_distribution(adata, key=["similarity", "other"], save=tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5000
    assert [ax.get_title(loc="left") for ax in axes] == ["gene-gene", "gene-special"]
    results = {key: adata.uns[key] for key in ("similarity", "other")}
    for pair, ax in enumerate(axes):
        curves = [line for line in ax.lines if len(line.get_xdata()) > 2]
        assert len(curves) == 8
        for number, (name, found) in enumerate(results.items()):
            counts = found["token_counts"][-1, :, pair]
            edges = found["edges"].astype(np.float64)
            middle = (edges[1:] + edges[:-1]) / 2
            for line, layer in zip(curves[4 * number : 4 * number + 4], (3, 2, 1, 0), strict=True):
                assert line.get_label() == name
                assert line.get_ydata().max() > layer + 1
                x, y = line.get_data()
                expected = np.interp(x, middle, counts[layer] / counts[layer].max(), left=0, right=0)
                np.testing.assert_allclose((y - layer) / (y.max() - layer), expected, atol=1e-6)
    assert len({ax.get_xlim() for ax in axes}) == 1
    legend = [text.get_text() for text in axes[0].figure.legends[0].get_texts()]
    assert legend == ["similarity", "other"]


def test_lines_are_the_quantiles(adata):
    ax = scfast.pl.similarity_distribution(adata, groups="T", pairs="gene-gene", style="lines")
    table = adata.uns["similarity"]["tokens"]
    part = table[(table["group"] == "T") & (table["pair"] == "gene-gene")]
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), part["median"])
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [0, 1, 2, 3])


def test_groups_and_models_without_such_pairs(adata):
    axes = scfast.pl.similarity_distribution(adata, groups=["Mono", "all"])
    assert [ax.get_title(loc="left") for ax in axes] == [
        "Mono: gene-gene", "Mono: gene-special", "all: gene-gene", "all: gene-special",
    ]  # fmt: skip
    both = scfast.pl.similarity_distribution(adata, key=["no cls", "similarity"])
    assert len([line for line in both[1].lines if len(line.get_xdata()) > 2]) == 4
    assert scfast.pl.similarity_distribution(adata, key="no cls").get_title(loc="left") == "gene-gene"


@pytest.mark.parametrize("of", ["genes", "cell"])
def test_heatmaps_are_the_maps(adata, of, tmp_path):
    axes = scfast.pl.similarity_heatmap(adata, key=["similarity", "other"], of=of, save=tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5000
    assert len(axes) == 6
    kept = {key: adata.uns[key][of] for key in ("similarity", "other")}
    names = [str(name) for name in kept["similarity"]["names"]]
    shown = [label.get_text() for label in axes[0].get_yticklabels()]
    assert sorted(shown) == sorted(names)
    order = [names.index(name) for name in shown]
    for number, ax in enumerate(axes):
        values = kept["similarity" if number < 3 else "other"]["similarity"][[0, 2, 3][number % 3]]
        np.testing.assert_array_equal(ax.images[0].get_array(), values[np.ix_(order, order)])
    assert len({ax.images[0].get_clim() for ax in axes}) == 1
    _, own = plt.subplots()
    ax = scfast.pl.similarity_heatmap(adata, of=of, layers=-1, sort=False, ax=own)
    assert ax is own
    np.testing.assert_array_equal(ax.images[0].get_array(), kept["similarity"]["similarity"][3])


def test_clustermap_is_the_tree_of_scipy(adata, tmp_path):
    ax = scfast.pl.clustermap(adata, layer=1, gene_symbols="symbol", n_clusters=3, save=tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5000
    genes = adata.uns["similarity"]["genes"]
    symbols = adata.var.loc[genes["names"], "symbol"].tolist()
    shown = [label.get_text() for label in ax.get_yticklabels()]
    assert shown == [label.get_text() for label in ax.get_xticklabels()]
    order = [symbols.index(name) for name in shown]
    values = genes["similarity"][1]
    np.testing.assert_array_equal(ax.images[0].get_array(), values[np.ix_(order, order)])
    assert len(ax.patches) == 2 * 3
    distance = np.clip(1 - values.astype(np.float64), 0, None)
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform(distance, checks=False), "average")
    drawn = ax.figure.axes[0].collections[0].get_segments()
    heights = sorted(segment[:, 0].max() for segment in drawn)
    np.testing.assert_allclose(heights, sorted(tree[:, 2]))
    for segment in drawn:  # a leaf's branch ends at its row
        assert all(0 <= y <= len(order) - 1 for y in segment[:, 1])
    assert len(scfast.pl.clustermap(adata, n_clusters=1).patches) == 0
    assert scfast.pl.clustermap(adata, of="cell", n_clusters=None).images


def test_errors(adata):
    draw = scfast.pl.similarity_distribution
    with pytest.raises(KeyError, match=r"scfast\.tl\.similarity.*key_added='rollout'"):
        draw(adata, key="rollout")
    with pytest.raises(KeyError, match=r"groups \['X'\] are not in the results"):
        draw(adata, groups=["X"])
    with pytest.raises(KeyError, match=r"pairs \['gene-special'\] are not in the results"):
        draw(adata, key="no cls", pairs="gene-special")
    with pytest.raises(ValueError, match="style='bars'"):
        draw(adata, style="bars")
    with pytest.raises(ValueError, match="one ax takes one panel"):
        draw(adata, ax=plt.subplots()[1])
    with pytest.raises(KeyError, match=r"no map of tokens named 'no cls'.*cell="):
        scfast.pl.clustermap(adata, key="no cls", of="cell")
    with pytest.raises(KeyError, match=r"layers \[9\] are not in the results"):
        scfast.pl.similarity_heatmap(adata, layers=9)
    with pytest.raises(ValueError, match="compare other genes"):
        scfast.pl.similarity_heatmap(adata, key=["similarity", "no cls"])
    with pytest.raises(ValueError, match="of='cells'"):
        scfast.pl.similarity_heatmap(adata, of="cells")
    with pytest.raises(ValueError, match="one ax takes one map, and there are 3"):
        scfast.pl.similarity_heatmap(adata, ax=plt.subplots()[1])
    with pytest.raises(ValueError, match="method='ward'"):
        scfast.pl.clustermap(adata, method="ward")
    with pytest.raises(ValueError, match="n_clusters=11 must lie between 1 and 10"):
        scfast.pl.clustermap(adata, n_clusters=11)
