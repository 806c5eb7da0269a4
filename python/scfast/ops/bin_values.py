"""bin_values: the counts of every cell to bins, straight from a CSR matrix."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from scfast import _kernels, reference
from scfast.ops._csr import COUNT_TYPES, INT32_MAX, check_matrix, check_positive, numbers
from scfast.ops._dispatch import choose
from scfast.ops._threads import default_threads

#: Modes of csrc/bin_values.hpp, and the options that mean something to each.
MODES: dict[str, tuple[str, ...]] = {
    "segment": (),
    "value": ("totals", "target", "cutoff", "per_doubling"),
    "quantile": ("seed", "row_ids", "uniforms"),
}
_BAD_COUNT, _COLUMNS_FALL = 1, 2


def bin_values(
    indptr: np.ndarray,
    indices: np.ndarray,
    data: np.ndarray,
    *,
    mode: str,
    n_bins: int,
    totals: np.ndarray | None = None,
    target: float | None = None,
    cutoff: float | None = None,
    per_doubling: int | None = None,
    seed: int | None = None,
    row_ids: np.ndarray | None = None,
    uniforms: np.ndarray | None = None,
    threads: int | None = None,
    backend: str = "auto",
) -> np.ndarray:
    """Bins of a cell's counts: 1 to n_bins - 1 where there is a count, 0 where there is none.

    ``mode="segment"`` (Amara-Belgadi et al. 2023): the cell's n non-zeros cut into n_bins - 1 bins of equal
    counts; bin = 1 + floor((n_bins - 1) * smaller / n), where ``smaller`` of them are below this one, so equal
    values share a bin.

    ``mode="value"`` (the same paper): x = count, or count * target / total; bin 1 up to 1, round(x) (halves to
    even) up to the cut-off c, and above it round(c) + ceil(per_doubling * log2(x / c)), capped at n_bins - 1. The
    formula as printed maps values just above c back to 1; this is its continuous reading.

    ``mode="quantile"`` (scGPT, Cui et al. 2024): edges are the quantiles of the cell's non-zeros at
    ``linspace(0, 1, n_bins - 1)``; with left the edges up to a value and right those below it,
    bin = ceil(u * (right - left) + left), so that values which many edges share are spread over their bins. A
    cell's only value may get any bin. On float32 input equal to the authors' code, bit for bit.

    Parameters
    ----------
    indptr, indices, data
        CSR matrix [B cells, G genes]: integers of any width; float or integer counts, at least 0, raw or
        normalised. Columns in any order within a row, each at most once.
    mode
        ``"segment"``, ``"value"`` or ``"quantile"``.
    n_bins
        Number of bins, that of zero among them; at least 2.
    totals, target
        Value: [B] total counts of each cell, above 0 where it has counts, and what they are scaled to, such as
        their mean over all cells. Both or neither; without them counts are taken as they are.
    cutoff, per_doubling
        Value: where bins start to widen, at least 1, and bins from there to twice of it. Default: 8 and 3.
    seed, row_ids
        Quantile: u depends on these alone, the seed (0 to 2^64 - 1), the number of the cell [B] and the
        column, so batches may be cut anywhere. Default: 0 and 0 to B - 1.
    uniforms
        Quantile: u in [0, 1) of every entry of ``data``, instead of random numbers.
    threads
        Default: ``torch.get_num_threads()``. The result does not depend on it.
    backend
        ``"auto"``, ``"cpu"`` or ``"reference"``.

    Returns
    -------
    int32 [entries]: the bin of each of ``data[indptr[0]:indptr[-1]]``; 0 for stored zeros.

    Raises
    ------
    TypeError, ValueError
        Shapes, dtypes, options of another mode, or a negative, NaN or infinite count, named with its cell and
        column.

    Examples
    --------
    >>> import numpy as np, scfast
    >>> cell = np.array([0, 4]), np.array([0, 1, 3, 4]), np.array([1.0, 3.0, 9.0, 40.0])
    >>> scfast.ops.bin_values(*cell, mode="segment", n_bins=3).tolist()
    [1, 1, 2, 2]
    >>> scfast.ops.bin_values(*cell, mode="value", n_bins=30).tolist()
    [1, 3, 9, 15]
    >>> scfast.ops.bin_values(*cell, mode="quantile", n_bins=5).tolist()
    [1, 2, 3, 4]
    """
    indptr, indices, data = check_matrix(indptr, indices, data)
    options = _check_options(
        mode, totals=totals, target=target, cutoff=cutoff, per_doubling=per_doubling, seed=seed,
        row_ids=row_ids, uniforms=uniforms,
    )  # fmt: skip
    n_bins = check_positive("n_bins", n_bins)
    if n_bins < 2:
        raise ValueError("n_bins is 1, but zeros take a bin: it must be at least 2")
    n_threads = check_positive("threads", default_threads() if threads is None else threads)
    if len(indptr) > 1 and np.diff(indptr).max() > INT32_MAX:
        raise ValueError(f"a cell has {np.diff(indptr).max()} entries; at most {INT32_MAX} fit")
    given = _prepare(mode, n_bins, indptr, data, **options)
    chosen = choose("bin_values", backend)
    bins = np.empty(indptr[-1] - indptr[0], dtype=np.int32)
    states = np.empty(len(indptr) - 1, dtype=np.int8)
    levels = given["levels"]
    matrix = _kernels.BinInput(
        indptr=indptr.ctypes.data, indices=indices.ctypes.data, data=data.ctypes.data,
        wide_indices=indices.itemsize == 8, count_type=COUNT_TYPES[data.dtype], n_cells=len(indptr) - 1,
        mode=list(MODES).index(mode), n_bins=n_bins, scales=_address(given["scales"]), cutoff=given["cutoff"],
        levels=levels.ctypes.data, n_levels=len(levels), seed=given["seed"], row_ids=_address(given["row_ids"]),
        uniforms=_address(given["uniforms"]), threads=n_threads,
    )  # fmt: skip
    _kernels.bin_values(matrix, bins.ctypes.data, states.ctypes.data)
    _refuse(states, indptr, indices, data)
    if chosen == "reference":  # the kernel has checked the cells
        del given["levels"]
        return reference.bin_values(indptr, indices, data, mode=mode, n_bins=n_bins, **given)
    return bins


def _address(array: np.ndarray | None) -> int:
    return 0 if array is None else int(array.ctypes.data)


def _check_options(mode: str, **options: Any) -> dict[str, Any]:
    """The options of a mode, refused where they belong to another."""
    if mode not in MODES:
        raise ValueError(f"mode={mode!r} is unknown; use one of {', '.join(map(repr, MODES))}")
    for name, value in options.items():
        if value is not None and name not in MODES[mode]:
            of = next(other for other, names in MODES.items() if name in names)
            raise ValueError(f"{name} means nothing to mode={mode!r}, only to {of!r}: leave it out")
    return {name: options[name] for name in MODES[mode]}


def _prepare(mode: str, n_bins: int, indptr: np.ndarray, data: np.ndarray, **options: Any) -> dict[str, Any]:
    """Options as kernel and reference take them; those of another mode in a form that is not read."""
    given: dict[str, Any] = {
        "scales": None, "cutoff": 1.0, "per_doubling": 1, "levels": np.zeros(0), "seed": 0,
        "row_ids": None, "uniforms": None,
    }  # fmt: skip
    if mode == "value":
        given |= _by_value(n_bins, indptr, data, **options)
    elif mode == "quantile":
        given |= _by_quantile(n_bins, indptr, data, **options)
    return given


def _by_value(
    n_bins: int,
    indptr: np.ndarray,
    data: np.ndarray,
    totals: np.ndarray | None,
    target: float | None,
    cutoff: float | None,
    per_doubling: int | None,
) -> dict[str, Any]:
    cutoff = 8.0 if cutoff is None else float(cutoff)
    per_doubling = check_positive("per_doubling", 3 if per_doubling is None else per_doubling)
    if not 1 <= cutoff <= n_bins - 1:
        raise ValueError(
            f"cutoff must lie between 1 and n_bins - 1 = {n_bins - 1}, a bin for every whole count up to it, "
            f"got {cutoff}"
        )
    with np.errstate(over="ignore"):  # beyond the largest number no count lies
        levels = cutoff * 2.0 ** (np.arange(n_bins - 1 - round(cutoff)) / per_doubling)
    if (totals is None) != (target is None):
        raise ValueError(
            "totals and target belong together, each cell's total and what it is scaled to: pass both, or "
            "neither to bin counts as they are"
        )
    scales = None
    if totals is not None and target is not None:
        totals = numbers("totals", totals, len(indptr) - 1, "cells").astype(np.float64)
        if not 0 < target < math.inf:
            raise ValueError(f"target must be a finite number above 0, got {target}")
        usable = (totals > 0) & (totals < math.inf)
        for cell in np.flatnonzero(~usable):
            if (data[indptr[cell] : indptr[cell + 1]] > 0).any():
                raise ValueError(
                    f"totals of cell {cell} is {totals[cell]}, but the cell has counts: it must be their "
                    "total, finite and above 0"
                )
        scales = target / np.where(usable, totals, 1.0)
    return {"scales": scales, "cutoff": cutoff, "per_doubling": per_doubling, "levels": levels}


def _by_quantile(
    n_bins: int,
    indptr: np.ndarray,
    data: np.ndarray,
    seed: int | None,
    row_ids: np.ndarray | None,
    uniforms: np.ndarray | None,
) -> dict[str, Any]:
    if uniforms is not None:
        if seed is not None or row_ids is not None:
            raise ValueError("uniforms takes the place of random numbers: leave seed and row_ids out")
        uniforms = np.ascontiguousarray(numbers("uniforms", uniforms, len(data), "entries"), dtype=np.float64)
        if not ((uniforms >= 0) & (uniforms < 1)).all():
            raise ValueError("uniforms must lie in [0, 1), as numpy.random.Generator.random draws them")
    seed = 0 if seed is None else seed
    if not isinstance(seed, int | np.integer) or not 0 <= seed < 2**64:
        raise ValueError(f"seed must be an integer from 0 to 2^64 - 1, got {seed!r}")
    n_cells = len(indptr) - 1
    row_ids = np.arange(n_cells) if row_ids is None else numbers("row_ids", row_ids, n_cells, "cells")
    if row_ids.dtype.kind == "f":
        raise TypeError(f"row_ids must be integers, the numbers of the cells, got {row_ids.dtype}")
    levels = np.linspace(0, 1, n_bins - 1)
    row_ids = np.ascontiguousarray(row_ids, dtype=np.int64)
    return {"levels": levels, "seed": int(seed), "row_ids": row_ids, "uniforms": uniforms}


def _refuse(states: np.ndarray, indptr: np.ndarray, indices: np.ndarray, data: np.ndarray) -> None:
    """Raise what is wrong with a cell that the kernel refused, or whose columns do not rise."""
    for cell in np.flatnonzero(states == _BAD_COUNT)[:1]:
        row = slice(indptr[cell], indptr[cell + 1])
        wrong = ~((data[row] >= 0) & np.isfinite(data[row]))
        raise ValueError(
            f"the count of cell {cell} in column {indices[row][wrong][0]} is {data[row][wrong][0]}; it must be "
            "finite and at least 0: pass counts, or values normalised from them, not centred or scaled ones"
        )
    for cell in np.flatnonzero(states == _COLUMNS_FALL):
        unique, times = np.unique(indices[indptr[cell] : indptr[cell + 1]], return_counts=True)
        if unique[0] < 0:
            raise ValueError(f"cell {cell} has a count in column {unique[0]}; columns start at 0")
        if (times > 1).any():
            raise ValueError(
                f"cell {cell} holds column {unique[times > 1][0]} twice: call sum_duplicates() on it first"
            )
