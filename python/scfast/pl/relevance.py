"""The genes that a prediction depends on, group by group."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scfast.pl._top_genes import Score, top_genes

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

SCORE = Score("relevance", 1.0, "relevance (mean over cells)")


def relevance(
    adata: AnnData,
    *,
    key: str | Sequence[str] = "relevance",
    groups: Sequence[str] | str | None = None,
    n_genes: int = 10,
    gene_symbols: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes | list[Axes]:
    """Genes of each group that a prediction depends on most, with standard errors.

    Parameters
    ----------
    adata
        After :func:`scfast.tl.relevance`.
    key
        Name of its results, or several names, such as those of several classes: all panels then have one scale.
    groups
        Which groups. Default: all.
    n_genes
        Genes per group.
    gene_symbols
        Column of ``adata.var`` with names to show instead of the index.
    ax
        Draw into these axes; for one group.
    show
        Show the figure. Default: where ``ax`` and ``save`` are not given and the backend is interactive.
    save
        File to write, such as ``"relevance.png"``.

    Returns
    -------
    matplotlib.axes.Axes or list of them
        One for one group, else a list in the order of the groups (of each key in turn).

    Raises
    ------
    KeyError
        When there are no such results, groups or symbols.
    ValueError
        When several groups should go into one ``ax``.

    Examples
    --------
    >>> import scfast
    >>> adata, model = scfast.datasets.toy()
    >>> scfast.tl.relevance(adata, model, "gene:LYZ", groupby="cell_type")
    >>> axes = scfast.pl.relevance(adata, groups=["B cell", "Monocyte"])
    >>> len(axes)
    2
    """
    return top_genes(adata, SCORE, key, groups, n_genes, gene_symbols, ax, show, save)
