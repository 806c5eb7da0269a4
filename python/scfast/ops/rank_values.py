"""rank_values: the genes of every cell in falling order of scaled count, straight from a CSR matrix."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from scfast import _kernels, reference
from scfast.ops._csr import COUNT_TYPES, INT32_MAX, check_matrix, check_positive, numbers
from scfast.ops._dispatch import choose
from scfast.ops._threads import default_threads

_FLOAT32_MAX = np.finfo(np.float32).max


class _Genes(NamedTuple):
    """What is known of the columns of a matrix, checked and as the kernel takes it."""

    token_ids: np.ndarray  # int32 [G]
    factors: np.ndarray  # float64 [G]
    groups: np.ndarray  # [G]
    slots: np.ndarray  # int32 [G]
    slot_columns: np.ndarray  # int32 [slots]


#: Genes that were checked last and cannot change, and what was found: cells come block by block over the same genes.
_last: tuple[tuple[np.ndarray | None, ...], _Genes] | None = None


class RankedCells(NamedTuple):
    """Ranked genes of all cells, one cell after another.

    Attributes
    ----------
    token_ids
        int32 [T]; those of cell ``i`` are ``token_ids[offsets[i]:offsets[i + 1]]``, the largest value first.
    columns
        int32 [T]: column of the matrix that each token stands for.
    offsets
        int64 [B + 1]: where each cell begins.
    n_expressed
        int64 [B]: genes with a count.
    n_in_vocabulary
        int64 [B]: those of them with a token. ``n_expressed`` less these are lost to the vocabulary; these less the
        cell's tokens are cut off.
    """

    token_ids: np.ndarray
    columns: np.ndarray
    offsets: np.ndarray
    n_expressed: np.ndarray
    n_in_vocabulary: np.ndarray


def rank_values(
    indptr: np.ndarray,
    indices: np.ndarray,
    data: np.ndarray,
    *,
    n_counts: np.ndarray,
    token_ids: np.ndarray,
    factors: np.ndarray,
    groups: np.ndarray | None = None,
    max_tokens: int | None = None,
    target: float = 1e4,
    threads: int | None = None,
    backend: str = "auto",
) -> RankedCells:
    """Rank-value encoding: order each cell's genes by count / n_counts * target / factor.

    The values of Theodoris et al. 2023, rounded as their tokeniser rounds float32 counts, whatever dtypes
    come in: count, reciprocal of n_counts and both products in float32, then a product with the factor's
    reciprocal in float64. Values fall; equal values are ordered by column. Genes without a count or without a
    token have no place.

    Parameters
    ----------
    indptr, indices, data
        CSR matrix [B cells, G genes] of counts: integers of any width; float or integer counts, at least 0.
        Columns in any order within a row, each at most once.
    n_counts
        [B]: total counts of each cell, above 0 where it has counts.
    token_ids
        [G] integers: token of each column's gene, -1 where the vocabulary lacks it. What is checked of the genes is
        remembered where none of their arrays can be written to (``array.flags.writeable``).
    factors
        [G]: what each gene's value is divided by, its non-zero median; above 0 where there is a token.
    groups
        [G] integers: the column that stands for this one's gene. Counts of one gene are added up first;
        token, factor and reported column are those of the standing column. Default: each column for itself.
    max_tokens
        Genes to keep of each cell, at least 1. Default: all.
    target
        Total that cells are scaled to.
    threads
        Default: ``torch.get_num_threads()``. The result does not depend on it.
    backend
        ``"auto"``, ``"cpu"`` or ``"reference"``.

    Returns
    -------
    RankedCells
        A cell without counts has no tokens.

    Raises
    ------
    TypeError, ValueError
        Shapes, dtypes, or a negative, NaN or infinite count, named with its cell and column.

    Examples
    --------
    >>> import numpy as np, scfast
    >>> ranked = scfast.ops.rank_values(
    ...     np.array([0, 3]), np.array([0, 1, 3]), np.array([4.0, 2.0, 9.0]),
    ...     n_counts=np.array([15.0]), token_ids=np.array([10, 11, 12, -1]), factors=np.array([4.0, 1, 1, 1]),
    ... )
    >>> ranked.token_ids.tolist(), ranked.n_expressed.tolist()
    ([11, 10], [3])
    """
    indptr, indices, data = check_matrix(indptr, indices, data)
    genes = _checked(token_ids, factors, groups)
    n_counts = numbers("n_counts", n_counts, len(indptr) - 1, "cells").astype(np.float32)
    limit = check_positive("max_tokens", INT32_MAX if max_tokens is None else max_tokens)
    n_threads = check_positive("threads", default_threads() if threads is None else threads)
    if not 0 < np.float32(target) < np.inf:
        raise ValueError(f"target must be a finite number above 0, got {target}")
    matrix = _kernels.RankInput(
        indptr=indptr.ctypes.data, indices=indices.ctypes.data, data=data.ctypes.data,
        wide_indices=indices.itemsize == 8, count_type=COUNT_TYPES[data.dtype], n_cells=len(indptr) - 1,
        n_columns=len(genes.token_ids), n_counts=n_counts.ctypes.data, token_ids=genes.token_ids.ctypes.data,
        factors=genes.factors.ctypes.data, slots=genes.slots.ctypes.data, slot_columns=genes.slot_columns.ctypes.data,
        n_slots=len(genes.slot_columns), target=target, threads=n_threads,
    )  # fmt: skip
    chosen = choose("rank_values", backend)
    n_expressed, n_in_vocabulary = (np.empty(len(indptr) - 1, dtype=np.int64) for _ in range(2))
    room = int(np.minimum(np.diff(indptr), limit).sum())
    tokens, columns = (np.empty(room, dtype=np.int32) for _ in range(2))
    _kernels.rank_values(
        matrix, limit, n_expressed.ctypes.data, n_in_vocabulary.ctypes.data, tokens.ctypes.data, columns.ctypes.data
    )  # fmt: skip
    if (refused := np.flatnonzero(n_expressed < 0)).size:
        raise ValueError(_refusal(int(refused[0]), indptr, indices, data, n_counts, len(genes.token_ids)))
    if chosen == "reference":  # the kernel has checked the cells
        return RankedCells(
            *reference.rank_values(
                indptr, indices, data, n_counts=n_counts, token_ids=genes.token_ids, factors=genes.factors,
                groups=genes.groups, max_tokens=limit, target=target,
            )
        )  # fmt: skip
    offsets = np.zeros(len(indptr), dtype=np.int64)
    np.cumsum(np.minimum(n_in_vocabulary, limit), out=offsets[1:])
    for array in (tokens, columns):  # gives back the room of genes without a token
        array.resize(offsets[-1], refcheck=False)
    return RankedCells(tokens, columns, offsets, n_expressed, n_in_vocabulary)


def _checked(token_ids: np.ndarray, factors: np.ndarray, groups: np.ndarray | None) -> _Genes:
    """The genes, checked unless they are those of the call before and nobody can have written to them."""
    global _last
    given, last = (token_ids, factors, groups), _last
    if not all(x is None or _is_fixed(x) for x in given):
        return _check_genes(*given)
    if last is None or any(x is not y for x, y in zip(last[0], given, strict=True)):
        _last = last = (given, _check_genes(*given))
    return last[1]


def _is_fixed(x: object) -> bool:
    return isinstance(x, np.ndarray) and x.base is None and not x.flags.writeable


def _check_genes(token_ids: np.ndarray, factors: np.ndarray, groups: np.ndarray | None) -> _Genes:
    token_ids = np.asarray(token_ids)
    if token_ids.ndim != 1 or token_ids.dtype.kind not in "iu":
        raise TypeError(f"token_ids must be a 1-D array of integers, got {token_ids.dtype} {token_ids.shape}")
    n = len(token_ids)
    if n > INT32_MAX:
        raise ValueError(f"token_ids names {n} genes; at most {INT32_MAX} fit")
    if n and not (token_ids.min() >= -1 and token_ids.max() <= INT32_MAX):
        raise ValueError(
            f"token_ids must lie between -1 (no token) and {INT32_MAX}, "
            f"got {token_ids.min()} to {token_ids.max()}"
        )
    known = token_ids >= 0
    factors = np.where(known, numbers("factors", factors, n, "columns"), 1).astype(np.float64)
    usable = (factors > 1 / np.finfo(np.float64).max) & (factors < np.inf)  # so has the reciprocal a value
    if not usable.all():
        column = int(np.argmin(usable))
        raise ValueError(
            f"factors[{column}] is {factors[column]} and the gene has a token: it must be finite and above "
            "0, or token_ids -1 there to leave the gene out"
        )
    identity = np.arange(n)
    groups = identity if groups is None else numbers("groups", groups, n, "columns")
    wrong = (groups < 0) | (groups >= n) | (groups.dtype.kind == "f")
    if not wrong.any():
        wrong = groups[groups] != groups
    if wrong.any():
        column = int(np.argmax(wrong))
        raise ValueError(
            f"groups[{column}] is {groups[column]}: it must be an integer from 0 to {n - 1}, "
            "a column that stands for itself"
        )
    return _Genes(token_ids.astype(np.int32), factors, groups, *_slots(groups))


def _slots(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(number of each column's added-up gene or -1 [G], standing columns of these genes), int32."""
    slots = np.full(len(groups), -1, dtype=np.int32)
    standing = np.unique(groups[groups != np.arange(len(groups))])
    slots[standing] = np.arange(len(standing))
    return slots[groups], standing.astype(np.int32)


def _refusal(
    cell: int, indptr: np.ndarray, indices: np.ndarray, data: np.ndarray, n_counts: np.ndarray, n_columns: int
) -> str:
    """What is wrong with a cell that the first pass refused."""
    row = slice(indptr[cell], indptr[cell + 1])
    columns, counts = indices[row], data[row]
    if (outside := (columns < 0) | (columns >= n_columns)).any():
        return (
            f"cell {cell} has a count in column {columns[outside][0]}, but token_ids names {n_columns} "
            "columns: pass one token for each column of the matrix"
        )
    if (bad := ~((counts >= 0) & (counts <= _FLOAT32_MAX))).any():
        return (
            f"the count of cell {cell} in column {columns[bad][0]} is {counts[bad][0]}; it must be finite "
            "and at least 0: pass raw counts, not scaled values"
        )
    unique, times = np.unique(columns, return_counts=True)
    if (times > 1).any():
        return f"cell {cell} holds column {unique[times > 1][0]} twice: call sum_duplicates() on it first"
    return (
        f"n_counts of cell {cell} is {n_counts[cell]}, but the cell has counts: it must be their total, "
        "finite and above 0"
    )
