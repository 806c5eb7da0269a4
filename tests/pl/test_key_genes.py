"""pl.key_genes: every number of the table stands in the figure."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest

import scfast
from tests.toy import BACKEND, toy_adata, toy_source


@pytest.fixture
def adata():
    adata = toy_adata()
    options = {"groupby": "type", "highlight": ["S0", "S5"], "gene_symbols": "symbol", "null": "untrained"}
    scfast.tl.key_genes(adata, toy_source(), backend=BACKEND, **options)
    return adata


def texts(ax):
    return [text.get_text() for text in ax.texts]


def test_table_is_drawn(adata):
    ax = scfast.pl.key_genes(adata, n_genes=8)
    rows = adata.uns["key_genes"]["table"].head(8)
    drawn = texts(ax)
    for name in ("B/plasma", "Mono", "T", "cells", "detection", "red: highlighted set", *rows["symbol"]):
        assert name in drawn
    for row in rows.itertuples():
        assert f"{row.attention:.2f}" in drawn
        assert f"{row.rank_Mono:.0f}" in drawn
        assert f"{row.detection:.0%}" in drawn
    bars = [bar.get_width() for bar in ax.patches[:8]]
    np.testing.assert_allclose(np.array(bars) / bars[0], rows["attention"] / rows["attention"].iloc[0])
    red = [text.get_text() for text in ax.texts if text.get_fontweight() == "bold"]
    assert red == rows.loc[rows["highlight"], "symbol"].tolist()


def test_chosen_genes_groups_and_labels(adata):
    ax = scfast.pl.key_genes(adata, genes=["G5", "G0"], groups=["B|plasma"])
    assert {"S5", "S0", "B/plasma"} <= set(texts(ax))
    assert "Mono" not in texts(ax)


def test_without_groups_null_and_highlight():
    adata = toy_adata()
    scfast.tl.key_genes(adata, toy_source(), backend=BACKEND)
    drawn = texts(scfast.pl.key_genes(adata))
    assert "G0" in drawn
    assert not any("highlight" in text or "group" in text for text in drawn)


def test_own_axes_file_and_errors(adata, tmp_path):
    _, own = plt.subplots()
    assert scfast.pl.key_genes(adata, ax=own, save=tmp_path / "a.png") is own
    assert (tmp_path / "a.png").stat().st_size > 5000
    for error, message, options in (
        (KeyError, r"no key genes named 'x': run scfast\.tl\.key_genes", {"key": "x"}),
        (KeyError, r"genes \['X'\] are not in the results", {"genes": ["X"]}),
        (KeyError, r"groups \['X'\] are not in the results", {"groups": "X"}),
        (KeyError, "gene_symbols='name' is not in adata.var", {"gene_symbols": "name"}),
        (ValueError, "n_genes=0", {"n_genes": 0}),
    ):
        with pytest.raises(error, match=message):
            scfast.pl.key_genes(adata, **options)
