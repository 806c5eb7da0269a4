"""Figures of the demonstration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: The colours of scfast.pl: one blue, and orange for what it must beat.
TRAINED, UNTRAINED, GREY = "#4C78A8", "#E07B39", "#66717C"


def draw_training(log: dict[str, Any], path: Path) -> None:
    """Held-out and training loss against the unigram loss, by step.

    Parameters
    ----------
    log
        Of :func:`scfast.tl.pretrain`.
    path
        The picture to write.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "training.png"
    >>> losses = [{"step": step, "train_loss": 6 - step / 9, "held_out_loss": 6 - step / 10} for step in range(3)]
    >>> draw_training({"unigram_loss": 5.9, "history": losses}, path)
    >>> path.exists()
    True
    """
    history = pd.DataFrame(log["history"])
    figure, ax = _figure(5.2, 3.4)
    ax.axhline(
        log["unigram_loss"], color=UNTRAINED, linewidth=1.6, linestyle="--", label="unigram, held-out cells"
    )
    ax.plot(
        history["step"],
        history["train_loss"],
        color=GREY,
        linewidth=1.2,
        label="training cells (a tenth of the answers in sight)",
    )
    ax.plot(history["step"], history["held_out_loss"], color=TRAINED, linewidth=2.2, label="held-out cells")
    ax.set_xlabel("step")
    ax.set_ylabel("loss (nats per hidden gene)")
    ax.set_xlim(left=0)
    ax.set_title("Guessing hidden genes", loc="left", fontsize=10.5, fontweight="bold")
    ax.legend(frameon=False, fontsize=8)
    _plain(ax, "y")
    figure.savefig(path, dpi=200)


def draw_marker_ranks(markers: pd.DataFrame, path: Path) -> None:
    """Place of every marker gene in the trained and the untrained model's ranking, lineage by lineage.

    Parameters
    ----------
    markers
        Of :func:`marker_ranks`.
    path
        The picture to write.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "markers.png"
    >>> markers = pd.DataFrame({"lineage": "B cells", "gene": ["CD79A", "MS4A1"]})
    >>> draw_marker_ranks(markers.assign(trained=[2.0, 5.0], untrained=[40.0, 31.0]), path)
    >>> path.exists()
    True
    """
    lineages = list(dict.fromkeys(markers["lineage"]))
    heights = [markers[markers["lineage"] == lineage]["gene"].nunique() + 1.6 for lineage in lineages]
    figure, _ = _figure(5.6, 0.26 * sum(heights) + 0.7, empty=True)
    panels = figure.subplots(len(lineages), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    for ax, lineage in zip(panels, lineages, strict=True):
        rows = markers[markers["lineage"] == lineage].drop_duplicates("gene").sort_values("trained")
        place = np.arange(len(rows))
        ax.hlines(place, rows["trained"], rows["untrained"], color="#D5DAE0", linewidth=2, zorder=1)
        ax.scatter(rows["untrained"], place, color=UNTRAINED, s=26, zorder=2, label="untrained")
        ax.scatter(rows["trained"], place, color=TRAINED, s=34, zorder=3, label="trained")
        ax.set_yticks(place, rows["gene"], fontsize=8.5)
        ax.set_ylim(len(rows) - 0.4, -0.6)
        ax.set_title(lineage, loc="left", fontsize=10, fontweight="bold")
        _plain(ax, "x")
    panels[-1].set_xscale("log")
    ticks = [1, 3, 10, 30, 100, 300]
    panels[-1].set_xticks(ticks, map(str, ticks))
    panels[-1].minorticks_off()
    panels[-1].set_xlabel("place of the gene by attention (1 = most attended)", fontsize=9)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper right", ncols=2, frameon=False, fontsize=8)
    figure.savefig(path, dpi=200)


def _figure(width: float, height: float, *, empty: bool = False) -> tuple[Figure, Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)  # needs no display, and leaves pyplot's state alone
    return figure, None if empty else figure.add_subplot()  # type: ignore[return-value]


def _plain(ax: Axes, grid: str) -> None:
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    ax.grid(axis=grid, color="#E4E7EB", linewidth=0.7)  # type: ignore[arg-type]
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=8.5)
