"""tl.layers_report: one table of results that were written one by one."""

from __future__ import annotations

import numpy as np
import pytest

import scfast
from tests.same import assert_same
from tests.toy import BACKEND, toy_adata, toy_source


@pytest.fixture(scope="module")
def adata():
    adata = toy_adata(60)
    adata.obs["type"] = adata.obs["type"].cat.add_categories("x").fillna("T")
    source = toy_source(cls=True)
    scfast.tl.similarity(adata, source, backend=BACKEND)
    scfast.tl.probe(adata, source, ["type", "donor"], folds=3, confirm=None, backend=BACKEND)
    scfast.tl.attention_shift(adata, source, toy_source(cls=True, seed=3), backend=BACKEND)
    return adata


def test_columns_are_those_results(adata):
    scfast.tl.layers_report(adata, shift="attention_shift")
    table = adata.uns["layers_report"]["table"].set_index("layer")
    assert table.index.tolist() == [1, 2, 3]
    alike = adata.uns["similarity"]["table"].set_index("layer")
    np.testing.assert_array_equal(table["change"], alike["change"].loc[1:])
    probes = adata.uns["probe"]["table"]
    for label in ("type", "donor"):
        part = probes[(probes["label"] == label) & (probes["readout"] == "cls")].set_index("layer")
        np.testing.assert_array_equal(table[f"f1_{label}"], part["f1"].loc[1:])
        np.testing.assert_allclose(table[f"gain_{label}"], np.diff(part["f1"]))
        error = part["f1_se"].to_numpy()
        np.testing.assert_allclose(table[f"gain_se_{label}"], np.hypot(error[1:], error[:-1]))
    cosine = adata.uns["attention_shift"]["cosine"]
    for layer in range(3):
        expected = 1 - cosine.loc[cosine["layer"] == layer, "mean"].mean()
        np.testing.assert_allclose(table["shift"].loc[layer + 1], expected)
    for layer in (1, 2, 3):
        row = table.loc[layer]
        same = alike["block"].loc[layer] == alike["block"].loc[layer - 1]
        gains = [row[f"gain_{label}"] <= row[f"gain_se_{label}"] for label in ("type", "donor")]
        assert row["candidate"] == (same and all(gains))


def test_where_gain_stops(adata):
    scfast.tl.layers_report(adata)
    about = adata.uns["layers_report"]["labels"]
    assert about.index.tolist() == ["type", "donor"]
    probes = adata.uns["probe"]["table"]
    for label, row in about.iterrows():
        part = probes[(probes["label"] == label) & (probes["readout"] == "cls")].set_index("layer")
        assert row["f1_best"] == part["f1"].max() == part["f1"].loc[row["best"]]
        good = part["f1"] >= part["f1"].max() - part["f1_se"].loc[row["best"]]
        assert row["stops"] == good[good].index.min() <= row["best"]
        assert row["f1_stops"] == part["f1"].loc[row["stops"]]


def test_without_probes_and_round_trip(adata, tmp_path):
    scfast.tl.layers_report(adata, probe=None, key_added="short")
    table = adata.uns["short"]["table"]
    assert list(table) == ["layer", "block", "change", "to_last", "candidate"]
    assert "labels" not in adata.uns["short"]
    path = scfast.io.write_h5ad(adata, tmp_path / "cells.h5ad")
    assert_same(scfast.io.read(path).uns["short"]["table"], table)


def test_errors(adata):
    with pytest.raises(KeyError, match=r"scfast\.tl\.similarity named 'nothing'"):
        scfast.tl.layers_report(adata, similarity="nothing")
    with pytest.raises(KeyError, match=r"scfast\.tl\.probe named 'similarity'"):
        scfast.tl.layers_report(adata, probe="similarity")
    with pytest.raises(KeyError, match="readout='gene X' was not probed"):
        scfast.tl.layers_report(adata, readout="gene X")
    with pytest.raises(KeyError, match="group='T' is not in 'similarity'"):
        scfast.tl.layers_report(adata, group="T")
    longer = toy_source(cls=True, n_layers=4)
    scfast.tl.similarity(adata, longer, groupby="donor", key_added="by_donor", backend=BACKEND)
    with pytest.raises(ValueError, match=r"'by_donor' has the groups .*: name one with group="):
        scfast.tl.layers_report(adata, similarity="by_donor")
    with pytest.raises(ValueError, match=r"\(4 layers\) and 'probe' of toy \(3 layers\)"):
        scfast.tl.layers_report(adata, similarity="by_donor", group="d1")
    scfast.tl.similarity(adata, longer, key_added="longer", backend=BACKEND)
    with pytest.raises(ValueError, match="a model of 3 layers and 'longer' of one of 4"):
        scfast.tl.layers_report(adata, similarity="longer", probe=None, shift="attention_shift")
