"""What a gene network is of: genes, layers and heads, groups of cells and their blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from scfast.models.base import AttentionSource
from scfast.run import Counts, TokenSurvey
from scfast.tl._gene_states import cells_with_gene
from scfast.tl._inputs import Groups
from scfast.tl._jackknife import blocks_of
from scfast.tl._networks import POOLED
from scfast.tl._several import gene_names
from scfast.tl._tokens import token_blocks

if TYPE_CHECKING:
    from anndata import AnnData


def layer_weights(
    source: AttentionSource,
    layers: Sequence[int] | None,
    heads: Sequence[int] | None,
    weights: np.ndarray | None,
) -> np.ndarray:
    """float64 [N, H] with sum 1: even over the chosen layers and heads, or as given.

    Raises
    ------
    ValueError
        When layers or heads do not exist, or weights have another shape, are negative or all zero.
    """
    shape = (source.n_layers, source.n_heads)
    if weights is not None:
        if layers is not None or heads is not None:
            raise ValueError("give weights=, or layers= and heads=, not both")
        given = np.asarray(weights, dtype=np.float64)
        if given.shape != shape or not np.isfinite(given).all() or (given < 0).any() or not given.any():
            raise ValueError(
                f"weights have the shape {list(given.shape)}; expected {list(shape)}, layers x heads of {source.name},"
                " none negative, not all 0"
            )
        return given / given.sum()
    chosen = np.zeros(shape)
    places = []
    for name, numbers, n in (("layers", layers, shape[0]), ("heads", heads, shape[1])):
        wanted = list(range(n)) if numbers is None else list(numbers)
        if not wanted or any(not -n <= number < n for number in wanted):
            raise ValueError(f"{name}={wanted} do not all exist: {source.name} has {name} 0 to {n - 1}")
        places.append([number % n for number in wanted])
    chosen[np.ix_(*places)] = 1
    return np.asarray(chosen / chosen.sum())


def choose_columns(
    adata: AnnData,
    source: AttentionSource,
    counts: Counts,
    found: TokenSurvey,
    genes: Sequence[str] | None,
    sources: Sequence[str] | None,
    gene_symbols: str | None,
    min_cells: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Columns of the genes of the network, and of those that are read from, as far as enough cells have them.

    Raises
    ------
    ValueError
        When names of genes are not unique, fewer than two genes are left, or no source.
    KeyError
        When none of the names that a user gives is there.
    """
    if not adata.var_names.is_unique:
        raise ValueError(
            "adata.var_names are not unique, so genes cannot be told apart: call adata.var_names_make_unique()"
        )
    names = gene_names(adata, gene_symbols)
    cells = np.zeros(adata.n_vars, dtype=np.int64)
    if found.tokens is None:
        for _, tokens in token_blocks(source, counts, np.arange(adata.n_obs)):
            cells += cells_with_gene(tokens, adata.n_vars)
    else:
        cells += cells_with_gene(found.tokens, adata.n_vars)
    often = cells >= max(min_cells, 1)
    columns = []
    for argument, wanted in (("genes", genes), ("sources", sources)):
        named = np.ones(adata.n_vars, dtype=bool) if wanted is None else np.isin(names, list(wanted))
        if not named.any():
            raise KeyError(
                f"{argument}: none of {list(wanted or [])[:3]}, ... is among the names {names[:3].tolist()}, ...; name"
                " the column that holds such names with gene_symbols="
            )
        columns.append(named & often)
    kept, read = np.flatnonzero(columns[0]), np.flatnonzero(columns[0] & columns[1])
    if sources is not None:  # a regulator belongs to the network, whether or not it is among the genes
        kept, read = np.flatnonzero(columns[0] | columns[1]), np.flatnonzero(columns[1])
    if len(kept) < 2 or not len(read):
        raise ValueError(
            f"{len(kept)} genes and {len(read)} sources have a token in min_cells={min_cells} cells or more, and a"
            " network needs two genes and a source: name others, or lower min_cells="
        )
    return kept, read


def blocks_of_cells(
    groups: Groups,
    rows: np.ndarray,
    replicates: np.ndarray | None,
    n_blocks: int,
    seed: int,
    groupby: str | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Group and block of every cell, int64 [cells], -1 for cells that are not run.

    Raises
    ------
    ValueError
        When a group has no cell with genes, or is called as the network of all cells.
    """
    n = len(groups.strata.of_row)
    group, block = np.full((2, n), -1, dtype=np.int64)
    group[rows] = groups.strata.of_row[rows]
    empty = [name for number, name in enumerate(groups.names) if not (group == number).any()]
    if empty:
        raise ValueError(
            f"groupby={groupby!r}: no cell of {', '.join(empty)} has a gene of the model's vocabulary; remove those"
            " cells, or name another column"
        )
    if groupby is not None and POOLED in groups.names:
        raise ValueError(
            f"a group of {groupby!r} is called {POOLED!r}, as the network of all cells is: rename it"
        )
    draws = np.random.default_rng(seed)
    for number in range(len(groups.names)):
        members = np.flatnonzero(group == number)
        block[members] = (
            blocks_of(len(members), n_blocks, draws) if replicates is None else replicates[members]
        )
    return group, block
