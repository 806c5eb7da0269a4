"""pl.rollout_matrix: colours are the means, on one scale, and a gene is not shown as its own source."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest

import scfast
from tests.toy import BACKEND, toy_adata, toy_source

GENES = ["G5", "G0", "G12"]


@pytest.fixture(scope="module")
def adata():
    made = toy_adata()
    scfast.tl.rollout_matrix(made, toy_source(), GENES, groupby="type", backend=BACKEND)
    return made


def shown(ax):
    return np.ma.filled(ax.images[0].get_array().astype(float), np.nan)


def labels(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def test_panels_are_the_means_on_one_scale(adata, tmp_path):
    axes = scfast.pl.rollout_matrix(adata, n_sources=9, save=tmp_path / "matrix.png")
    uns = adata.uns["rollout_matrix"]
    assert [ax.get_title(loc="left") for ax in axes] == ["B/plasma", "Mono", "T"]
    read = labels(axes[0].xaxis)
    best = uns["table"].groupby("source", observed=True)["mean"].max().sort_values(ascending=False)
    assert read == list(best.index[:9].astype(str))
    place = [list(uns["source_names"]).index(gene) for gene in read]
    own = np.array(GENES)[:, None] == np.array(read)
    expected = np.where(own, np.nan, 100 * uns["mean"][:, :, place])
    for ax, means in zip(axes, expected, strict=True):
        assert labels(ax.yaxis) == GENES
        np.testing.assert_array_equal(shown(ax), means)
        assert ax.images[0].get_clim() == (0.0, np.nanmax(expected))
    assert (tmp_path / "matrix.png").stat().st_size > 5000


def test_chosen_genes_names_axes_and_limits(adata):
    _, own = plt.subplots()
    ax = scfast.pl.rollout_matrix(
        adata, groups="T", genes=["G12", "G5"], sources=["G5", "G1"], gene_symbols="symbol", limits=(0, 3),
        ax=own, show=False,
    )  # fmt: skip
    assert ax is own
    assert (labels(ax.yaxis), labels(ax.xaxis)) == (["S12", "S5"], ["S5", "S1"])
    uns = adata.uns["rollout_matrix"]
    place = [list(uns["source_names"]).index(gene) for gene in ("G5", "G1")]
    expected = 100 * uns["mean"][2][[2, 0]][:, place]
    expected[1, 0] = np.nan  # G5 itself
    np.testing.assert_array_equal(shown(ax), expected)
    assert ax.images[0].get_clim() == (0, 3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"key": "x"}, KeyError, "no rollout matrix named 'x': run scfast.tl.rollout_matrix"),
        ({"groups": "NK"}, KeyError, r"groups \['NK'\] are not in the results"),
        ({"genes": ["G1"]}, KeyError, r"genes: \['G1'\] are not in the results, which have \['G5'"),
        ({"sources": "G3"}, KeyError, r"sources: \['G3'\] are not in the results"),
        ({"sources": []}, KeyError, r"sources: \[\] are not in the results"),
        ({"gene_symbols": "name"}, KeyError, "gene_symbols='name' is not in adata.var"),
        ({"ax": "one"}, ValueError, "one ax takes one group, and there are 3"),
    ],
)
def test_refused_by_name(adata, options, error, message):
    with pytest.raises(error, match=message):
        scfast.pl.rollout_matrix(adata, **options)
