"""pl.rank_profile: lines, change, marked genes and median length as the tables say."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest

import scfast
from tests.toy import BACKEND, toy_adata, toy_source


def profiled(model, **options):
    adata = toy_adata(40)
    scfast.tl.rank_profile(adata, model, backend=BACKEND, **options)
    return adata


@pytest.fixture
def pair():
    return profiled(
        {"old": toy_source(), "new": toy_source().untrained(1)}, genes=["G0", "G5"], groupby="type"
    )


def dots(ax):
    return [line for line in ax.get_lines() if line.get_marker() == "."]


def test_profiles_and_change(pair):
    axes = scfast.pl.rank_profile(pair)
    assert len(axes) == 6
    results = pair.uns["rank_profile"]
    table = results["table"]
    for upper, lower, group in zip(axes[::2], axes[1::2], ["B/plasma", "Mono", "T"], strict=True):
        assert upper.get_title(loc="left") == group
        for line, model in zip(dots(upper), ["old", "new"], strict=True):
            rows = table[(table["group"] == group) & (table["model"] == model)]
            np.testing.assert_array_equal(line.get_xdata(), rows["rank"])
            np.testing.assert_allclose(line.get_ydata(), rows["mean"])
        (line,) = dots(lower)
        np.testing.assert_allclose(line.get_ydata(), rows["change"])
        median = results["lengths"].query("group == @group")["median"].item()
        assert median in [line.get_xdata()[0] for line in upper.get_lines()]
        marks = results["genes"].query("group == @group and model == 'old'").set_index("label")["rank"]
        drawn = {text.get_text() for text in upper.texts}
        assert {"G0", "G5"} <= drawn
        starts = [line.get_xdata()[0] for line in upper.get_lines() if len(line.get_xdata()) == 3]
        np.testing.assert_allclose(sorted(starts), sorted(marks))
    assert len({ax.get_ylim() for ax in axes[::2]}) == len({ax.get_ylim() for ax in axes[1::2]}) == 1
    names = [text.get_text() for text in axes[0].figure.legends[0].get_texts()]
    assert names == ["old", "new", "median length"]


def test_without_smoothing_the_line_is_the_table():
    adata = profiled(toy_source())
    ax = scfast.pl.rank_profile(adata, smooth=1, max_rank=12)
    rows = adata.uns["rank_profile"]["table"].head(12)
    pale, line = [line for line in ax.get_lines() if len(line.get_xdata()) == 12 and line.get_marker() != "."]
    np.testing.assert_allclose(pale.get_ydata(), rows["mean"])
    many = rows["cells"] >= 0.1 * rows["cells"].max()
    np.testing.assert_allclose(line.get_ydata(), rows["mean"].where(many))
    assert ax.get_xlim() == (0, 13)


def test_smoothing_keeps_the_mean_of_a_level():
    """A running mean of a constant is that constant, to the ends."""
    adata = profiled(toy_source())
    table = adata.uns["rank_profile"]["table"]
    table["sum"], table["mean"] = 3.0 * table["cells"], 3.0
    ax = scfast.pl.rank_profile(adata, smooth=7)
    for line in ax.get_lines()[:2]:
        np.testing.assert_allclose(line.get_ydata(), 3.0)


def test_bins_of_length_are_lines_of_one_model_and_panels_of_several():
    one = profiled(toy_source(), quantiles=3)
    ax = scfast.pl.rank_profile(one)
    bins = list(one.uns["rank_profile"]["table"]["lengths"].cat.categories)
    assert [text.get_text() for text in ax.figure.legends[0].get_texts()] == [
        f"{name} genes" for name in bins
    ]
    two = profiled([toy_source(), renamed(toy_source().untrained(1))], quantiles=3, equal_length="shortest")
    axes = scfast.pl.rank_profile(two)
    assert [ax.get_title(loc="left") for ax in axes[::2]] == [f"{name} genes" for name in bins]
    assert any("thinned to" in text.get_text() for text in axes[0].texts)
    assert len(scfast.pl.rank_profile(two, change=False)) == 3


def renamed(source):
    source.name = "fresh"
    return source


def test_own_axes_file_and_errors(pair, tmp_path):
    _, own = plt.subplots()
    assert scfast.pl.rank_profile(pair, groups="T", ax=own, save=tmp_path / "a.png") is own
    assert (tmp_path / "a.png").stat().st_size > 5000
    for error, message, options in (
        (KeyError, r"no rank profile named 'x': run scfast\.tl\.rank_profile", {"key": "x"}),
        (KeyError, r"groups \['X'\] are not in the results", {"groups": ["X"]}),
        (ValueError, "one ax takes one panel, and there are 3", {"ax": own}),
        (ValueError, "change=True: one model has none, and one ax has no room", {"ax": own, "change": True}),
        (ValueError, "smooth=0 must be a whole number from 1", {"smooth": 0}),
    ):
        with pytest.raises(error, match=message):
            scfast.pl.rank_profile(pair, **options)
