"""pl.probe: what is drawn is what the table says."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest

import scfast
from tests.toy import BACKEND, toy_adata, toy_source


@pytest.fixture(scope="module")
def adata():
    adata = toy_adata(60)
    adata.obs["type"] = adata.obs["type"].cat.add_categories("x").fillna("T")
    options = {"folds": 3, "backend": BACKEND}
    scfast.tl.probe(adata, toy_source(cls=True), ["type", "donor"], positions=[1, 2], **options)
    scfast.tl.probe(adata, toy_source(cls=True, seed=9), ["type"], key_added="other", **options)
    return adata


def drawn(panel, name):
    (line,) = [line for line in panel.get_lines() if line.get_label() == name]
    return line.get_xdata(), line.get_ydata()


def test_lines_are_the_table(adata, tmp_path):
    axes = scfast.pl.probe(adata, save=tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5000
    assert [ax.get_title(loc="left") for ax in axes] == ["type", "donor"]
    table, tokens = adata.uns["probe"]["table"], adata.uns["probe"]["tokens"]
    for ax, label in zip(axes, ("type", "donor"), strict=True):
        for readout in ("cls", "mean"):
            part = table[(table["label"] == label) & (table["readout"] == readout)]
            layer, f1 = drawn(ax, readout)
            np.testing.assert_array_equal(layer, range(4))
            np.testing.assert_allclose(f1, part["f1"])
        np.testing.assert_allclose(
            drawn(ax, "single tokens, mean")[1], tokens.loc[tokens["label"] == label, "tokens"]
        )
        np.testing.assert_allclose(drawn(ax, "chance")[1], 1 / 3)
    names = {text.get_text() for text in axes[0].figure.legends[0].get_texts()}
    assert names == {"cls", "mean", "shuffled labels", "logistic regression", "single tokens, mean", "chance"}


def test_several_models_and_chosen_readouts(adata):
    ax = scfast.pl.probe(adata, key=["probe", "other"], labels="type", readouts=["mean"])
    assert len(drawn(ax, "mean, probe")[1]) == len(drawn(ax, "mean, other")[1]) == 4
    ax = scfast.pl.probe(adata, labels="donor", readouts="position 2", ax=plt.subplots()[1])
    part = adata.uns["probe"]["table"].query("label == 'donor' and readout == 'position 2'")
    np.testing.assert_allclose(drawn(ax, "position 2")[1], part["f1"])


def test_errors(adata):
    with pytest.raises(KeyError, match=r"scfast\.tl\.probe.*key_added='nothing'"):
        scfast.pl.probe(adata, key="nothing")
    for option in ("labels", "readouts"):
        with pytest.raises(KeyError, match=r"\['X'\] are not in the results"):
            scfast.pl.probe(adata, **{option: ["X"]})
    with pytest.raises(ValueError, match="one ax takes one label"):
        scfast.pl.probe(adata, ax=plt.subplots()[1])
