"""cosine_threshold: the pairs of rows that are similar enough, as a sparse matrix."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from scfast import _kernels, reference
from scfast.ops import _triton
from scfast.ops._cosine import ROWS, Rows, check_count, check_rows, n_cells
from scfast.ops._dispatch import choose
from scfast.ops._library import LIBRARY
from scfast.packing import Packing

LIBRARY.define(
    f"cosine_threshold({ROWS}, float threshold, int max_pairs) -> (Tensor, Tensor, Tensor, Tensor)"
)

MAX_PAIRS = 2**28


class SimilarRows(NamedTuple):
    """The pairs found, as the three arrays of a CSR matrix [N, M]: ``scipy.sparse.csr_array`` takes them.

    Attributes
    ----------
    indptr
        int64 [N + 1]: pairs of row i are ``indices[indptr[i]:indptr[i + 1]]``.
    indices
        int64: rows of y, rising within each row of x; with a packing too they count from y's first row.
    values
        float32: similarities.
    n_zero
        int64 [2], with a packing [B, 2]: rows of x and of y that are all 0 (x with itself: 0 for y).
    """

    indptr: torch.Tensor
    indices: torch.Tensor
    values: torch.Tensor
    n_zero: torch.Tensor


def cosine_threshold(
    x: torch.Tensor,
    threshold: float,
    y: torch.Tensor | None = None,
    *,
    packing: Packing | None = None,
    max_pairs: int = MAX_PAIRS,
    backend: str = "auto",
) -> SimilarRows:
    """Pairs of rows with <a, b> / (|a| |b|) >= threshold, without holding the others.

    Similarities are those of :func:`cosine_matrix`: a row of zeros has similarity 0 with every row; pairs with a row
    that holds NaN or an infinity are left out.

    Parameters
    ----------
    x
        [N, D]; float32, bfloat16 or float16; may be a view of a memory map.
    threshold
        Least similarity, rounded to float32.
    y
        [M, D], dtype of x. Default: x itself, each pair once, i < j: the upper triangle. ``a + a.T`` is the whole
        graph.
    packing
        Only pairs within a cell: ``lengths_q`` of it are the cells' rows in x, ``lengths_k`` those in y.
    max_pairs
        More pairs are refused; the default would take 3 GB.
    backend
        ``"auto"``, ``"cpu"``, ``"triton"`` or ``"reference"``.

    Returns
    -------
    SimilarRows
        Bits do not depend on the number of threads, nor on the run. Memory beside it: as much again and about 5 MB a
        thread; on a GPU three times as much, the rows, and 12 MB.

    Raises
    ------
    ValueError, TypeError
        Shapes, dtypes or devices that do not fit, named; more than ``max_pairs`` pairs.
    BackendError
        No backend takes the inputs.

    Examples
    --------
    >>> import torch, scfast
    >>> x = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 3.0]])
    >>> similar = scfast.ops.cosine_threshold(x, 0.5)
    >>> similar.indptr.tolist(), similar.indices.tolist()
    ([0, 1, 2, 2], [1, 2])
    """
    cu_x, cu_y = check_rows(x, y, packing)
    if not math.isfinite(threshold):
        raise ValueError(f"threshold must be a number, got {threshold}: similarities lie within [-1, 1]")
    check_count("max_pairs", max_pairs, 2**62, "pairs cannot be returned")
    tensors = {"x": x} if y is None else {"x": x, "y": y}
    chosen = choose("cosine_threshold", backend, **tensors)
    if chosen == "reference":
        indptr, indices, exact, zeros = reference.cosine_threshold(x, threshold, y, packing=packing)
        _check_pairs(len(indices), threshold, max_pairs)
        values = exact.float()
    else:
        run = _triton.runner("cosine_threshold", chosen, x, _triton_impl)
        indptr, indices, values, zeros = run(x, y, cu_x, cu_y, threshold, max_pairs)
    return SimilarRows(indptr, indices, values, zeros[0] if packing is None else zeros)


def _check_pairs(found: int, threshold: float, max_pairs: int) -> None:
    if found > max_pairs:
        raise ValueError(
            f"{found} pairs or more reach the threshold {threshold}, and max_pairs is {max_pairs}: raise the "
            "threshold, or max_pairs where there is memory for 12 bytes a pair, twice"
        )


def _cpu_impl(*args: Any) -> tuple[torch.Tensor, ...]:
    *given, threshold, max_pairs = args
    rows = Rows(*given)
    indptr = torch.empty(given[0].shape[0] + 1, dtype=torch.int64)
    found, indices, values = _kernels.cosine_threshold(rows.kernel, threshold, max_pairs, indptr.data_ptr())
    _check_pairs(found, threshold, max_pairs)
    return indptr, torch.from_numpy(indices), torch.from_numpy(values), rows.zeros


def _triton_impl(*args: Any) -> tuple[torch.Tensor, ...]:
    """Pairs are numbered, row by row, so that sorting their numbers puts them where they belong."""
    from scfast.ops._cosine_triton import PreparedRows

    *given, threshold, max_pairs = args
    rows, x = PreparedRows(*given), given[0]
    columns = (x if given[1] is None else given[1]).shape[0]
    kernel, long = rows.kernel("cosine_threshold"), {"dtype": torch.int64, "device": x.device}
    with rows.device():
        counted = kernel.count(rows.walk, threshold, torch.empty(0, **long))
        total = sum(int(found.sum()) for _, found in counted)
        _check_pairs(total, threshold, max_pairs)
        places, values = torch.empty(total, **long), x.new_empty(total, dtype=torch.float32)
        first = 0
        for tiles, found in counted:
            ends = found.cumsum(0) + first
            some = found > 0
            kernel.collect(rows.walk, threshold, tiles[some], (ends - found)[some], places, values, columns)
            first += int(found.sum())
    places, order = places.sort()
    indptr = torch.searchsorted(places, torch.arange(x.shape[0] + 1, **long) * columns)
    return indptr, places % max(columns, 1), values[order], rows.zeros


def _fake(x: torch.Tensor, y: Any, cu_x: torch.Tensor | None, *rest: Any) -> tuple[torch.Tensor, ...]:
    found = torch.library.get_ctx().new_dynamic_size()
    return (
        x.new_empty(x.shape[0] + 1, dtype=torch.int64),
        x.new_empty(found, dtype=torch.int64),
        x.new_empty(found, dtype=torch.float32),
        x.new_empty((n_cells(cu_x), 2), dtype=torch.int64),
    )


LIBRARY.impl("cosine_threshold", _cpu_impl, "CPU")
LIBRARY.impl("cosine_threshold", _triton_impl, "CUDA")
torch.library.register_fake("scfast::cosine_threshold", _fake, lib=LIBRARY)
