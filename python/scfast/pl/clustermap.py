"""How alike genes, or the tokens of a cell, are in one layer, with their tree."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scfast.pl._figure import COLOURS, GREY, colour_bar, finish, title
from scfast.pl._similarity import (
    NAMED,
    Of,
    frame,
    kept_maps,
    labels_of,
    layer_places,
    name_rows,
    scale_of,
    tree_of,
)

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

#: Most clusters that are tried, and inches of the heatmap: at least, and of each name.
MOST, SIDE, NAME = 12, 4.2, 0.105


def clustermap(
    adata: AnnData,
    *,
    key: str = "similarity",
    of: Of = "genes",
    layer: int = -1,
    method: str = "average",
    n_clusters: int | None = None,
    gene_symbols: str | None = None,
    limits: tuple[float, float] | None = None,
    cmap: str = "viridis",
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Cosine of the states of genes, or of a cell's tokens, after one layer, in the order of their tree.

    The tree is that of scipy's ``linkage`` on 1 - cosine; clusters of it are framed.

    Parameters
    ----------
    adata
        After :func:`scfast.tl.similarity` with ``genes`` or ``cell``.
    key
        Name of its results.
    of
        ``"genes"``: mean states. ``"cell"``: tokens of the one cell.
    layer
        After how many layers; 0 is the output of the embeddings, negative numbers count from the last one kept.
    method
        Of ``scipy.cluster.hierarchy.linkage``: ``"average"``, ``"complete"``, ``"single"``, ``"weighted"``.
    n_clusters
        Into how many clusters the tree is cut; 1: none is framed. Default: the number, up to 12, of the largest
        silhouette.
    gene_symbols
        Column of ``adata.var`` with names to show instead of the index.
    limits
        Ends of the colour scale. Default: the smallest and the largest value beside the diagonal.
    cmap
        Colour map of matplotlib.
    show
        Show the figure. Default: where ``save`` is not given and the backend is interactive.
    save
        File to write, such as ``"genes.png"``.

    Returns
    -------
    matplotlib.axes.Axes
        Those of the heatmap; the tree is in a panel of its own, ``ax.figure.axes[0]``.

    Raises
    ------
    KeyError
        When there are no such results, or there is no such layer.
    ValueError
        For a linkage or a number of clusters that there is not.

    Examples
    --------
    >>> import scfast
    >>> adata, model = scfast.datasets.toy()
    >>> markers = ["CD79A", "MS4A1", "LYZ", "CD14", "CD3D", "CD3E"]
    >>> scfast.tl.similarity(adata, model, genes=markers)
    >>> axes = scfast.pl.clustermap(adata, layer=1)
    """
    import matplotlib.pyplot as plt
    from scipy.cluster.hierarchy import leaves_list

    kept = kept_maps(adata, key, of)
    place = layer_places(kept, key, [layer])[0]
    similarity = np.asarray(kept["similarity"][place])
    n = len(similarity)
    if method not in ("average", "complete", "single", "weighted"):
        raise ValueError(f"method={method!r} is unknown; use 'average', 'complete', 'single' or 'weighted'")
    if n_clusters is not None and not 1 <= n_clusters <= n:
        raise ValueError(f"n_clusters={n_clusters} must lie between 1 and {n}, what is compared")
    tree = tree_of(similarity, method)
    order = leaves_list(tree)
    cluster, clear = _clusters(tree, similarity, n_clusters)

    side = max(SIDE, NAME * n) if n <= NAMED else 1.4 * SIDE
    figure, (left, panel) = plt.subplots(
        1, 2, figsize=(1.28 * side + 1.6, side + 1.1), width_ratios=[0.2, 1], layout="constrained",
    )  # fmt: skip
    figure.get_layout_engine().set(w_pad=0.02, wspace=0.0)  # type: ignore[call-arg, union-attr]
    low, high = limits or scale_of([similarity])
    image = panel.imshow(similarity[np.ix_(order, order)], vmin=low, vmax=high, cmap=cmap, aspect="auto")
    labels, what = labels_of(adata, kept, gene_symbols), "genes" if of == "genes" else "tokens"
    name_rows(panel, [labels[row] for row in order], what)
    panel.yaxis.tick_right()
    panel.yaxis.set_label_position("right")
    _draw_tree(left, tree, cluster, n)
    start = 0
    for size in np.diff([0, *(np.flatnonzero(np.diff(cluster[order])) + 1), n]):
        if cluster.max() > 0:
            frame(panel, start, int(size))
        start += int(size)

    label = "cosine of mean states" if of == "genes" else "cosine"
    colour_bar(image, [left, panel], label, shrink=0.5, location="right", aspect=22, extend="max")
    after = int(kept["layers"][place])
    heading = "Embeddings" if after == 0 else f"After layer {after}"
    facts = [f"{n:,} {what}" if of == "genes" else f"cell {kept['name']}, {n:,} tokens"]
    if cluster.max() > 0:
        facts.append(f"{cluster.max() + 1} clusters, silhouette {clear:.2f}")
    title(panel, heading, "  ·  ".join(facts))
    finish(panel, True, show, save)
    return panel


def _clusters(tree: np.ndarray, similarity: np.ndarray, wanted: int | None) -> tuple[np.ndarray, float]:
    """int64 [n]: cluster of each row, from 0 in any order, and the silhouette of the partition."""
    from scipy.cluster.hierarchy import fcluster

    from scfast.tl._blocks import silhouette

    distance = np.clip(1.0 - similarity.astype(np.float64), 0.0, None)
    np.fill_diagonal(distance, 0.0)
    best, clear = np.zeros(len(distance), dtype=np.int64), float("nan")
    counts = range(2, min(MOST, len(distance) - 1) + 1) if wanted is None else [wanted] * (wanted > 1)
    for count in counts:
        found = fcluster(tree, count, "maxclust") - 1
        value = silhouette(distance, found) if found.max() > 0 else float("nan")
        if not value <= clear:
            best, clear = found, value
    return best, clear


def _draw_tree(panel: Axes, tree: np.ndarray, cluster: np.ndarray, n: int) -> None:
    """The tree on its side, its root to the left, in line with the rows; branches in the colours of the clusters."""
    from matplotlib.collections import LineCollection
    from scipy.cluster.hierarchy import dendrogram

    drawn = dendrogram(tree, no_plot=True)
    height, row = np.asarray(drawn["dcoord"]), (np.asarray(drawn["icoord"]) - 5.0) / 10.0
    leaves = cluster[drawn["leaves"]]
    colours = []
    for ends in row:  # a branch within one cluster has its colour
        under = leaves[int(np.floor(ends.min())) : int(np.ceil(ends.max())) + 1]
        inside = cluster.max() > 0 and len(set(under)) == 1
        colours.append(COLOURS[under[0] % len(COLOURS)] if inside else GREY)
    lines = [np.column_stack(pair) for pair in zip(height, row, strict=True)]
    panel.add_collection(LineCollection(lines, colors=colours, linewidths=0.9))
    panel.set_xlim(height.max() * 1.02 or 1.0, 0)
    panel.set_ylim(n - 0.5, -0.5)
    panel.set_axis_off()
