"""pl.confusion: what is drawn is what the logs say, on one scale."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest

import scfast
from scfast.train.scores import classification_scores

matplotlib.use("Agg")

import matplotlib.pyplot as plt


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def log(confusion, classes=("low", "high")):
    scores = classification_scores(np.array(confusion), classes, 0)
    return {"settings": {"classes": list(classes)}, "test": scores}


def test_shares_and_counts_of_each_true_class_are_drawn():
    ax = scfast.pl.confusion(log([[9, 1], [0, 0]]))
    np.testing.assert_allclose(ax.images[0].get_array().filled(np.nan), [[0.9, 0.1], [np.nan, np.nan]])
    texts = [text.get_text() for text in ax.texts]
    assert texts[:4] == ["9\n90 %", "1\n10 %", "0", "0"]
    assert "accuracy 0.900" in texts[4]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["low", "high"]


def test_models_stand_side_by_side_on_one_scale(tmp_path):
    logs = {"frozen": log([[9, 1], [4, 6]]), "free": log([[10, 0], [0, 10]])}
    axes = scfast.pl.confusion(logs, save=tmp_path / "confusion.png")
    assert [ax.get_title(loc="left") for ax in axes] == ["frozen", "free"]
    assert {ax.images[0].get_clim() for ax in axes} == {(0, 1)}
    assert (tmp_path / "confusion.png").stat().st_size > 1000


def test_one_panel_goes_into_given_axes():
    _, ax = plt.subplots()
    assert scfast.pl.confusion({"tuned": log([[1, 0], [0, 1]])}, ax=ax) is ax


def test_what_cannot_be_drawn_is_named():
    one = log([[1, 0], [0, 1]])
    with pytest.raises(ValueError, match="no log to draw"):
        scfast.pl.confusion({})
    with pytest.raises(KeyError, match=r"part='validation' in the logs \['a'\]"):
        scfast.pl.confusion({"a": one}, part="validation")
    with pytest.raises(ValueError, match="different classes"):
        scfast.pl.confusion({"a": one, "b": log([[1, 0], [0, 1]], ("x", "y"))})
    with pytest.raises(ValueError, match="one ax takes one log, and there are 2"):
        scfast.pl.confusion({"a": one, "b": one}, ax=plt.subplots()[1])
