"""What a gene network is of: genes, layers and heads, groups of cells and their blocks."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scfast.models.base import AttentionSource
from scfast.run import Counts, TokenSurvey
from scfast.tl._gene_states import cells_with_gene
from scfast.tl._inputs import Groups
from scfast.tl._jackknife import blocks_of
from scfast.tl._networks import POOLED
from scfast.tl._several import check_unique, gene_names
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
    TypeError
        When layers or heads are no numbers.
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
        try:
            wanted = list(range(n)) if numbers is None else [operator.index(number) for number in numbers]
        except TypeError:
            raise TypeError(f"{name}={numbers!r} are no numbers of {name}, such as [0, -1]") from None
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
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Columns of the genes, of those that are read from, as far as enough cells have them; and cells of each gene.

    Raises
    ------
    ValueError
        When names of genes are not unique, fewer than two genes are left, or no source.
    KeyError
        When none of the names that a user gives is there.
    """
    check_unique(adata)
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
        named = np.ones(adata.n_vars, dtype=bool)
        if wanted is not None:
            wanted = list(dict.fromkeys([wanted] if isinstance(wanted, str) else map(str, wanted)))
            named = pd.Index(names).isin(wanted)  # by hash: NumPy compares texts one with another
            _tell(argument, wanted, names, named)
            if argument == "sources":
                _tell_rare(wanted, names, named, often, min_cells)
        columns.append(named & often)
    kept, read = np.flatnonzero(columns[0]), np.flatnonzero(columns[0] & columns[1])
    if sources is not None:  # a regulator belongs to the network, whether or not it is among the genes
        kept, read = np.flatnonzero(columns[0] | columns[1]), np.flatnonzero(columns[1])
    if len(kept) < 2 or not len(read):
        raise ValueError(
            f"{len(kept)} genes and {len(read)} sources have a token in min_cells={min_cells} cells or more, and a"
            " network needs two genes and a source: name others, or lower min_cells="
        )
    return kept, read, cells[kept]


def _tell(argument: str, wanted: list[str], names: np.ndarray, named: np.ndarray) -> None:
    """Warn of names that a user gave and that no gene has; an error when none has any."""
    if not named.any():
        raise KeyError(
            f"{argument}: none of {wanted[:3]}, ... is among the names {names[:3].tolist()}, ...; name the column that"
            " holds such names with gene_symbols="
        )
    known = set(names[named])
    _warn(f"{argument}= are not among the names of the genes", [x for x in wanted if x not in known], wanted)


def _tell_rare(
    wanted: list[str], names: np.ndarray, named: np.ndarray, often: np.ndarray, min_cells: int
) -> None:
    """Warn of sources that too few cells have: who names a regulator looks for it."""
    rare = set(names[named]) - set(names[named & often])
    why = f"sources= have a token in fewer than min_cells={min_cells} cells"
    _warn(why, [x for x in wanted if x in rare], wanted)


def _warn(why: str, lost: list[str], wanted: list[str]) -> None:
    if lost:
        some = f"{', '.join(lost[:5])}{', ...' if len(lost) > 5 else ''}"
        text = f"{len(lost)} of {len(wanted)} names in {why} and are left out: {some}"
        warnings.warn(text, UserWarning, stacklevel=5)


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
        When a group has no cell with genes, or one block of them, so that there are no errors.
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
    draws = np.random.default_rng(seed)
    for number in range(len(groups.names)):
        members = np.flatnonzero(group == number)
        block[members] = (
            blocks_of(len(members), n_blocks, draws) if replicates is None else replicates[members]
        )
    few = [name for number, name in enumerate(groups.names) if len(np.unique(block[group == number])) < 2]
    if few and replicates is None:
        raise ValueError(
            f"{_which(groupby, few)} a single cell, and errors are between blocks of cells, two or more:"
            f" {'give more cells' if groupby is None else 'remove it, or join it to another group'}"
        )
    if few:
        raise ValueError(
            f"{_which(groupby, few)} a single replicate, and errors are between two or more: leave replicate_key= out"
            + ("" if groupby is None else ", or remove those cells")
        )
    return group, block


def _which(groupby: str | None, few: list[str]) -> str:
    if groupby is None:
        return "adata has"
    return f"groupby={groupby!r}: {', '.join(few)} {'has' if len(few) == 1 else 'have each'}"


def shared_replicates(group: np.ndarray, block: np.ndarray) -> bool:
    """Whether cells of two groups are of one block."""
    pairs = np.unique(np.stack([group, block])[:, group >= 0], axis=1)
    return len(np.unique(pairs[1])) < pairs.shape[1]


def places_of(
    key_added: str, groups: Groups, groupby: str | None, compare: tuple[str, str] | None
) -> dict[str, str]:
    """Name of every network -> its key in ``varp``.

    Raises
    ------
    ValueError
        When a group is called as something else that is written.
    """
    places = {POOLED: key_added}
    if compare is not None:
        places["change"] = f"{key_added}_change"
    taken = {f"{place}{end}" for place in places.values() for end in ("", "_se")}
    for name, column in zip(groups.names, groups.columns, strict=True) if groupby is not None else ():
        own = {f"{key_added}_{column}", f"{key_added}_{column}_se"}
        if name in places or own & taken:
            raise ValueError(
                f"groupby={groupby!r}: a group is called {name!r}, as another result of a network is, or as that of"
                " another group with '_se' behind it: rename it"
            )
        taken |= own
        places[name] = f"{key_added}_{column}"
    return places
