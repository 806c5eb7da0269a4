"""Cosines between the attention maps of two models, as a heatmap of layers and heads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from scfast.pl._figure import (
    MAX_PANELS,
    choose_panels,
    colour_bar,
    figure_of,
    finish,
    make_panels,
    say_left_out,
    shorten,
    title,
)

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

CELL, MARGIN = 0.32, 1.1
#: Inches of the narrowest panel: its title needs them.
LEAST = 3.6
#: Letters of a title, beside which the scale of colours needs room.
LONGEST = 26


def attention_shift(
    adata: AnnData,
    *,
    keys: str | Sequence[str] = "attention_shift",
    groups: Sequence[str] | str | None = None,
    statistic: Literal["mean", "concatenated"] = "mean",
    limits: tuple[float, float] | None = None,
    cmap: str = "viridis",
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes | list[Axes]:
    """Heatmaps of cosines, layers x heads: a row of panels per comparison, a column per group, one scale for all.

    Parameters
    ----------
    adata
        After :func:`scfast.tl.attention_shift`.
    keys
        Name of its results, or several names: for example one fine-tuned model after another against the same base.
    groups
        Which groups. Default: all of the first results.
    statistic
        ``"mean"`` of the cells' cosines, or the cosine of the ``"concatenated"`` maps.
    limits
        Ends of the colour scale. Default: the smallest cosine shown, and 1.
    cmap
        Colour map of matplotlib.
    ax
        Draw into these axes; for one panel.
    show
        Show the figure. Default: where ``ax`` and ``save`` are not given and the backend is interactive.
    save
        File to write, such as ``"shift.png"``.

    Returns
    -------
    matplotlib.axes.Axes or list of them
        One for one panel, else a list, comparison by comparison.

    Raises
    ------
    KeyError
        When there are no such results or groups.
    ValueError
        When several panels should go into one ``ax``, or ``statistic`` is unknown.

    Examples
    --------
    >>> import scfast
    >>> adata, model = scfast.datasets.toy()
    >>> _, other = scfast.datasets.toy(seed=1)
    >>> scfast.tl.attention_shift(adata, model, other)
    >>> axes = scfast.pl.attention_shift(adata)
    """
    if statistic not in ("mean", "concatenated"):
        raise ValueError(f"statistic={statistic!r} is unknown; use 'mean' or 'concatenated'")
    names = [keys] if isinstance(keys, str) else list(keys)
    tables = {name: _table(adata, name) for name in names}
    if not tables:
        raise KeyError(
            "keys names no results: give one or more names of results of scfast.tl.attention_shift"
        )
    known = list(tables[names[0]]["group"].cat.categories)
    chosen = [groups] if isinstance(groups, str) else list(known if groups is None else groups)
    if groups is None:
        chosen = choose_panels(
            known, None, _cells(adata, names[0], known), most=max(1, MAX_PANELS // len(names))
        )
    panels = [
        (name, group, _matrix(tables[name], name, group, statistic)) for name in names for group in chosen
    ]
    if not panels:
        raise KeyError(f"groups=[] chooses nothing; there are {known}")
    if ax is not None and len(panels) > 1:
        raise ValueError(
            f"one ax takes one panel, and there are {len(panels)}: name one of keys and of groups"
        )
    low, high = limits or (min(float(np.nanmin(x)) for _, _, x in panels), 1.0)

    if ax is not None:
        axes = [ax]
    else:
        n_layers, n_heads = (max(x.shape[i] for _, _, x in panels) for i in (0, 1))
        axes = make_panels(len(panels), max(CELL * n_heads + MARGIN, LEAST), CELL * n_layers + MARGIN)
        say_left_out(figure_of(axes[0]), chosen, known, groups)
    for panel, (name, group, cosines) in zip(axes, panels, strict=True):
        image = panel.imshow(cosines, vmin=low, vmax=high, cmap=cmap, aspect="equal", interpolation="nearest")
        _decorate(panel, cosines.shape, [name] * (len(names) > 1) + [group] * (len(known) > 1))
    # panels keep to the left of their place: a title is wider than a few heads
    colour_bar(image, axes, "cosine of the maps", panchor=(0, 0.5))
    finish(axes[0], ax is None, show, save)
    return axes[0] if len(axes) == 1 else axes


def _table(adata: AnnData, key: str) -> pd.DataFrame:
    if key not in adata.uns or "cosine" not in adata.uns[key]:
        raise KeyError(
            f"adata.uns has no attention shift named {key!r}: run scfast.tl.attention_shift(..., key_added={key!r})"
            " first"
        )
    table: pd.DataFrame = adata.uns[key]["cosine"]
    return table


def _cells(adata: AnnData, key: str, known: list[str]) -> list[float]:
    """Sizes of the groups."""
    cells: pd.Series = adata.uns[key]["groups"]["cells"]
    return [float(cells[name]) for name in known]


def _matrix(table: pd.DataFrame, key: str, group: str, statistic: str) -> np.ndarray:
    """Cosines of one group, [layers, heads]."""
    rows = table[(table["group"] == group).to_numpy()]
    if rows.empty:
        known = list(table["group"].cat.categories)
        raise KeyError(f"group {group!r} is not in the results {key!r}, which have {known}")
    return rows.pivot(index="layer", columns="head", values=statistic).to_numpy()


def _decorate(panel: Axes, shape: tuple[int, ...], name: list[str]) -> None:
    for axis, n, label in ((panel.yaxis, shape[0], "layer"), (panel.xaxis, shape[1], "head")):
        axis.set_ticks(range(0, n, 1 if n <= 12 else 2))
        axis.set_label_text(label, fontsize=8.5)
    panel.tick_params(length=0, labelsize=8, colors="#555555")
    for side in panel.spines.values():
        side.set_visible(False)
    title(panel, shorten(" · ".join(name), LONGEST))
