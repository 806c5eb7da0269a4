"""What the plots share: colours, panels, plain axes, and the end of every figure."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure

#: Text and lines, from dark to light.
INK, GREY, RULE, GRID = "#22303C", "#66717C", "#B8C0C8", "#E4E7EB"
#: Several models or kinds, in this order: any two differ by 23 or more (CIE 1976), also without one kind of cones.
COLOURS = ("#2F6DA8", "#D9641E", "#46B293", "#593462", "#674E21", "#69AFC4")
#: Inches of panels side by side: on a page of eight inches their text keeps four fifths of its size.
MOST_WIDTH = 9.6
#: Panels side by side at most, and the share of its width that a panel keeps where another then fits.
MAX_COLUMNS, SQUEEZED = 3, 0.8
#: Inches of a colour bar at most, and of a letter of its label.
BAR_LENGTH, LABEL_LETTER = 4.0, 0.062
#: Panels that are drawn where no groups are named, and that a figure can hold.
MAX_PANELS, MOST_PANELS = 24, 100
#: A legend's entry in inches: its line, the space after it, and a letter of its name at 8 points.
LINE_WIDTH, GAP_WIDTH, LETTER_WIDTH = 0.33, 0.22, 0.059
#: Between two facts below a title.
BETWEEN = "  ·  "
#: A letter of a panel's title, and of the facts below it, in inches; what a panel keeps for the names of its rows.
TITLE_LETTER, FACTS_LETTER, ROW_NAMES = 0.092, 0.056, 0.7


def columns_for(n_panels: int, width: float) -> int:
    """How many panels of that width in inches stand side by side.

    Examples
    --------
    >>> [columns_for(n, 3.7) for n in (1, 2, 3, 4, 10)], columns_for(10, 4.6), columns_for(10, 20.0)
    ([1, 2, 3, 2, 3], 2, 1)
    """
    fitting = min(MAX_COLUMNS, max(1, int(MOST_WIDTH / (SQUEEZED * width))))
    return 2 if n_panels == 4 and fitting == 3 else min(fitting, n_panels)


def total_width(n_panels: int, width: float) -> float:
    """Inches of a figure of panels of that width."""
    n_columns = columns_for(n_panels, width)
    return min(width * n_columns, max(width, MOST_WIDTH))


def make_panels(n_panels: int, width: float, height: float) -> list[Axes]:
    """A new figure of panels of that size in inches, row by row; narrower where more then stand side by side.

    Raises
    ------
    ValueError
        For more panels than a figure can hold.
    """
    import matplotlib.pyplot as plt

    if n_panels > MOST_PANELS:
        raise ValueError(
            f"{n_panels} panels were asked for and a figure holds {MOST_PANELS}: name fewer groups, or draw several"
            " figures"
        )
    n_columns = columns_for(n_panels, width)
    n_rows = math.ceil(n_panels / n_columns)
    size = (total_width(n_panels, width), height * n_rows + 0.35)
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
    """A bold title, and what is to be known of it below, in one line or several; both as wide as the panel at most."""
    room = _room(panel)
    name = shorten(name, max(8, int(room / TITLE_LETTER)))
    width = max(20, int(room / FACTS_LETTER))
    facts = "\n".join(fold(line, width) for line in facts.splitlines())
    lines = facts.count("\n") + 1 if facts else 0
    panel.set_title(name, fontsize=10.5, loc="left", pad=6 + 10 * lines, fontweight="bold")
    if facts:
        below = panel.annotate(
            facts, (0, 1), (0, 3), xycoords="axes fraction", textcoords="offset points", fontsize=7.5, color=GREY,
            va="bottom",
        )  # fmt: skip
        below.set_in_layout(not name)  # the title keeps its place, and a long line makes no panel narrow


def fold(facts: str, width: int) -> str:
    """Facts with dots between them, in lines of ``width`` letters that end between two facts where they can.

    Examples
    --------
    >>> fold("68 cells  ·  rank correlation 0.95  ·  silhouette 0.3", 35).splitlines()
    ['68 cells  ·  rank correlation 0.95', 'silhouette 0.3']
    """
    lines: list[str] = []
    for fact in facts.split(BETWEEN):
        if lines and len(lines[-1] + BETWEEN + fact) <= width:
            lines[-1] += BETWEEN + fact
        else:
            lines += textwrap.wrap(fact, width) or [""]
    return "\n".join(lines)


def _room(panel: Axes) -> float:
    """Inches from a panel's left edge to the next panel, about: the layout is not known yet."""
    width = figure_of(panel).get_figwidth()
    spec = panel.get_subplotspec()
    if spec is None or spec.get_gridspec().ncols == 1:
        return width * (1.0 if spec else panel.get_position().width) - (ROW_NAMES if spec else 0.0)
    ratios = np.asarray(
        spec.get_gridspec().get_width_ratios() or np.ones(spec.get_gridspec().ncols), dtype=float
    )
    return float(width * ratios[spec.colspan.start] / ratios.sum()) - ROW_NAMES


def ink_on(colour: Sequence[float] | np.ndarray) -> str:
    """Black or white, whichever stands out more on an RGB colour in [0, 1]: 4.6 to 1 at least."""
    share = np.asarray(colour, dtype=float)[:3]
    light = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4) @ [
        0.2126,
        0.7152,
        0.0722,
    ]
    return "black" if (light + 0.05) ** 2 > 1.05 * 0.05 else "white"


def lean(panel: Axes) -> None:
    """Names below a panel at a slant, each ending at its tick, so that long ones do not run into each other."""
    panel.tick_params(axis="x", rotation=40)
    for label in panel.get_xticklabels():
        label.set(horizontalalignment="right", rotation_mode="anchor")


def shorten(name: str, n: int) -> str:
    """A name of ``n`` letters at most: its middle goes, because names of kin begin alike and differ at the end.

    Examples
    --------
    >>> shorten("CD8-positive, alpha-beta T cell", 20), shorten("NK", 20)
    ('CD8-positi…ta T cell', 'NK')
    """
    if len(name) <= n:
        return name
    return f"{name[: n // 2].rstrip()}…{name[len(name) - (n - 1 - n // 2) :].lstrip()}"


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


def colour_bar(
    image: ScalarMappable, axes: Axes | Sequence[Axes], label: str, *, shrink: float = 0.8, **options: Any
) -> None:
    """What the colours of ``axes`` mean: a bar beside them, and its label, which is no longer than they."""
    panels = list(axes) if isinstance(axes, Sequence) else [axes]
    figure = figure_of(panels[0])
    height = figure.get_figheight() if len(panels) > 1 else _height(panels[0])
    if height * shrink > BAR_LENGTH:
        options = {"aspect": 22, **options}
        shrink = BAR_LENGTH / height
    bar = figure.colorbar(image, ax=axes, shrink=shrink, **{"pad": 0.02, **options})
    letters = max(12, int(height / LABEL_LETTER))
    bar.set_label(
        "\n".join(textwrap.wrap(label, letters, break_long_words=False, break_on_hyphens=False)), fontsize=8.5
    )
    bar.ax.tick_params(labelsize=8, length=0)
    bar.outline.set_visible(False)  # type: ignore[operator]


def _height(panel: Axes) -> float:
    """Inches of a panel with its title and the names below it, about."""
    spec = panel.get_subplotspec()
    rows = 1 if spec is None else spec.get_gridspec().nrows
    return figure_of(panel).get_figheight() / rows


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
    """The groups that were asked for, all of them by default; see :func:`choose_panels`.

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


def choose_panels(
    known: Sequence[str],
    groups: Sequence[str] | str | None,
    cells: Sequence[float] | None = None,
    *,
    most: int = MAX_PANELS,
) -> list[str]:
    """The groups that were asked for; by default all of them, or the ``most`` largest where there are more.

    ``cells`` are the sizes of ``known``; without them the first are taken. :func:`say_left_out` says so in the figure.
    """
    if groups is not None or len(known) <= most:
        return choose(known, groups)
    order = range(len(known)) if cells is None else np.argsort(-np.asarray(cells, dtype=float), kind="stable")
    kept = set(list(order)[:most])
    return [name for place, name in enumerate(known) if place in kept]


def say_left_out(
    figure: Figure,
    shown: Sequence[str],
    known: Sequence[str],
    groups: object,
    *,
    largest: bool = True,
    what: str = "groups",
) -> None:
    """Below all panels: how many groups are shown of how many, where nobody named them."""
    if groups is None and len(shown) < len(known):
        others = "" if what == "networks" else f"; {what}= names others"
        which = f"The {len(shown)} largest" if largest else f"The first {len(shown)}"
        figure.supxlabel(
            f"{which} of {len(known):,} {what}{others}.", x=0.01, ha="left", fontsize=8, color=GREY
        )


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
