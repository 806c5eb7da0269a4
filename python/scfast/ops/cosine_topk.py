"""cosine_topk: the rows that every row is most similar to."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from scfast import _kernels, reference
from scfast.ops import _cpu, _triton
from scfast.ops._cosine import ROWS, Rows, check_count, check_rows, n_cells
from scfast.ops._dispatch import choose
from scfast.ops._library import LIBRARY
from scfast.packing import Packing

LIBRARY.define(f"cosine_topk({ROWS}, int k) -> (Tensor, Tensor, Tensor)")


class NearestRows(NamedTuple):
    """The most similar rows of every row of x, most similar first.

    Attributes
    ----------
    values
        float32 [N, k]: similarities.
    indices
        int64 [N, k]: rows of y, with a packing counted within the cell. Where fewer than k rows can be compared the
        rest is NaN and -1.
    n_zero
        int64 [2], with a packing [B, 2]: rows of x and of y that are all 0 (x with itself: 0 for y).
    """

    values: torch.Tensor
    indices: torch.Tensor
    n_zero: torch.Tensor


def cosine_topk(
    x: torch.Tensor,
    k: int,
    y: torch.Tensor | None = None,
    *,
    packing: Packing | None = None,
    backend: str = "auto",
) -> NearestRows:
    """The k rows of y with the largest <a, b> / (|a| |b|) for every row a of x, without holding the pairs.

    Similarities are those of :func:`cosine_matrix`: a row of zeros has similarity 0 with every row; pairs with a row
    that holds NaN or an infinity do not count. Equal similarities are in the order of their rows. On a GPU x with
    itself is computed like any other y, so that a similarity may differ in its last bits from its mirror image.

    Parameters
    ----------
    x
        [N, D]; float32, bfloat16 or float16; may be a view of a memory map.
    k
        Rows to find, 1 or more.
    y
        [M, D], dtype of x. Default: the other rows of x; on a CPU each pair is then computed once for both.
    packing
        Only rows of the same cell: ``lengths_q`` of it are the cells' rows in x, ``lengths_k`` those in y.
    backend
        ``"auto"``, ``"cpu"``, ``"triton"`` or ``"reference"``.

    Returns
    -------
    NearestRows
        Bits do not depend on the number of threads, nor on the run. Memory beside it: about 6 MB a thread; on a GPU as
        much as the rows.

    Raises
    ------
    ValueError, TypeError
        Shapes, dtypes or devices that do not fit, named.
    BackendError
        No backend takes the inputs.

    Examples
    --------
    >>> import torch, scfast
    >>> x = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 3.0]])
    >>> scfast.ops.cosine_topk(x, 1).indices.tolist()
    [[1], [0], [1]]
    """
    cu_x, cu_y = check_rows(x, y, packing)
    check_count("k", k, 2**31 - 1, "rows cannot be found")
    tensors = {"x": x} if y is None else {"x": x, "y": y}
    chosen = choose("cosine_topk", backend, **tensors)
    if chosen == "reference":
        exact, indices, zeros = reference.cosine_topk(x, k, y, packing=packing)
        values = exact.float()
    else:
        run = _triton.runner("cosine_topk", chosen, x, _triton_impl)
        values, indices, zeros = run(x, y, cu_x, cu_y, k)
    return NearestRows(values, indices, zeros[0] if packing is None else zeros)


def _cpu_impl(*args: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    *given, k = args
    rows = Rows(*given)
    values, indices = _allocate(given[0], k)
    _kernels.cosine_topk(rows.kernel, k, _cpu.pointer(values), _cpu.pointer(indices))
    return values, indices, rows.zeros


def _triton_impl(*args: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    from scfast.ops._cosine_triton import PreparedRows

    *given, k = args
    rows = PreparedRows(*given)
    values, indices = _allocate(given[0], k)
    with rows.device():
        rows.kernel("cosine_topk").launch(rows.walk, rows.work_list, values, indices)
    return values, indices, rows.zeros


def _allocate(x: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    shape = (x.shape[0], k)
    return x.new_empty(shape, dtype=torch.float32), x.new_empty(shape, dtype=torch.int64)


def _fake(
    x: torch.Tensor, y: Any, cu_x: torch.Tensor | None, cu_y: Any, k: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return *_allocate(x, k), x.new_empty((n_cells(cu_x), 2), dtype=torch.int64)


LIBRARY.impl("cosine_topk", _cpu_impl, "CPU")
LIBRARY.impl("cosine_topk", _triton_impl, "CUDA")
torch.library.register_fake("scfast::cosine_topk", _fake, lib=LIBRARY)
