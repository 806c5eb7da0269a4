"""How alike genes, or the tokens of a cell, are from layer to layer, as heatmaps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scfast.pl._figure import colour_bar, finish, title
from scfast.pl._similarity import NAMED, Of, kept_maps, labels_of, layer_places, name_rows, scale_of, tree_of

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

#: Inches of a panel without names, and of each name.
SIDE, NAME = 2.6, 0.1


def similarity_heatmap(
    adata: AnnData,
    *,
    key: str | Sequence[str] = "similarity",
    of: Of = "genes",
    layers: Sequence[int] | int | None = None,
    sort: bool = True,
    gene_symbols: str | None = None,
    limits: tuple[float, float] | None = None,
    cmap: str = "viridis",
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes | list[Axes]:
    """Cosine of the states of genes, or of a cell's tokens: a column per layer, a row per model, on one scale.

    Parameters
    ----------
    adata
        After :func:`scfast.tl.similarity` with ``genes`` or ``cell``.
    key
        Name of its results; several for several models.
    of
        ``"genes"``: mean states. ``"cell"``: tokens of the one cell.
    layers
        After how many layers; 0 is the output of the embeddings, negative numbers count from the last one that was
        kept. Default: the first, the middle and the last.
    sort
        Put what is alike side by side: by average linkage in the last panel of the first model, the same order in all.
        Otherwise genes are in the order of ``adata.var_names``, tokens in that of the cell.
    gene_symbols
        Column of ``adata.var`` with names to show instead of the index.
    limits
        Ends of the colour scale. Default: the smallest and the largest value beside the diagonal.
    cmap
        Colour map of matplotlib.
    ax
        Draw into these axes; for one panel.
    show
        Show the figure. Default: where ``ax`` and ``save`` are not given and the backend is interactive.
    save
        File to write, such as ``"genes.png"``.

    Returns
    -------
    matplotlib.axes.Axes or list of them
        One for one panel, else a list, model by model.

    Raises
    ------
    KeyError
        When there are no such results or layers.
    ValueError
        When models have other genes, or several panels should go into one ``ax``.

    Examples
    --------
    >>> import scfast
    >>> adata, model = scfast.datasets.toy()
    >>> scfast.tl.similarity(adata, model, genes=["CD3D", "CD3E", "LYZ", "CD14"])
    >>> axes = scfast.pl.similarity_heatmap(adata)
    """
    import matplotlib.pyplot as plt
    from scipy.cluster.hierarchy import leaves_list

    keys = [key] if isinstance(key, str) else list(key)
    kept = {name: kept_maps(adata, name, of) for name in keys}
    first = kept[keys[0]]
    for name in keys[1:]:
        if not np.array_equal(kept[name]["names"], first["names"]):
            raise ValueError(
                f"{keys[0]!r} and {name!r} compare other {'genes' if of == 'genes' else 'tokens'}: draw them apart, or"
                " run scfast.tl.similarity with the same genes="
            )
    n_kept = len(first["layers"])
    every = [first["layers"][place] for place in sorted({0, n_kept // 2, n_kept - 1})]
    chosen = [int(x) for x in (every if layers is None else [layers] if isinstance(layers, int) else layers)]
    places = {name: layer_places(kept[name], name, chosen) for name in keys}
    if ax is not None and len(keys) * len(chosen) > 1:
        raise ValueError(
            f"one ax takes one map, and there are {len(keys) * len(chosen)}: name one key and layer"
        )
    shown = {name: [kept[name]["similarity"][place] for place in places[name]] for name in keys}
    order = np.arange(len(first["names"]))
    if sort:
        order = leaves_list(tree_of(shown[keys[0]][-1], "average"))
    low, high = limits or scale_of(each for maps in shown.values() for each in maps)

    labels, what = labels_of(adata, first, gene_symbols), "genes" if of == "genes" else "tokens"
    if ax is not None:
        axes = [ax]
    else:
        side = max(SIDE, NAME * len(order)) if len(order) <= NAMED else 1.3 * SIDE
        size = ((side + 0.1) * len(chosen) + 1.4, (side + 0.35) * len(keys) + 0.7)
        _, grid = plt.subplots(len(keys), len(chosen), figsize=size, squeeze=False, layout="constrained")
        axes = list(grid.flat)
    numbers = [(name, place) for name in keys for place in range(len(chosen))]
    for panel, (name, place) in zip(axes, numbers, strict=True):
        image = panel.imshow(shown[name][place][np.ix_(order, order)], vmin=low, vmax=high, cmap=cmap)
        names = [labels[row] for row in order]
        name_rows(panel, names, what, x=name == keys[-1], y=place == 0)
        layer = int(kept[name]["layers"][places[name][place]])
        heading = "embeddings" if layer == 0 else f"layer {layer}"
        title(panel, f"{name}: {heading}" if len(keys) > 1 else heading)
    label = "cosine of mean states" if of == "genes" else f"cosine, cell {first['name']}"
    colour_bar(image, axes, label, shrink=0.7, aspect=22, extend="max")
    finish(axes[0], ax is None, show, save)
    return axes[0] if len(axes) == 1 else axes
