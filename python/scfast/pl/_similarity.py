"""What the plots of similarity share: the maps that were kept, names of their rows, and an order for these."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from scfast.pl._figure import INK, symbols

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

Of = Literal["genes", "cell"]
#: Up to so many rows have their names beside them, and are put in the best order of their tree's leaves.
NAMED, ORDERED = 80, 400


def kept_maps(adata: AnnData, key: str, of: Of) -> Mapping[str, Any]:
    """``uns[key][of]`` of :func:`scfast.tl.similarity`, with maps of similarities.

    Raises
    ------
    KeyError
        When they are not there.
    ValueError
        For an ``of`` that there is not.
    """
    if of not in ("genes", "cell"):
        raise ValueError(f"of={of!r} is unknown; use 'genes' or 'cell'")
    if "similarity" not in adata.uns.get(key, {}).get(of, {}):
        what = "cell=..." if of == "cell" else "genes=[...]"
        raise KeyError(
            f"adata.uns has no map of {'tokens' if of == 'cell' else 'genes'} named {key!r}: run scfast.tl.similarity("
            f"..., {what}, key_added={key!r}) first"
        )
    return adata.uns[key][of]


def layer_places(kept: Mapping[str, Any], key: str, layers: Sequence[int]) -> list[int]:
    """Where layers, from 0, stand among those that were kept; negative numbers count from the last of them."""
    known = [int(layer) for layer in kept["layers"]]
    wanted = [known[layer] if -len(known) <= layer < 0 else layer for layer in layers]
    missing = [layer for layer in wanted if layer not in known]
    if missing or not wanted:
        raise KeyError(f"layers {missing} are not in the results {key!r}, which have {known}")
    return [known.index(layer) for layer in wanted]


def tree_of(similarity: np.ndarray, method: str) -> np.ndarray:
    """Linkage of scipy, [n - 1, 4], of distances 1 - similarity."""
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    distance = np.clip(1.0 - similarity.astype(np.float64), 0.0, None)
    np.fill_diagonal(distance, 0.0)
    tree: np.ndarray = linkage(
        squareform(distance, checks=False), method, optimal_ordering=len(distance) <= ORDERED
    )
    return tree


def labels_of(adata: AnnData, kept: Mapping[str, Any], gene_symbols: str | None) -> list[str]:
    """Names of the rows, symbols of genes where there is a column of them."""
    shown = symbols(adata, gene_symbols)
    return [shown.get(str(name), str(name)) for name in kept["names"]]


def scale_of(maps: Iterable[np.ndarray]) -> tuple[float, float]:
    """The smallest and the largest similarity beside the diagonals, which are 1, or 0 for states of 0."""
    beside = [each[~np.eye(len(each), dtype=bool)] for each in maps]
    return min(float(x.min()) for x in beside), max(float(x.max()) for x in beside)


def name_rows(panel: Axes, labels: Sequence[str], what: str, *, x: bool = True, y: bool = True) -> None:
    """Names beside the rows, where there is room; else how many they are."""
    n = len(labels)
    many = n > NAMED
    size = max(6.0, min(7.5, 330 / n))
    for axis, named in ((panel.xaxis, x), (panel.yaxis, y)):
        axis.set_ticks([] if many or not named else range(n), [] if many or not named else list(labels))
        if many and named:
            axis.set_label_text(f"{n:,} {what}", fontsize=8.5)
    panel.tick_params(length=0, labelsize=size, colors="#555555", pad=2)
    panel.tick_params(axis="x", rotation=90)
    for side in panel.spines.values():
        side.set_visible(False)


def frame(panel: Axes, first: int, n: int) -> None:
    """A frame around ``n`` neighbouring rows and columns."""
    from matplotlib.patches import Rectangle

    for colour, width in (("white", 2.6), (INK, 1.2)):
        panel.add_patch(
            Rectangle(
                (first - 0.5, first - 0.5), n, n, fill=False, edgecolor=colour, linewidth=width, clip_on=False
            )
        )
