"""pl.relevance: what is drawn is what the table says."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest

import scfast
from scfast import models
from tests.models.test_targets import classifier
from tests.tl.test_attention_norms import adata_of_genes
from tests.toy import BACKEND


@pytest.fixture(scope="module")
def adata(tmp_path_factory):
    adata, source = adata_of_genes(), models.load("geneformer", classifier(tmp_path_factory.mktemp("tuned")))
    for name in ("low", "high"):
        key = {"key_added": name, "groupby": "type", "backend": BACKEND}
        scfast.tl.relevance(adata, source, f"class:{name}", **key)
    return adata


def test_bars_are_the_table(adata):
    axes = scfast.pl.relevance(adata, key="high", n_genes=5)
    table = adata.uns["high"]["table"]
    assert [ax.get_title(loc="left") for ax in axes] == ["B/plasma", "Mono", "T"]
    for ax, (_, part) in zip(axes, table.groupby("group", observed=True), strict=True):
        assert [label.get_text() for label in ax.get_yticklabels()] == part["gene"].head(5).tolist()
        np.testing.assert_allclose([bar.get_width() for bar in ax.patches], part["mean"].head(5))
        assert ax.get_xlabel() == "relevance (mean over cells)"
    plt.close("all")


def test_classes_side_by_side_have_one_scale(adata, tmp_path):
    axes = scfast.pl.relevance(adata, key=["low", "high"], groups="T", save=tmp_path / "a.png")
    assert [ax.get_title(loc="left") for ax in axes] == ["low: T", "high: T"]
    assert len({ax.get_xlim() for ax in axes}) == 1
    assert (tmp_path / "a.png").stat().st_size > 5000
    with pytest.raises(KeyError, match=r"no relevance named 'relevance': run scfast\.tl\.relevance"):
        scfast.pl.relevance(adata)
    plt.close("all")
