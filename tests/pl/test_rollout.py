"""pl.rollout: what is drawn is what the table says."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest

import scfast
from tests.toy import BACKEND, toy_adata, toy_source

matplotlib.use("Agg")

import matplotlib.pyplot as plt


@pytest.fixture
def adata():
    adata = toy_adata()
    scfast.tl.rollout(adata, toy_source(), groupby="type", null="untrained", backend=BACKEND)
    yield adata
    plt.close("all")


def texts(axes):
    return [label.get_text() for label in axes.get_yticklabels()]


def test_bars_are_the_table(adata):
    axes = scfast.pl.rollout(adata, n_genes=5)
    assert [ax.get_title(loc="left") for ax in axes] == ["B/plasma", "Mono", "T"]
    table = adata.uns["rollout"]["table"]
    for ax, (_, part) in zip(axes, table.groupby("group", observed=True), strict=True):
        assert texts(ax) == part["gene"].head(5).tolist()
        widths = [bar.get_width() for bar in ax.patches]
        np.testing.assert_allclose(widths, 100 * part["mean"].head(5))
        marks = ax.collections[-1].get_offsets()[:, 0]
        np.testing.assert_allclose(marks, 100 * part["null"].head(5))
        assert ax.yaxis_inverted()
    names = [text.get_text() for text in axes[0].figure.legends[0].get_texts()]
    assert names == ["mean score", "standard error", "untrained model"]


def test_error_bars(adata):
    ax = scfast.pl.rollout(adata, groups="T", n_genes=4)
    part = adata.uns["rollout"]["table"].query("group == 'T'").head(4)
    segments = ax.containers[1][2][0].get_segments()
    lengths = [segment[1, 0] - segment[0, 0] for segment in segments]
    np.testing.assert_allclose(lengths, 200 * part["se"])


def test_symbols_own_axes_and_file(adata, tmp_path):
    _, own = plt.subplots()
    ax = scfast.pl.rollout(adata, groups=["Mono"], gene_symbols="symbol", ax=own, save=tmp_path / "a.png")
    assert ax is own
    assert all(text.startswith("S") for text in texts(ax))
    assert (tmp_path / "a.png").stat().st_size > 5000


def test_without_null_and_errors():
    """One cell per group has no standard error, and nothing fails over it."""
    adata = toy_adata(5)
    adata.obs["one"] = list("abcde")
    scfast.tl.rollout(adata, toy_source(), groupby="one", backend=BACKEND)
    axes = scfast.pl.rollout(adata)
    assert len(axes) == 5
    assert not any(ax.collections for ax in axes)
    plt.close("all")


def test_errors(adata):
    with pytest.raises(KeyError, match=r"scfast\.tl\.rollout.*key_added='other'"):
        scfast.pl.rollout(adata, key="other")
    with pytest.raises(KeyError, match=r"groups \['X'\] are not in the results"):
        scfast.pl.rollout(adata, groups=["T", "X"])
    with pytest.raises(KeyError, match="gene_symbols='name'"):
        scfast.pl.rollout(adata, gene_symbols="name")
    with pytest.raises(ValueError, match="one ax takes one group"):
        scfast.pl.rollout(adata, ax=plt.subplots()[1])
