"""pl.attention_shift: colours are the table's cosines, on one scale."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest

import scfast
from tests.toy import BACKEND, toy_adata, toy_source

matplotlib.use("Agg")

import matplotlib.pyplot as plt


@pytest.fixture(scope="module")
def results():
    adata = toy_adata()
    for seed, key in ((7, "attention_shift"), (8, "free")):
        scfast.tl.attention_shift(
            adata, toy_source(), toy_source(seed=seed), groupby="type", key_added=key, backend=BACKEND
        )
    return adata


@pytest.fixture
def adata(results):
    yield results
    plt.close("all")


def shown(ax):
    return np.asarray(ax.images[0].get_array())


def test_panels_are_the_table_on_one_scale(adata, tmp_path):
    keys = ["attention_shift", "free"]
    axes = scfast.pl.attention_shift(adata, keys=keys, save=tmp_path / "shift.png")
    panels = [(key, group) for key in keys for group in ("B/plasma", "Mono", "T")]
    assert [ax.get_title(loc="left") for ax in axes] == [" · ".join(panel) for panel in panels]
    lowest = min(adata.uns[key]["cosine"]["mean"].min() for key in keys)
    for ax, (key, group) in zip(axes, panels, strict=True):
        table = adata.uns[key]["cosine"]
        table = table[table["group"] == group]
        np.testing.assert_array_equal(shown(ax).reshape(-1), table["mean"])
        assert shown(ax).shape == (3, 2)
        assert ax.images[0].get_clim() == (lowest, 1.0)
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("head", "layer")
    assert (tmp_path / "shift.png").stat().st_size > 5000


def test_own_axes_statistic_and_limits(adata):
    _, own = plt.subplots()
    ax = scfast.pl.attention_shift(
        adata, groups="T", statistic="concatenated", limits=(0.2, 0.9), ax=own, show=False
    )
    assert ax is own
    table = adata.uns["attention_shift"]["cosine"].query("group == 'T'")
    np.testing.assert_array_equal(shown(ax).reshape(-1), table["concatenated"])
    assert ax.images[0].get_clim() == (0.2, 0.9)


def test_refused_by_name(adata):
    with pytest.raises(KeyError, match=r"no attention shift named 'x': run scfast.tl.attention_shift"):
        scfast.pl.attention_shift(adata, keys="x")
    with pytest.raises(KeyError, match="group 'NK' is not in the results 'attention_shift', which have"):
        scfast.pl.attention_shift(adata, groups=["T", "NK"])
    with pytest.raises(KeyError, match="keys names no results"):
        scfast.pl.attention_shift(adata, keys=[])
    with pytest.raises(KeyError, match="chooses nothing"):
        scfast.pl.attention_shift(adata, groups=[])
    with pytest.raises(ValueError, match="statistic='median' is unknown"):
        scfast.pl.attention_shift(adata, statistic="median")
    with pytest.raises(ValueError, match="one ax takes one panel, and there are 3"):
        scfast.pl.attention_shift(adata, ax=plt.subplots()[1])
