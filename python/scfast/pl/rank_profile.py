"""Attention by rank of the encoding: profiles of one model or several, and the change between them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scfast.pl._figure import (
    COLOURS,
    GREY,
    INK,
    MAX_PANELS,
    choose_panels,
    columns_for,
    figure_of,
    finish,
    legend,
    plain,
    say_left_out,
    title,
    total_width,
)

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

PANEL_WIDTH, PROFILE_HEIGHT, CHANGE_HEIGHT = 4.4, 2.9, 1.2
#: How far apart the names of marked genes stand, and where they begin, as shares of the panel's width and height.
NAME_GAP, NAMES_AT = 0.042, 0.84
#: Ranks that fewer cells than this share of them reach are drawn pale, and do not set the scale.
FEW = 0.1
LINE = 1.8


def rank_profile(
    adata: AnnData,
    *,
    key: str = "rank_profile",
    groups: Sequence[str] | str | None = None,
    smooth: int | None = None,
    change: bool | None = None,
    max_rank: int | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes | list[Axes]:
    """Mean attention received at each rank; below, the change of each model against the first.

    Several models, or bins of cell length, are lines of one panel, and all panels have one scale. A line is pale where
    fewer than a tenth of the cells reach. Upright lines: the cells' median length (dashed), and the mean rank of each
    marked gene.

    Parameters
    ----------
    adata
        After :func:`scfast.tl.rank_profile`.
    key
        Name of its results.
    groups
        Which groups. Default: all.
    smooth
        Ranks that are averaged for a line; every single rank is a pale dot behind it. Default: a thirtieth of them.
    change
        Draw the change between models. Default: where there are several and no ``ax`` is given.
    max_rank
        Last rank to show. Default: the longest cell's.
    ax
        Draw the profile of one group, and of one bin where there are several models, into these axes.
    show
        Show the figure. Default: where ``ax`` and ``save`` are not given and the backend is interactive.
    save
        File to write, such as ``"ranks.png"``.

    Returns
    -------
    matplotlib.axes.Axes or list of them
        The profile, where it is one; else a list of the panels' axes, each profile followed by its change.

    Raises
    ------
    KeyError
        When there are no such results or groups.
    ValueError
        When several panels should go into one ``ax``, there is no change to draw, or a number is out of range.

    Examples
    --------
    >>> import scfast
    >>> adata, model = scfast.datasets.toy()
    >>> _, other = scfast.datasets.toy(seed=1)
    >>> scfast.tl.rank_profile(adata, {"before": model, "after": other})
    >>> axes = scfast.pl.rank_profile(adata)
    """
    if key not in adata.uns or "lengths" not in adata.uns[key]:
        raise KeyError(
            f"adata.uns has no rank profile named {key!r}: run scfast.tl.rank_profile(..., key_added={key!r}) first"
        )
    results = adata.uns[key]
    table: pd.DataFrame = results["table"]
    for name, value in (("smooth", smooth), ("max_rank", max_rank)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be a whole number from 1")
    several = "change" in table
    if change and (not several or ax is not None):
        raise ValueError("change=True: one model has none, and one ax has no room for it below the profile")
    with_change = several and ax is None and change is not False
    last = min(int(table["rank"].max()), max_rank or int(table["rank"].max()))
    window = smooth or max(1, round(last / 30))

    bins = list(table["lengths"].cat.categories)
    known = list(table["group"].cat.categories)
    cells = results["lengths"].groupby("group", observed=True)["cells"].sum().reindex(known)
    most = max(1, MAX_PANELS // (len(bins) if several else 1))
    chosen = choose_panels(known, groups, cells, most=most)
    by_bin: list[list[str]] = [[name] for name in bins] if several else [bins]
    panels = [(group, lines) for group in chosen for lines in by_bin]
    if ax is not None and len(panels) > 1:
        raise ValueError(f"one ax takes one panel, and there are {len(panels)}: name one with groups=")
    axes = [(ax, None)] if ax is not None else _axes(len(panels), with_change)
    for number, ((upper, lower), (group, lines)) in enumerate(zip(axes, panels, strict=True)):
        part = table[
            ((table["group"] == group) & table["lengths"].isin(lines) & (table["rank"] <= last)).to_numpy()
        ]
        _panel(upper, lower, part, "model" if several else "lengths", window)
        about = results["lengths"]
        about = about[((about["group"] == group) & about["lengths"].isin(lines)).to_numpy()]
        _lengths(upper, lower, about, last, NAMES_AT - 0.04 if "genes" in results else 1.0)
        if "genes" in results:
            marks = results["genes"]
            first = marks["model"].cat.categories[0]
            inside = (marks["group"] == group) & marks["lengths"].isin(lines) & (marks["model"] == first)
            _genes(upper, marks[inside.to_numpy()], last)
        _decorate(upper, lower, last, labelled=number % columns_for(len(panels), PANEL_WIDTH) == 0)
        named = [group] * (len(table["group"].cat.categories) > 1)
        named += [f"{name} genes" for name in lines] * (several and len(bins) > 1)
        title(upper, " · ".join(named), _facts(about, results["params"].get("equal_length")))
    _one_scale([upper for upper, _ in axes], head=1.06 - NAMES_AT if "genes" in results else 0.0)
    if with_change:
        _one_scale([lower for _, lower in axes if lower is not None], head=0.0, zero=True)
    if ax is None:
        legend(figure_of(axes[0][0]), [upper for upper, _ in axes])
        say_left_out(figure_of(axes[0][0]), chosen, known, groups)
    finish(axes[0][0], ax is None, show, save)
    flat = [panel for pair in axes for panel in pair if panel is not None]
    return flat[0] if len(flat) == 1 else flat


def _axes(n_panels: int, with_change: bool) -> list[tuple[Any, Any]]:
    """(profile, change or None) of each panel, the change below its profile."""
    import matplotlib.pyplot as plt

    n_columns = columns_for(n_panels, PANEL_WIDTH)
    n_rows = math.ceil(n_panels / n_columns)
    heights = [PROFILE_HEIGHT + 0.45, CHANGE_HEIGHT][: 1 + with_change]
    size = (total_width(n_panels, PANEL_WIDTH), sum(heights) * n_rows + 0.35)
    figure = plt.figure(figsize=size, layout="constrained")
    grid = figure.add_gridspec(n_rows * len(heights), n_columns, height_ratios=heights * n_rows)
    found = []
    for number in range(n_panels):
        row, column = divmod(number, n_columns)
        upper = figure.add_subplot(grid[row * len(heights), column])
        lower = figure.add_subplot(grid[row * 2 + 1, column], sharex=upper) if with_change else None
        found.append((upper, lower))
    return found


def _panel(upper: Axes, lower: Axes | None, part: pd.DataFrame, lines: str, window: int) -> None:
    """A line for each model or bin of length, over a dot for every rank."""
    import matplotlib

    known = list(part[lines].cat.categories)
    colours: list[Any] = [COLOURS[i % len(COLOURS)] for i in range(len(known))]
    if lines == "lengths" and len(known) > 1:
        colours = list(matplotlib.colormaps["viridis"](np.linspace(0.05, 0.85, len(known))))
    old = None
    for name, colour in zip(known, colours, strict=True):
        rows = part[(part[lines] == name).to_numpy()]
        if rows.empty:
            continue
        mean = _smoothed(rows, window)
        label = "" if name == "all" else f"{name} genes" if lines == "lengths" else name
        _line(upper, rows, rows["mean"], mean, colour, label)
        if lower is not None and old is not None:
            _line(lower, rows, rows["change"], 100 * (mean - old) / old, colour)
        old = mean if old is None else old


def _line(
    panel: Axes, rows: pd.DataFrame, single: pd.Series, smooth: np.ndarray, colour: Any, label: str = ""
) -> None:
    """A line over a dot for every rank; pale where few cells reach."""
    rank, cells = rows["rank"].to_numpy(), rows["cells"].to_numpy()
    many = cells >= FEW * cells.max()
    panel.plot(rank, single, ".", color=colour, markersize=2.4, alpha=0.35, zorder=2, markeredgewidth=0)
    panel.plot(rank, smooth, color=colour, linewidth=1.2, alpha=0.3, zorder=2.5)
    panel.plot(
        rank, np.where(many, smooth, np.nan), color=colour, linewidth=LINE, zorder=3, label=label or None
    )


def _smoothed(rows: pd.DataFrame, window: int) -> np.ndarray:
    """Mean over the tokens of ``window`` ranks around each, the near ones weighing more (Hann)."""
    weights = np.hanning(2 * (window // 2) + 3)[1:-1]
    sums, cells = (np.convolve(rows[name], weights, "full") for name in ("sum", "cells"))
    inside = slice(len(weights) // 2, len(weights) // 2 + len(rows))
    return sums[inside] / cells[inside]


def _lengths(upper: Axes, lower: Axes | None, about: pd.DataFrame, last: int, top: float) -> None:
    """A dashed line at the median length of the cells, unless their bins have several."""
    if len(about) != 1 or about["median"].item() > last:
        return
    style: dict[str, Any] = {"color": GREY, "linewidth": 1.0, "linestyle": (0, (4, 3)), "zorder": 1.5}
    upper.axvline(about["median"].item(), ymax=top, label="median length", **style)
    if lower is not None:
        lower.axvline(about["median"].item(), **style)


def _facts(about: pd.DataFrame, equal_length: int | None) -> str:
    """How many cells of what length."""
    medians = [f"{median:g}" for median in about["median"]]
    parts = [
        f"{int(about['cells'].sum()):,} cells",
        f"median {medians[0] if len(medians) == 1 else f'{medians[0]} to {medians[-1]}'} genes",
        *([] if equal_length is None else [f"thinned to {equal_length}"]),
    ]
    return "  ·  ".join(parts)


def _genes(panel: Axes, marks: pd.DataFrame, last: int) -> None:
    """A line at the mean rank of each marked gene, and its name; several bins are averaged by their cells."""
    ranked = marks[(marks["cells"] > 0).to_numpy()]
    weights = ranked["cells"] / ranked.groupby("label", observed=True)["cells"].transform("sum")
    place = (ranked["rank"] * weights).groupby(ranked["label"].astype(str)).sum().sort_values()
    place = place[place <= last]
    across = panel.get_xaxis_transform()
    for at, (name, rank) in zip(_spread(place.to_numpy() / (last + 1)), place.items(), strict=True):
        x = at * (last + 1)
        panel.plot(
            [rank, rank, x], [0, NAMES_AT - 0.06, NAMES_AT - 0.01],
            color=INK, linewidth=0.7, alpha=0.55, transform=across, zorder=1.8,
        )  # fmt: skip
        panel.text(
            x, NAMES_AT, str(name), transform=across, rotation=90, ha="center", va="bottom", fontsize=7.5, color=INK
        )  # fmt: skip


def _spread(places: np.ndarray) -> np.ndarray:
    """Places, in order, moved apart until no two are closer than a name needs; their middle stays."""
    steps = NAME_GAP * np.arange(len(places))
    apart = np.maximum.accumulate(places - steps) + steps
    back = np.minimum.accumulate((places - steps)[::-1])[::-1] + steps
    return np.clip((apart + back) / 2, 0, None)


def _decorate(upper: Axes, lower: Axes | None, last: int, *, labelled: bool) -> None:
    plain(upper)
    upper.set_xlim(0, last + 1)
    upper.set_ylabel("attention received\n(mean over cells)" if labelled else "", fontsize=8.5)
    lowest = upper if lower is None else lower
    lowest.set_xlabel("rank in the encoding", fontsize=8.5)
    if lower is not None:
        plain(lower)
        upper.tick_params(labelbottom=False)
        lower.axhline(0, color=GREY, linewidth=0.8, zorder=1)
        lower.set_ylabel("change (%)" if labelled else "", fontsize=8.5)


def _one_scale(panels: Sequence[Axes], *, head: float, zero: bool = False) -> None:
    """The same limits for all panels, from the lines alone: single ranks of few cells would squeeze them.

    ``head`` is the share of the height that is left to names.
    """
    lines = [
        line.get_ydata() for panel in panels for line in panel.get_lines() if line.get_linewidth() == LINE
    ]
    values = np.concatenate([np.asarray(line, dtype=float) for line in lines] or [np.zeros(1)])
    low, high = np.nanmin(values), np.nanmax(values)
    low, high = (min(low, 0.0), max(high, 0.0)) if zero else (low, high)
    margin = 0.1 * (high - low) or 0.1 * abs(high) or 1.0
    for panel in panels:
        panel.set_ylim(low - margin, high + margin + (high - low + 2 * margin) * head / (1 - head))
