"""The table of key genes, as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scfast.pl._figure import (
    COLOURS,
    GREY,
    GRID,
    INK,
    choose_panels,
    figure_of,
    finish,
    ink_on,
    say_left_out,
    shorten,
    symbols,
)

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

BAR, NULL, MARKED = "#8DB4D9", COLOURS[1], "#B3261E"
#: Words about the orange mark are darker than it.
NOTE = "#B04A10"
#: Inches: height of a row, and widths of the parts of the table.
ROW, NAME, BARS, RANK, CELL, NUMBER, GAP = 0.24, 1.15, 1.9, 1.7, 0.44, 0.72, 0.22
#: Characters of a group's name that a heading shows.
HEADING = 24
#: Groups that have a column, where none are named.
MAX_GROUPS = 30


def key_genes(
    adata: AnnData,
    *,
    key: str = "key_genes",
    n_genes: int = 25,
    genes: Sequence[str] | None = None,
    groups: Sequence[str] | str | None = None,
    gene_symbols: str | None = None,
    cmap: str = "YlGnBu_r",
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes:
    """The most attended genes as a table: attention, rank and its spread, rank in each group, cells, detection.

    Bars are the scaled attention; an orange mark is that of the untrained model, where it was run. Dots are mean
    ranks with their standard deviations. Genes of the highlighted set are red.

    Parameters
    ----------
    adata
        After :func:`scfast.tl.key_genes`.
    key
        Name of its results.
    n_genes
        Genes from the top.
    genes
        These instead, as the table calls them; in the order of attention.
    groups
        Whose mean ranks are shown. Default: all.
    gene_symbols
        Column of ``adata.var`` with names to show instead of the index. Default: those the table has, if any.
    cmap
        Colour map of matplotlib for the ranks in groups.
    ax
        Draw into these axes.
    show
        Show the figure. Default: where ``ax`` and ``save`` are not given and the backend is interactive.
    save
        File to write, such as ``"key_genes.png"``.

    Returns
    -------
    matplotlib.axes.Axes
        One row down is one gene; one unit across is one inch of a figure that is made here.

    Raises
    ------
    KeyError
        When there are no such results, genes, groups or symbols.
    ValueError
        When there is nothing to show.

    Examples
    --------
    >>> import scfast
    >>> adata, model = scfast.datasets.toy()
    >>> scfast.tl.key_genes(adata, model, groupby="condition")
    >>> axes = scfast.pl.key_genes(adata, n_genes=20)
    """
    import matplotlib.pyplot as plt

    if key not in adata.uns or "correlations" not in adata.uns[key]:
        raise KeyError(
            f"adata.uns has no key genes named {key!r}: run scfast.tl.key_genes(..., key_added={key!r}) first"
        )
    table: pd.DataFrame = adata.uns[key]["table"]
    names = table["gene"].astype(str)
    if genes is not None:
        missing = [gene for gene in genes if gene not in set(names)]
        if missing:
            raise KeyError(
                f"genes {missing} are not in the results, which have {names.head(3).tolist()}, ..."
            )
    rows = table.head(n_genes) if genes is None else table[names.isin(list(genes)).to_numpy()]
    if rows.empty:
        raise ValueError(f"n_genes={n_genes} and genes={genes} choose no gene: there is nothing to show")
    labels = symbols(adata, gene_symbols)
    if gene_symbols is None and "symbol" in table:
        labels = dict(zip(names, table["symbol"].astype(str), strict=True))
    known = [name.removeprefix("rank_") for name in table if name.startswith("rank_") and name != "rank_sd"]
    shown = (
        choose_panels(known, groups, _sizes(adata, key, known), most=MAX_GROUPS) if known or groups else []
    )

    starts = _layout(len(shown))
    if ax is None:
        size = (starts["end"] + 0.2, ROW * (len(rows) + 1.6) + (1.35 if shown else 0.45))
        _, own = plt.subplots(figsize=size, layout="constrained")
        say_left_out(figure_of(own), shown, known, groups)
    panel = own if ax is None else ax
    place = np.arange(float(len(rows)))
    for line in place[1:] - 0.5:
        panel.plot([0, starts["end"]], [line, line], color=GRID, linewidth=0.6, zorder=0)
    for at, row in zip(place, rows.itertuples(index=False), strict=True):
        colour, weight = (MARKED, "bold") if row.highlight else ("black", "normal")
        panel.text(
            NAME, at, labels.get(str(row.gene), str(row.gene)), ha="right", va="center", fontsize=8.5, color=colour,
            fontweight=weight,
        )  # fmt: skip
    _bars(panel, place, rows, starts["bars"])
    furthest = float((table["rank"].head(n_genes) + table["rank_sd"].head(n_genes).fillna(0)).max())
    _ranks(
        panel,
        place,
        rows,
        starts["rank"],
        max(furthest, float((rows["rank"] + rows["rank_sd"].fillna(0)).max())),
    )
    if shown:
        _groups(
            panel,
            rows[[f"rank_{name}" for name in shown]],
            _titles(adata, key, shown),
            starts["groups"],
            cmap,
        )
    _numbers(panel, place, rows, starts)
    _frame(panel, len(rows), starts["end"], "highlight" in adata.uns[key], "null" in rows)
    finish(panel, ax is None, show, save)
    return panel


def _layout(n_groups: int) -> dict[str, float]:
    """Where each part of the table begins."""
    starts = {"bars": NAME + 0.08}
    starts["rank"] = starts["bars"] + BARS + 0.42 + GAP
    starts["groups"] = starts["rank"] + RANK + GAP
    starts["cells"] = starts["groups"] + CELL * n_groups - (GAP if n_groups else 2 * GAP)
    starts["detection"] = starts["cells"] + NUMBER
    starts["expression"] = starts["detection"] + NUMBER
    starts["end"] = starts["expression"] + NUMBER + 0.1
    return starts


def _heading(panel: Axes, x: float, text: str, **how: Any) -> None:
    style: dict[str, Any] = {"ha": "left", "va": "bottom", "fontsize": 8, "color": GREY}
    panel.text(x, -0.85, text, **(style | how))


def _bars(panel: Axes, place: np.ndarray, rows: pd.DataFrame, start: float) -> None:
    panel.barh(place, BARS * rows["attention"], left=start, height=0.7, color=BAR, zorder=2)
    if "null" in rows:
        at = start + BARS * rows["null"]
        panel.vlines(at, place - 0.36, place + 0.36, color=NULL, linewidth=2.0, zorder=3)
    for at, value in zip(place, rows["attention"], strict=True):
        panel.text(start + BARS + 0.4, at, f"{value:.2f}", ha="right", va="center", fontsize=8, color=INK)
    _heading(panel, start, "attention, scaled")


def _ranks(panel: Axes, place: np.ndarray, rows: pd.DataFrame, start: float, furthest: float) -> None:
    """Mean and standard deviation of the rank, on a scale from 1."""
    scale = RANK / furthest
    mean, spread = rows["rank"].to_numpy(), rows["rank_sd"].fillna(0).to_numpy()
    low = np.maximum(mean - spread, 0)
    panel.hlines(place, start, start + RANK, color=GRID, linewidth=3.0, zorder=1)
    panel.hlines(
        place, start + scale * low, start + scale * (mean + spread), color=GREY, linewidth=1.3, zorder=2
    )
    panel.scatter(start + scale * mean, place, s=20, color=INK, zorder=3)
    bottom = len(rows) - 0.35
    for value, where in ((1, "left"), (furthest, "right")):
        panel.text(
            start + scale * value * (value > 1),
            bottom,
            f"{value:.0f}",
            ha=where,
            va="top",
            fontsize=7,
            color=GREY,
        )
    _heading(panel, start, "rank, mean ± sd")


def _groups(panel: Axes, ranks: pd.DataFrame, names: list[str], start: float, cmap: str) -> None:
    """Mean ranks in groups as coloured cells with their numbers; nothing where no cell has the gene."""
    import matplotlib

    values = ranks.to_numpy(dtype=float)
    low, high = (np.nanmin(values), np.nanmax(values)) if np.isfinite(values).any() else (0.0, 1.0)
    scaled = (values - low) / (high - low if high > low else 1.0)
    colours = matplotlib.colormaps[cmap](0.12 + 0.8 * scaled)
    for (at, column), value in np.ndenumerate(values):
        if np.isnan(value):
            panel.text(
                start + CELL * (column + 0.5), at, "–", ha="center", va="center", fontsize=7.5, color=GREY
            )
            continue
        colour = colours[at, column]
        panel.barh(at, CELL - 0.03, left=start + CELL * column, height=0.88, color=colour, zorder=1)
        ink = ink_on(colour)
        panel.text(
            start + CELL * (column + 0.5) - 0.015,
            at,
            f"{value:.0f}",
            ha="center",
            va="center",
            fontsize=7.5,
            color=ink,
        )
    bottom = len(values) - 0.35
    middle = start + CELL * len(names) / 2
    panel.text(middle, bottom, "mean rank in each group", ha="center", va="top", fontsize=7, color=GREY)
    for column, name in enumerate(names):
        at = start + CELL * (column + 0.35)
        _heading(panel, at, shorten(name, HEADING), rotation=50, rotation_mode="anchor", fontsize=7.5)


def _titles(adata: AnnData, key: str, columns: list[str]) -> list[str]:
    """Names of groups as ``adata.obs`` has them: columns of a file have no slash."""
    groupby = adata.uns[key]["params"]["groupby"]
    names = [str(name) for name in adata.obs[groupby].dropna().unique()] if groupby in adata.obs else []
    found = {name.replace("/", "|"): name for name in names}
    return [found.get(column, column) for column in columns]


def _sizes(adata: AnnData, key: str, columns: list[str]) -> list[int] | None:
    """Cells of the groups, where their column is still in ``adata.obs``."""
    groupby = adata.uns[key]["params"]["groupby"]
    if groupby not in adata.obs:
        return None
    cells = adata.obs[groupby].astype(str).value_counts()
    return [int(cells.get(name, 0)) for name in _titles(adata, key, columns)]


def _numbers(panel: Axes, place: np.ndarray, rows: pd.DataFrame, starts: dict[str, float]) -> None:
    for name, text in (("cells", "{:,.0f}"), ("detection", "{:.0%}"), ("expression", "{:.2f}")):
        right = starts[name] + NUMBER
        for at, value in zip(place, rows[name], strict=True):
            panel.text(right, at, text.format(value), ha="right", va="center", fontsize=8, color=INK)
        _heading(panel, right, name, ha="right")


def _frame(panel: Axes, n_rows: int, width: float, highlighted: bool, null: bool) -> None:
    panel.plot([0, width], [-0.68, -0.68], color=INK, linewidth=0.9, zorder=3)
    panel.plot([0, width], [n_rows - 0.5, n_rows - 0.5], color=INK, linewidth=0.9, zorder=3)
    notes = [("orange: untrained model", NOTE)] * null + [("red: highlighted set", MARKED)] * highlighted
    for number, (note, colour) in enumerate(notes):
        panel.text(
            NAME + 0.08 + 1.45 * number, n_rows - 0.35, note, ha="left", va="top", fontsize=7, color=colour
        )
    panel.set_xlim(0, width)
    panel.set_ylim(n_rows + 0.4, -1.1)
    panel.axis("off")
