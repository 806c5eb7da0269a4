"""Share of attention of gene programs against their share of the cell, model by model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scfast.pl._figure import (
    COLOURS,
    GREY,
    INK,
    choose,
    choose_panels,
    columns_for,
    figure_of,
    finish,
    legend,
    make_panels,
    plain,
    say_left_out,
    shorten,
    title,
)

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

#: The range of the null, behind the bars.
NULL = "#D3D8DD"
PANEL_WIDTH, ROW_HEIGHT, BAR_HEIGHT = 4.6, 0.3, 0.11
#: The longest name of a cluster that is shown whole.
NAME_LENGTH = 32


def prevalence(
    adata: AnnData,
    *,
    key: str = "prevalence",
    groups: Sequence[str] | str | None = None,
    models: Sequence[str] | str | None = None,
    clusters: Sequence[str] | None = None,
    n_clusters: int = 10,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes | list[Axes]:
    """Bars of the difference between share of attention and share of genes: a panel per cell type, a colour per model.

    Lines are the bootstrap intervals; the grey range behind each bar is that of permuted clusters, which keep rank and
    detection: a bar says something of its own where it leaves that range. All panels have one scale.

    Parameters
    ----------
    adata
        After :func:`scfast.tl.prevalence`.
    key
        Name of its results.
    groups
        Which cell types. Default: all.
    models
        Which models, by the names of their results. Default: all.
    clusters
        Which clusters, in this order. Default: those with the largest differences in any panel.
    n_clusters
        How many, where they are not named.
    ax
        Draw into these axes; for one cell type.
    show
        Show the figure. Default: where ``ax`` and ``save`` are not given and the backend is interactive.
    save
        File to write, such as ``"prevalence.png"``.

    Returns
    -------
    matplotlib.axes.Axes or list of them
        One for one cell type, else a list in their order.

    Raises
    ------
    KeyError
        When there are no such results, groups, models or clusters.
    ValueError
        When several groups should go into one ``ax``.

    Examples
    --------
    >>> import scfast
    >>> adata, model = scfast.datasets.toy()
    >>> scfast.tl.rollout(adata, model, groupby="cell_type")
    >>> clusters = {"CD3D": "T cell", "CD3E": "T cell", "LYZ": "myeloid", "CD14": "myeloid"}
    >>> scfast.tl.prevalence(adata, clusters, n_bins=2)
    >>> axes = scfast.pl.prevalence(adata, groups=["B cell"], n_clusters=2)
    """
    if key not in adata.uns or "difference" not in adata.uns[key].get("table", ()):
        raise KeyError(
            f"adata.uns has no prevalence named {key!r}: run scfast.tl.prevalence(..., key_added={key!r}) first"
        )
    table = adata.uns[key]["table"].astype({"model": str, "group": str, "cluster": str})
    named = {column: list(dict.fromkeys(table[column])) for column in ("group", "model", "cluster")}
    about = adata.uns[key]["groups"]
    cells = (
        about.astype({"group": str}).drop_duplicates("group").set_index("group")["cells"].get(named["group"])
    )
    chosen, shown = choose_panels(named["group"], groups, cells), choose(named["model"], models)
    if ax is not None and len(chosen) > 1:
        raise ValueError(f"one ax takes one group, and there are {len(chosen)}: name one with groups=")
    table = table[(table["group"].isin(chosen) & table["model"].isin(shown)).to_numpy()]
    rows = _largest(table, n_clusters) if clusters is None else choose(named["cluster"], clusters)

    height = (ROW_HEIGHT + BAR_HEIGHT * (len(shown) - 1)) * len(rows) + 1.0
    axes = [ax] if ax is not None else make_panels(len(chosen), PANEL_WIDTH, height)
    n_columns = columns_for(len(chosen), PANEL_WIDTH)
    for place, (panel, name) in enumerate(zip(axes, chosen, strict=True)):
        for number, model in enumerate(shown):
            part = table[((table["group"] == name) & (table["model"] == model)).to_numpy()]
            part = part.drop_duplicates("cluster").set_index("cluster").reindex(rows)
            _bars(panel, part, number, len(shown), model if len(shown) > 1 else "difference")
        _axis(panel, rows, labelled=place + n_columns >= len(chosen))
        n_cells = int(about.loc[(about["group"].astype(str) == name).to_numpy(), "cells"].iloc[0])
        title(panel, name, f"{n_cells:,} cell{'s' * (n_cells != 1)}")
    ends = np.array([panel.get_xlim() for panel in axes])
    for panel in axes:
        panel.set_xlim(ends[:, 0].min(), ends[:, 1].max())
    if ax is None:
        bars = shown if len(shown) > 1 else ["difference"]
        legend(figure_of(axes[0]), axes, [*bars, "interval", "permuted clusters"])
        say_left_out(figure_of(axes[0]), chosen, named["group"], groups)
    finish(axes[0], ax is None, show, save)
    return axes[0] if len(axes) == 1 else axes


def _largest(table: pd.DataFrame, n: int) -> list[str]:
    """The clusters that differ most from their share anywhere, from the largest mean difference down."""
    by_cluster = table.groupby("cluster", sort=False)["difference"]
    most = by_cluster.agg(lambda values: values.abs().max()).nlargest(n).index
    return list(by_cluster.mean().loc[most].sort_values(ascending=False).index)


def _bars(panel: Axes, part: pd.DataFrame, number: int, n_models: int, label: str) -> None:
    """One model's bars; differences in percentage points."""
    thick = 0.78 / n_models
    place = np.arange(len(part)) - 0.39 + thick * (number + 0.5)
    values, low, high, null_low, null_high = (
        100 * part[column].to_numpy(dtype=np.float64)
        for column in ("difference", "low", "high", "null_low", "null_high")
    )
    panel.barh(
        place, null_high - null_low, left=null_low, height=thick, color=NULL, zorder=2,
        label="permuted clusters" if number == 0 else None,
    )  # fmt: skip
    panel.barh(
        place, values, height=0.62 * thick, color=COLOURS[number % len(COLOURS)], label=label, zorder=3
    )
    known = np.isfinite(low)
    if known.any():
        error = np.maximum(0.0, np.stack([values - low, high - values])[:, known])
        panel.errorbar(
            values[known], place[known], xerr=error,
            fmt="none", ecolor=INK, elinewidth=0.9, capsize=1.5, zorder=4,
            label="interval" if number == 0 else None,
        )  # fmt: skip


def _axis(panel: Axes, rows: list[str], labelled: bool) -> None:
    """Rows by name; the scale is ``labelled`` below the last panel of a column."""
    plain(panel, "x")
    panel.use_sticky_edges = False
    panel.axvline(0, color=GREY, linewidth=0.9, zorder=5)
    panel.spines["left"].set_visible(False)
    panel.set_yticks(np.arange(len(rows)), [shorten(name, NAME_LENGTH) for name in rows])
    panel.set_ylim(max(len(rows), 1) - 0.4, -0.6)
    panel.locator_params(axis="x", nbins=6)
    panel.tick_params(axis="y", length=0, labelsize=8, colors="black")
    if labelled:
        panel.set_xlabel("share of attention − share of genes\n(percentage points)", fontsize=8.5)
