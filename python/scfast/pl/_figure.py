"""What the plots share: colours, panels, plain axes, and the end of every figure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Text and lines, from dark to light.
INK, GREY, RULE, GRID = "#22303C", "#66717C", "#B8C0C8", "#E4E7EB"
#: Several models or kinds, in this order: distinct to colour-blind eyes, and in print.
COLOURS = ("#2F6DA8", "#D9641E", "#3C8D5A", "#8A5AA8", "#B8860B", "#4FA3B5")
MAX_COLUMNS = 4
#: A legend's entry in inches: its line, the space after it, and a letter of its name at 8 points.
LINE_WIDTH, GAP_WIDTH, LETTER_WIDTH = 0.33, 0.22, 0.059


def columns_for(n_panels: int) -> int:
    """How many panels stand side by side."""
    return 3 if n_panels in (5, 6, 9) else min(MAX_COLUMNS, n_panels)


def make_panels(n_panels: int, width: float, height: float) -> list[Axes]:
    """A new figure of panels of that size in inches, row by row."""
    import matplotlib.pyplot as plt

    n_columns = columns_for(n_panels)
    n_rows = math.ceil(n_panels / n_columns)
    size = (width * n_columns, height * n_rows + 0.35)
    _, grid = plt.subplots(n_rows, n_columns, figsize=size, squeeze=False, layout="constrained")
    for spare in grid.flat[n_panels:]:
        spare.remove()
    return list(grid.flat[:n_panels])


def figure_of(panel: Axes) -> Figure:
    """The figure that a panel belongs to."""
    figure = panel.get_figure(root=True)
    assert figure is not None
    return figure


def plain(panel: Axes, grid: str = "both") -> None:
    """No frame but the axes, a light grid behind, small ticks."""
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        panel.spines[side].set_color(RULE)
    panel.tick_params(labelsize=8, colors="#555555", length=3, width=0.7)
    panel.grid(axis=grid, color=GRID, linewidth=0.7, zorder=0)  # type: ignore[arg-type]
    panel.set_axisbelow(True)


def title(panel: Axes, name: str, facts: str = "") -> None:
    """A bold title, and what is to be known of it below, in one line or several."""
    lines = facts.count("\n") + 1 if facts else 0
    panel.set_title(name, fontsize=10.5, loc="left", pad=6 + 10 * lines, fontweight="bold")
    if facts:
        below = panel.annotate(
            facts, (0, 1), (0, 3), xycoords="axes fraction", textcoords="offset points", fontsize=7.5, color=GREY,
            va="bottom",
        )  # fmt: skip
        below.set_in_layout(not name)  # the title keeps its place, and a long line makes no panel narrow


def legend(figure: Figure, panels: Sequence[Axes], names: Sequence[str] | None = None) -> None:
    """One legend above all panels, as wide as they are; ``names`` in that order, default: as drawn."""
    found: dict[str, Any] = {}
    for panel in panels:
        for handle, name in zip(*panel.get_legend_handles_labels(), strict=True):
            found.setdefault(name, handle)
    shown = [name for name in (found if names is None else names) if name in found]
    if shown:
        entry = LINE_WIDTH + GAP_WIDTH + LETTER_WIDTH * max(map(len, shown))
        fitting = max(1, int((figure.get_figwidth() + GAP_WIDTH) / entry))
        figure.legend(
            [found[name] for name in shown], shown,
            loc="outside upper right", ncols=min(len(shown), 5, fitting), frameon=False, fontsize=8,
        )  # fmt: skip


def finish(panel: Axes, own: bool, show: bool | None, save: str | Path | None) -> None:
    """Write and show the figure, where that was asked for; ``own``: it was made here.

    One that was only to be written is closed, so that many can be: its axes can still be drawn on and written again.
    """
    import matplotlib.pyplot as plt

    if save is not None:
        figure_of(panel).savefig(save, dpi=200, bbox_inches="tight")
    if show or (show is None and own and save is None and plt.isinteractive()):
        plt.show()
    elif own and save is not None:
        plt.close(figure_of(panel))


def choose(known: Sequence[str], groups: Sequence[str] | str | None) -> list[str]:
    """The groups that were asked for, all of them by default.

    Raises
    ------
    KeyError
        When one is not in the results, or none is asked for.
    """
    chosen = list(known) if groups is None else [groups] if isinstance(groups, str) else list(groups)
    missing = [name for name in chosen if name not in known]
    if missing or not chosen:
        raise KeyError(f"groups {missing} are not in the results, which have {list(known)}")
    return chosen


def symbols(adata: AnnData, gene_symbols: str | None) -> dict[str, str]:
    """Names to show instead of the index; empty without a column.

    Raises
    ------
    KeyError
        When there is no such column.
    """
    if gene_symbols is None:
        return {}
    if gene_symbols not in adata.var:
        raise KeyError(
            f"gene_symbols={gene_symbols!r} is not in adata.var, which has {list(adata.var.columns)}"
        )
    return dict(zip(adata.var_names.astype(str), adata.var[gene_symbols].astype(str), strict=True))
