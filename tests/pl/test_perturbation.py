"""pl.perturbation: a row per method that has scores, its points and its mean."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest

import scfast

matplotlib.use("Agg")

import matplotlib.pyplot as plt


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def log(seed, *rows):
    names = ("pearson", "pearson_change", "pearson_top", "pearson_change_top")
    scores = [
        {"seed": seed, "perturbation": p, "context": "c", "method": m, **dict.fromkeys(names, value)}
        for p, m, value in rows
    ]
    return {"settings": {"seed": seed}, "scores": scores}


def test_points_are_means_over_seeds():
    logs = [
        log(0, ("P", "model", 0.5), ("Q", "model", 0.1), ("P", "no change", None), ("Q", "no change", None)),
        log(1, ("P", "model", 0.7), ("Q", "model", 0.3), ("P", "no change", None), ("Q", "no change", None)),
    ]
    ax = scfast.pl.perturbation(logs, metric="pearson_top")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["model"]
    np.testing.assert_allclose(ax.lines[0].get_xdata(), [0.6, 0.2])
    assert ax.get_xlabel() == "Pearson, 20 genes"
    assert scfast.pl.perturbation(logs[0], ax=ax) is ax


def test_what_cannot_be_drawn_is_named():
    with pytest.raises(ValueError, match="metric='spearman' is unknown; use one of 'pearson'"):
        scfast.pl.perturbation(log(0, ("P", "model", 0.5)), metric="spearman")
    with pytest.raises(ValueError, match="there are no scores"):
        scfast.pl.perturbation([])
