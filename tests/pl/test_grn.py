"""pl.grn, pl.regulator, pl.grn_score: what is drawn is what was found."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest

import scfast
from tests.toy import BACKEND, toy_adata, toy_source

REFERENCE = {"G0": ["G1", "G2", "G9"], "G4": ["G1", "G11"], "G5": ["G2", "G8"]}


@pytest.fixture(scope="module")
def adata():
    adata = toy_adata(60)
    options = {"min_cells": 1, "n_blocks": 3, "backend": BACKEND}
    scfast.tl.grn(adata, toy_source(), groupby="type", compare=("T", "Mono"), **options)
    scfast.tl.grn_score(adata, REFERENCE, n_null=5)
    scfast.tl.regulator(adata, "G0", network="all", reference=REFERENCE, top=5)
    return adata


@pytest.mark.parametrize("network", [None, "all", "B/plasma"])
def test_strongest_edges(adata, network, tmp_path):
    ax = scfast.pl.grn(adata, network=network, n_edges=12, gene_symbols="symbol", save=tmp_path / "a.png")
    assert len(ax.patches) == 12
    place = {None: "grn_change", "all": "grn", "B/plasma": "grn_B|plasma"}[network]
    matrix = adata.varp[place].tocoo()
    best = np.argsort(-np.abs(matrix.data), kind="stable")[:12]
    genes = {f"S{gene}" for gene in [*matrix.row[best], *matrix.col[best]]}
    assert {text.get_text() for text in ax.texts} >= genes
    colours = {patch.get_edgecolor()[:3] for patch in ax.patches}
    assert len(colours) == (len(set(np.sign(matrix.data[best]))) if network is None else 1)
    assert (tmp_path / "a.png").stat().st_size > 5000


def test_regulator(adata):
    heat, edges = scfast.pl.regulator(adata)
    results = adata.uns["regulator"]
    np.testing.assert_allclose(heat.images[0].get_array()[:, 0], results["influenced"]["all"])
    assert [label.get_text() for label in edges.get_yticklabels()] == list(results["edges"]["target"])
    bold = [label.get_fontweight() == "bold" for label in edges.get_yticklabels()]
    assert bold == results["edges"]["known"].tolist()


def test_precision_and_recall(adata):
    axes = scfast.pl.grn_score(adata)
    assert [ax.get_title(loc="left") for ax in axes] == [
        "all cells",
        "B/plasma",
        "Mono",
        "T",
        "mean of the groups",
    ]
    curves = adata.uns["grn_score"]["curves"]
    line = next(line for line in axes[0].lines if line.get_label() == "network")
    part = curves[(curves["network"] == "all") & (curves["score"] == "network")]
    np.testing.assert_allclose(line.get_ydata(), part["precision"])
    _, own = plt.subplots()
    assert scfast.pl.grn_score(adata, groups="all", ax=own) is own


def test_what_is_refused(adata):
    _, own = plt.subplots()
    for draw, options, error, says in (
        (scfast.pl.grn, {"key": "x"}, KeyError, "no network 'x'"),
        (scfast.pl.grn, {"network": "NK"}, KeyError, "network='NK' is not in the results"),
        (scfast.pl.grn, {"n_edges": 0}, ValueError, "n_edges=0"),
        (scfast.pl.regulator, {"key": "x"}, KeyError, "no regulator named 'x'"),
        (scfast.pl.grn_score, {"key": "x"}, KeyError, "no scores of networks named 'x'"),
        (scfast.pl.grn_score, {"ax": own}, ValueError, "one ax takes one network"),
    ):
        with pytest.raises(error, match=says):
            draw(adata, **options)
