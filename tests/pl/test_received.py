"""pl.received: what is drawn is what the table says."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest

import scfast
from tests.toy import BACKEND, toy_adata, toy_source


@pytest.fixture
def adata():
    adata = toy_adata()
    scfast.tl.received(adata, toy_source(), groupby="type", null="untrained", backend=BACKEND)
    return adata


def test_bars_are_the_table(adata):
    axes = scfast.pl.received(adata, n_genes=5)
    table = adata.uns["received"]["table"]
    assert [ax.get_title(loc="left") for ax in axes] == ["B/plasma", "Mono", "T"]
    for ax, (_, part) in zip(axes, table.groupby("group", observed=True), strict=True):
        assert [label.get_text() for label in ax.get_yticklabels()] == part["gene"].head(5).tolist()
        np.testing.assert_allclose([bar.get_width() for bar in ax.patches], part["mean"].head(5))
        np.testing.assert_allclose(ax.collections[-1].get_offsets()[:, 0], part["null"].head(5))


def test_several_models_have_one_scale(adata):
    scfast.tl.received(adata, toy_source().untrained(3), groupby="type", key_added="other", backend=BACKEND)
    axes = scfast.pl.received(adata, key=["received", "other"], groups=["T", "Mono"])
    assert [ax.get_title(loc="left") for ax in axes] == [
        "received: T", "received: Mono", "other: T", "other: Mono",
    ]  # fmt: skip
    assert len({ax.get_xlim() for ax in axes}) == 1


def test_own_axes_file_and_errors(adata, tmp_path):
    _, own = plt.subplots()
    ax = scfast.pl.received(adata, groups="T", gene_symbols="symbol", ax=own, save=tmp_path / "a.png")
    assert ax is own
    assert (tmp_path / "a.png").stat().st_size > 5000
    with pytest.raises(KeyError, match=r"no received named 'other': run scfast\.tl\.received"):
        scfast.pl.received(adata, key="other")
    with pytest.raises(KeyError, match=r"groups \['X'\] are not in the results"):
        scfast.pl.received(adata, groups=["X"])
    with pytest.raises(ValueError, match="one ax takes one group"):
        scfast.pl.received(adata, ax=own)
