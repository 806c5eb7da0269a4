"""What chosen genes read from other genes, as heatmaps, group by group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scfast.pl._figure import RULE, choose_panels, colour_bar, figure_of, finish, say_left_out, symbols, title

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

CELL, MARGIN = 0.24, 1.3
#: Inches of a figure of which no groups were named.
MAX_HEIGHT = 40


def rollout_matrix(
    adata: AnnData,
    *,
    key: str = "rollout_matrix",
    groups: Sequence[str] | str | None = None,
    genes: Sequence[str] | str | None = None,
    sources: Sequence[str] | str | None = None,
    n_sources: int = 30,
    gene_symbols: str | None = None,
    limits: tuple[float, float] | None = None,
    cmap: str = "viridis",
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes | list[Axes]:
    """Heatmaps of rows of the rollout matrix: targets x sources, a panel per group, one scale for all.

    What a gene reads from itself, which the residual stream makes large, is left grey, as are pairs of genes that no
    cell has.

    Parameters
    ----------
    adata
        After :func:`scfast.tl.rollout_matrix`.
    key
        Name of its results.
    groups
        Which groups. Default: all.
    genes
        Which targets, by their names in ``adata.var_names``. Default: all.
    sources
        Which sources, in this order. Default: the ``n_sources`` from which a target that is shown reads most, among
        those of the table of results.
    n_sources
        How many of them.
    gene_symbols
        Column of ``adata.var`` with names to show instead of the index.
    limits
        Ends of the colour scale, in percent. Default: 0, and the largest value shown.
    cmap
        Colour map of matplotlib.
    ax
        Draw into these axes; for one group.
    show
        Show the figure. Default: where ``ax`` and ``save`` are not given and the backend is interactive.
    save
        File to write, such as ``"rollout_matrix.png"``.

    Returns
    -------
    matplotlib.axes.Axes or list of them
        One for one group, else a list in the order of the groups.

    Raises
    ------
    KeyError
        When there are no such results, groups, genes or symbols.
    ValueError
        When several groups should go into one ``ax``.

    Examples
    --------
    >>> import scfast
    >>> adata, model = scfast.datasets.toy()
    >>> scfast.tl.rollout_matrix(adata, model, ["LYZ", "CD3D"], groupby="cell_type")
    >>> axes = scfast.pl.rollout_matrix(adata, groups="Monocyte")
    """
    import matplotlib.pyplot as plt

    if key not in adata.uns or "target_names" not in adata.uns[key]:
        raise KeyError(
            f"adata.uns has no rollout matrix named {key!r}: run scfast.tl.rollout_matrix(..., key_added={key!r}) first"
        )
    results: Mapping[str, Any] = adata.uns[key]
    n_targets = len(results["target_names"]) if genes is None else 1 if isinstance(genes, str) else len(genes)
    known = [str(name) for name in results["group_names"]]
    names = choose_panels(known, groups, most=max(1, int(MAX_HEIGHT / (CELL * n_targets + MARGIN))))
    if ax is not None and len(names) > 1:
        raise ValueError(f"one ax takes one group, and there are {len(names)}: name one with groups=")
    rows = _places(results["target_names"], genes, "genes")
    columns = (
        _largest(results, names, rows, n_sources)
        if sources is None
        else _places(results["source_names"], sources, "sources")
    )
    labels = symbols(adata, gene_symbols)
    targets, read = results["target_names"][rows], results["source_names"][columns]
    shown = 100 * results["mean"][[known.index(name) for name in names]][:, rows][:, :, columns]
    shown[:, targets[:, None] == read] = np.nan
    low, high = limits or (0.0, float(np.nanmax(shown)) if np.isfinite(shown).any() else 1.0)

    if ax is not None:
        axes = [ax]
    else:
        size = (CELL * len(read) + MARGIN + 0.8, (CELL * len(targets) + MARGIN) * len(names))
        _, grid = plt.subplots(len(names), 1, figsize=size, squeeze=False, layout="constrained")
        axes = list(grid.flat)
        say_left_out(figure_of(axes[0]), names, known, groups, largest=False)
    for panel, name, values in zip(axes, names, shown, strict=True):
        image = panel.imshow(values, vmin=low, vmax=high, cmap=cmap, aspect="equal", interpolation="nearest")
        panel.set_facecolor(RULE)
        for axis, genes_there in ((panel.xaxis, read), (panel.yaxis, targets)):
            axis.set_ticks(range(len(genes_there)), [labels.get(gene, gene) for gene in genes_there])
        panel.tick_params(length=0, labelsize=7.5, colors="#555555")
        panel.tick_params(axis="x", rotation=90)
        for side in panel.spines.values():
            side.set_visible(False)
        title(panel, name if len(known) > 1 else "")
    colour_bar(image, axes, "share of what a gene reads (%)", anchor=(0.0, 1.0))
    finish(axes[0], ax is None, show, save)
    return axes[0] if len(axes) == 1 else axes


def _places(known: np.ndarray, wanted: Sequence[str] | str | None, argument: str) -> np.ndarray:
    """int64 [n]: where the wanted genes stand among the ``known``; all of them by default."""
    if wanted is None:
        return np.arange(len(known))
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    place = {str(gene): number for number, gene in enumerate(known)}
    missing = [name for name in names if name not in place]
    if missing or not names:
        raise KeyError(f"{argument}: {missing} are not in the results, which have {list(place)[:3]}, ...")
    return np.array([place[name] for name in names])


def _largest(results: Mapping[str, Any], groups: Sequence[str], rows: np.ndarray, n: int) -> np.ndarray:
    """int64: places of the sources with the largest means in the table, of these groups and targets."""
    table = results["table"]
    chosen = table["group"].isin(groups) & table["target"].isin(results["target_names"][rows])
    largest = table[chosen].groupby("source", observed=True)["mean"].max()
    best = largest.sort_values(ascending=False, kind="stable").head(n).index.astype(str)
    if not len(best):
        raise KeyError(f"the table of results has no row of the groups {list(groups)} and these genes")
    return _places(results["source_names"], list(best), "sources")
