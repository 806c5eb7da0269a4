"""Layer x head heatmaps of what each head weighs, for one model or several on one scale."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scfast.pl._figure import colour_bar, columns_for, finish

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

#: One hue from light to dark: order is seen without colour vision, and in print.
COLOURS = "Blues"
CELL_SIZE, MARGIN = 0.32, 1.1
#: What the numbers are called under a figure.
LABELS = {
    "weighted": "norm per query, $\\sum_{ij}P_{ij}|f(x_j)|/n$",
    "prob": "$|P|_F$",
    "mixed": "$|Px|_F$",
}
#: Ticks are thinned out beyond this many layers or heads.
MAX_TICKS = 13


def attention_norms(
    adata: AnnData,
    *,
    key: str | Sequence[str] | Mapping[str, str] = "attention_norms",
    quantity: str = "weighted",
    group: str | None = None,
    scale: str = "min-max",
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes | list[Axes]:
    """What each head of each layer weighs, as a heatmap of layers x heads.

    Parameters
    ----------
    adata
        After :func:`scfast.tl.attention_norms`.
    key
        Name of its results; several names, one panel each; or panel title -> name.
    quantity
        Which of its numbers: ``"weighted"``, ``"prob"`` or ``"mixed"``.
    group
        Which group of cells. Default: the mean of all groups, each weighing its cells.
    scale
        ``"min-max"``: from the smallest (0) to the largest (1) number of each panel (Falkenstein 2024); ``"shared"``:
        of all panels together, so that models can be compared; ``"none"``: the numbers themselves, one scale for all.
    ax
        Draw into these axes, one per panel.
    show
        Show the figure. Default: where ``ax`` and ``save`` are not given and the backend is interactive.
    save
        File to write, such as ``"heads.png"``.

    Returns
    -------
    matplotlib.axes.Axes or list of them
        One for one panel, else a list in the order of ``key``.

    Raises
    ------
    KeyError
        When there are no such results, numbers or groups.
    ValueError
        For another number of axes than panels, or an unknown scale.

    Examples
    --------
    >>> import scfast
    >>> adata, model = scfast.datasets.toy()
    >>> _, other = scfast.datasets.toy(seed=1)
    >>> scfast.tl.attention_norms(adata, model, key_added="norms_before")
    >>> scfast.tl.attention_norms(adata, other, key_added="norms_after")
    >>> panels = {"before": "norms_before", "after": "norms_after"}
    >>> axes = scfast.pl.attention_norms(adata, key=panels, scale="shared")
    """
    if scale not in ("min-max", "shared", "none"):
        raise ValueError(f"scale={scale!r} is unknown; use 'min-max', 'shared' or 'none'")
    names = {key: key} if isinstance(key, str) else key if isinstance(key, Mapping) else {k: k for k in key}
    maps = {title: _heads(adata, name, quantity, group) for title, name in names.items()}
    low = min((float(np.nanmin(values)) for values in maps.values()), default=0.0)
    high = max((float(np.nanmax(values)) for values in maps.values()), default=1.0)
    given_axes = None if ax is None else list(ax) if isinstance(ax, Sequence) else [ax]
    if given_axes is not None and len(given_axes) != len(maps):
        raise ValueError(f"ax has {len(given_axes)} axes for {len(maps)} panels: give one for each")
    axes = _grid(maps) if given_axes is None else given_axes
    for panel, (title, values) in zip(axes, maps.items(), strict=True):
        if scale != "none":
            ends = (float(np.nanmin(values)), float(np.nanmax(values))) if scale == "min-max" else (low, high)
            values = (values - ends[0]) / (ends[1] - ends[0] if ends[1] > ends[0] else 1.0)
        image = _panel(
            panel, values, title if len(maps) > 1 else group, (0, 1) if scale != "none" else (low, high)
        )
        if scale == "min-max" or panel is axes[-1]:
            name = LABELS.get(quantity, quantity)
            label = f"scaled {name}" if scale != "none" else name
            colour_bar(image, panel, label, shrink=1.0, fraction=0.046, pad=0.03)
    finish(axes[0], ax is None, show, save)
    return axes[0] if len(axes) == 1 else axes


def _heads(adata: AnnData, key: str, quantity: str, group: str | None) -> np.ndarray:
    """float64 [layers, heads]."""
    if key not in adata.uns or "heads" not in adata.uns[key]:
        raise KeyError(
            f"adata.uns has no numbers per head under {key!r}: run scfast.tl.attention_norms(..., key_added={key!r}) "
            "with heads= first"
        )
    table: pd.DataFrame = adata.uns[key]["heads"]
    if quantity not in table:
        there = [name for name in table.columns[3:] if not name.endswith("_se")]
        raise KeyError(f"quantity={quantity!r} is not in the results of {key!r}, which have {there}")
    groups: pd.DataFrame = adata.uns[key]["groups"]
    if group is not None and group not in groups.index:
        raise KeyError(f"group={group!r} is not in the results of {key!r}, which have {list(groups.index)}")
    cells = groups["cells"] if group is None else groups["cells"].loc[[group]]
    by_head = table.pivot(index=["layer", "head"], columns="group", values=quantity)[list(cells.index)]
    weights = (cells / cells.sum()).to_numpy()
    mean = np.nansum(by_head.to_numpy() * weights, axis=1)
    return mean.reshape(table["layer"].max() + 1, -1)


def _grid(maps: Mapping[str, np.ndarray]) -> list[Axes]:
    """Panels side by side; their widths follow the heads, so that squares are of one size."""
    import matplotlib.pyplot as plt

    heads = [values.shape[1] for values in maps.values()]
    n_columns = columns_for(len(maps), CELL_SIZE * max(heads) + 1.8 * MARGIN)
    n_rows = math.ceil(len(maps) / n_columns)
    widths = [max(heads[column::n_columns]) for column in range(n_columns)]
    tall = max(values.shape[0] for values in maps.values())
    size = (CELL_SIZE * sum(widths) + 1.8 * MARGIN * n_columns, (CELL_SIZE * tall + MARGIN) * n_rows)
    _, grid = plt.subplots(
        n_rows, n_columns, figsize=size, squeeze=False, layout="constrained", width_ratios=widths
    )
    for spare in grid.flat[len(maps) :]:
        spare.remove()
    return list(grid.flat[: len(maps)])


def _panel(panel: Axes, values: np.ndarray, title: str | None, ends: tuple[float, float]):  # type: ignore[no-untyped-def]
    image = panel.imshow(values, cmap=COLOURS, vmin=ends[0], vmax=ends[1], aspect="equal")
    for axis, size in ((panel.yaxis, values.shape[0]), (panel.xaxis, values.shape[1])):
        axis.set_ticks(range(0, size, math.ceil(size / MAX_TICKS)))
    panel.tick_params(length=0, labelsize=8, colors="#555555")
    panel.set_xlabel("head", fontsize=8.5)
    panel.set_ylabel("layer", fontsize=8.5)
    for side in panel.spines.values():
        side.set_visible(False)
    if title:
        panel.set_title(title, fontsize=10.5, loc="left", fontweight="bold")
    return image
