"""pl.attention_norms: what is drawn is what the table says, on the scale that was asked for."""

from __future__ import annotations

import matplotlib
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import scfast

matplotlib.use("Agg")

import matplotlib.pyplot as plt

GROUPS = ["B", "T"]


def results(seed: int) -> dict[str, pd.DataFrame]:
    """Numbers of 3 layers x 4 heads in two groups of 10 and 30 cells."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(
        [(group, layer, head) for group in GROUPS for layer in range(3) for head in range(4)],
        columns=["group", "layer", "head"],
    )
    table["group"] = pd.Categorical(table["group"], categories=GROUPS)
    for quantity in ("weighted", "prob"):
        table[quantity], table[f"{quantity}_se"] = rng.random((2, len(table))) * (seed + 1)
    return {"heads": table, "groups": pd.DataFrame({"cells": [10, 30]}, index=GROUPS)}


@pytest.fixture
def adata():
    yield AnnData(np.zeros((2, 2)), uns={"attention_norms": results(0), "tuned": results(1)})
    plt.close("all")


def numbers(adata, key, group, quantity="weighted"):
    table = adata.uns[key]["heads"]
    return table.loc[table["group"] == group, quantity].to_numpy().reshape(3, 4)


def drawn(panel):
    return np.asarray(panel.images[0].get_array())


@pytest.mark.parametrize("quantity", ["weighted", "prob"])
def test_the_numbers_of_a_group(adata, quantity):
    panel = scfast.pl.attention_norms(adata, group="T", quantity=quantity, scale="none")
    np.testing.assert_allclose(drawn(panel), numbers(adata, "attention_norms", "T", quantity))
    assert (panel.get_xlabel(), panel.get_ylabel(), panel.get_title(loc="left")) == ("head", "layer", "T")


def test_groups_weigh_their_cells(adata):
    panel = scfast.pl.attention_norms(adata, scale="none")
    both = [numbers(adata, "attention_norms", group) for group in GROUPS]
    np.testing.assert_allclose(drawn(panel), 0.25 * both[0] + 0.75 * both[1])


def test_min_max_is_panel_by_panel_and_shared_is_over_all(adata):
    keys = {"before": "attention_norms", "after": "tuned"}
    for scale in ("min-max", "shared"):
        panels = scfast.pl.attention_norms(adata, key=keys, group="B", scale=scale)
        assert [panel.get_title(loc="left") for panel in panels] == ["before", "after"]
        values = [numbers(adata, key, "B") for key in keys.values()]
        together = np.stack(values)
        for panel, own in zip(panels, values, strict=True):
            of = own if scale == "min-max" else together
            np.testing.assert_allclose(drawn(panel), (own - of.min()) / (of.max() - of.min()))
            assert panel.images[0].get_clim() == (0, 1)


def test_own_axes_and_files(adata, tmp_path):
    _, axes = plt.subplots(1, 2)
    panels = scfast.pl.attention_norms(
        adata, key=["attention_norms", "tuned"], ax=list(axes), save=tmp_path / "a.png"
    )
    assert panels == list(axes)
    assert (tmp_path / "a.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"key": "other"}, KeyError, "no numbers per head under 'other'"),
        ({"quantity": "mixed"}, KeyError, r"have \['weighted', 'prob'\]"),
        ({"group": "NK"}, KeyError, r"have \['B', 'T'\]"),
        ({"scale": "log"}, ValueError, "scale='log' is unknown; use 'min-max'"),
    ],
)
def test_bad_input(adata, options, error, message):
    with pytest.raises(error, match=message):
        scfast.pl.attention_norms(adata, **options)


def test_axes_must_be_as_many_as_panels(adata):
    _, ax = plt.subplots()
    with pytest.raises(ValueError, match="ax has 1 axes for 2 panels"):
        scfast.pl.attention_norms(adata, key=["attention_norms", "tuned"], ax=ax)
