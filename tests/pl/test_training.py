"""pl.training: the lines are the losses of the logs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import pytest

import scfast

matplotlib.use("Agg")

import matplotlib.pyplot as plt


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def log(shift: float = 0.0) -> dict[str, Any]:
    history = [{"step": n, "train_loss": 3.0 - n, "held_out_loss": 3.5 - n + shift} for n in (1, 2)]
    return {"settings": {}, "history": history, "baseline": {"loss": 2.25}}


def test_losses_and_baseline_are_drawn(tmp_path: Path) -> None:
    ax = scfast.pl.training(log(), save=tmp_path / "training.png")
    held_out, train, baseline = ax.lines
    assert list(held_out.get_xdata()) == [1, 2]
    assert list(held_out.get_ydata()) == [2.5, 1.5]
    assert list(train.get_ydata()) == [2.0, 1.0]
    assert list(baseline.get_ydata()) == [2.25, 2.25]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        "held out",
        "training",
        "without the cell",
    ]
    assert (tmp_path / "training.png").stat().st_size > 0


def test_several_logs_share_one_scale() -> None:
    genes = {"settings": {}, "history": log(0.5)["history"], "unigram_loss": 4.0}
    _, given = plt.subplots()
    ax = scfast.pl.training({"bins": log(), "genes": genes}, ax=given)
    assert ax is given
    assert len(ax.lines) == 6
    assert list(ax.lines[5].get_ydata()) == [4.0, 4.0]
    assert ax.lines[0].get_color() != ax.lines[3].get_color()


def test_logs_without_losses_are_named() -> None:
    with pytest.raises(ValueError, match="there is no log to draw"):
        scfast.pl.training({})
    with pytest.raises(ValueError, match="the log 'tuned' has no losses of held-out cells"):
        scfast.pl.training({"tuned": {"settings": {}, "history": [{"step": 1}]}})
