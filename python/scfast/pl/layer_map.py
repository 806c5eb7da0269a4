"""How alike the layers of a model are, as a map."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scfast.pl._figure import (
    MAX_PANELS,
    choose_panels,
    colour_bar,
    figure_of,
    finish,
    ink_on,
    make_panels,
    say_left_out,
    title,
)
from scfast.pl._similarity import frame

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.image import AxesImage

PANEL_SIZE = 3.3
#: Numbers are written into maps of so many states.
MAX_WRITTEN = 7


def layer_map(
    adata: AnnData,
    *,
    key: str | Sequence[str] = "similarity",
    groups: Sequence[str] | str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes | list[Axes]:
    """Cosine between layers of the readout vector: a panel per model and group, on one scale; blocks are framed.

    In small maps the numbers are written.

    Parameters
    ----------
    adata
        After :func:`scfast.tl.similarity`.
    key
        Name of its results; several for several models.
    groups
        Which groups. Default: all.
    ax
        Draw into these axes; for one panel.
    show
        Show the figure. Default: where ``ax`` and ``save`` are not given and the backend is interactive.
    save
        File to write, such as ``"layers.png"``.

    Returns
    -------
    matplotlib.axes.Axes or list of them
        One for one panel, else a list, model by model.

    Raises
    ------
    KeyError
        When there are no such results or groups.
    ValueError
        When several panels should go into one ``ax``.

    Examples
    --------
    >>> import scfast
    >>> adata, model = scfast.datasets.toy()
    >>> scfast.tl.similarity(adata, model)
    >>> scfast.tl.similarity(adata, model.untrained(), key_added="untrained")
    >>> axes = scfast.pl.layer_map(adata, key=["similarity", "untrained"])
    """
    keys = [key] if isinstance(key, str) else list(key)
    for name in keys:
        if name not in adata.uns or "map" not in adata.uns[name]:
            raise KeyError(
                f"adata.uns has no similarities named {name!r}: run scfast.tl.similarity(..., key_added={name!r}) first"
            )
    known = {name: adata.uns[name]["groups"] for name in keys}
    most = max(1, MAX_PANELS // max(1, len(keys)))
    chosen = {
        name: choose_panels(list(about.index), groups, about["cells"], most=most)
        for name, about in known.items()
    }
    panels = [(name, group) for name in keys for group in chosen[name]]
    if ax is not None and len(panels) > 1:
        raise ValueError(f"one ax takes one map, and there are {len(panels)}: name one key and group")
    maps = []
    for name, group in panels:
        place = list(adata.uns[name]["groups"].index).index(group)
        maps.append(np.asarray(adata.uns[name]["map"])[place])
    lowest = min(0.99, *(float(np.nanmin(each)) for each in maps if np.isfinite(each).any()), 0.99)

    axes = [ax] if ax is not None else make_panels(len(panels), PANEL_SIZE, PANEL_SIZE)
    for panel, (name, group), values in zip(axes, panels, maps, strict=True):
        image = panel.imshow(values, vmin=lowest, vmax=1.0, cmap="viridis", origin="lower")
        _numbers(panel, values, image)
        table = adata.uns[name]["table"]
        _frames(panel, table.loc[(table["group"] == group).to_numpy(), "block"].to_numpy())
        about = adata.uns[name]["groups"].loc[group]
        heading = group if len(keys) == 1 else f"{name}: {group}" if group != "all" else name
        clear = f"  ·  silhouette {about['silhouette']:.2f}" if np.isfinite(about["silhouette"]) else ""
        title(panel, heading, f"{int(about['cells']):,} cells  ·  {int(about['blocks'])} blocks{clear}")
        panel.set_xlabel("layer (0: embeddings)", fontsize=8.5)
        panel.set_ylabel("layer", fontsize=8.5)
        panel.tick_params(labelsize=8, colors="#555555", length=0)
        for side in panel.spines.values():
            side.set_visible(False)
        panel.locator_params(integer=True, nbins=8)
    colour_bar(image, axes, "mean cosine")
    if ax is None:
        say_left_out(figure_of(axes[0]), chosen[keys[0]], list(known[keys[0]].index), groups)
    finish(axes[0], ax is None, show, save)
    return axes[0] if len(axes) == 1 else axes


def _numbers(panel: Axes, values: np.ndarray, image: AxesImage) -> None:
    """The cosines themselves, black or white."""
    if len(values) > MAX_WRITTEN:
        return
    for (row, column), value in np.ndenumerate(values):
        colour = ink_on(image.cmap(image.norm(value)))
        panel.text(column, row, f"{value:.3f}", ha="center", va="center", fontsize=7.5, color=colour)


def _frames(panel: Axes, of_layer: np.ndarray) -> None:
    """A frame around each block."""
    for block in np.unique(of_layer[of_layer >= 0]):
        there = np.flatnonzero(of_layer == block)
        frame(panel, int(there[0]), len(there))
