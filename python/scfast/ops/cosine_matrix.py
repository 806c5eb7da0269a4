"""cosine_matrix: the cosine similarities of all pairs of rows, into memory of the caller's."""

from __future__ import annotations

from typing import Any

import torch

from scfast import _kernels, reference
from scfast.ops import _triton
from scfast.ops._cosine import ROWS, Rows, check_rows, starts_of_blocks
from scfast.ops._dispatch import choose
from scfast.ops._library import LIBRARY
from scfast.packing import Packing

LIBRARY.define(f"cosine_matrix({ROWS}, Tensor(a!) out) -> ()")


def cosine_matrix(
    x: torch.Tensor,
    y: torch.Tensor | None = None,
    *,
    packing: Packing | None = None,
    out: torch.Tensor | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """Similarity <a, b> / (|a| |b|) of every row of x with every row of y, a tile at a time into ``out``.

    Similarities lie within [-1, 1]. A row of zeros has similarity 0 with every row, itself included; a row that
    holds NaN or an infinity has NaN with every row. With x alone the matrix is symmetric to the bit and half of it is
    computed.

    Parameters
    ----------
    x
        [N, D]; float32, bfloat16 or float16; may be a view of a memory map.
    y
        [M, D], dtype of x. Default: x.
    packing
        Only pairs within a cell: ``lengths_q`` of it are the cells' rows in x, ``lengths_k`` those in y.
    out
        Where to: float32 [N, M], rows dense; with a packing the cells' blocks [n, m] end to end, 1-D. May be a memory
        map, ``torch.from_numpy(numpy.memmap(...))``. Default: a new tensor.
    backend
        ``"auto"``, ``"cpu"``, ``"triton"`` or ``"reference"``.

    Returns
    -------
    torch.Tensor
        ``out``. Bits do not depend on the number of threads, nor on the run. Memory beside it: about 5 MB a thread; on
        a GPU as much as the rows, and 12 MB.

    Raises
    ------
    ValueError, TypeError
        Shapes, dtypes or devices that do not fit, named.
    BackendError
        No backend takes the inputs.

    Examples
    --------
    >>> import torch, scfast
    >>> scfast.ops.cosine_matrix(torch.tensor([[2.0, 0.0], [0.0, 3.0], [0.0, 0.0]])).tolist()
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]
    """
    cu_x, cu_y = check_rows(x, y, packing)
    tensors = {"x": x} if y is None else {"x": x, "y": y}
    chosen = choose("cosine_matrix", backend, **tensors)
    if packing is None:
        shape: tuple[int, ...] = (x.shape[0], (x if y is None else y).shape[0])
    else:
        shape = (sum(n * m for n, m in zip(packing.lengths_q, packing.lengths_k, strict=True)),)
    out = x.new_empty(shape, dtype=torch.float32) if out is None else _check_out(out, shape, x)
    if chosen == "reference":
        return out.copy_(reference.cosine_matrix(x, y, packing=packing))
    _triton.runner("cosine_matrix", chosen, x, _triton_impl)(x, y, cu_x, cu_y, out)
    return out


def _check_out(out: torch.Tensor, shape: tuple[int, ...], x: torch.Tensor) -> torch.Tensor:
    if tuple(out.shape) != shape:
        raise ValueError(f"out has shape {tuple(out.shape)}; these rows have similarities of shape {shape}")
    if out.dtype != torch.float32:
        raise TypeError(f"out is {out.dtype}; similarities are torch.float32")
    if out.device != x.device:
        raise ValueError(f"out is on {out.device} and x on {x.device}: move them together")
    if out.numel() and (out.stride(-1) != 1 or (out.dim() == 2 and out.stride(0) < out.shape[1])):
        raise ValueError(
            f"out has strides {out.stride()}: its rows must be dense and apart, as torch.empty makes them"
        )
    return out


def _cpu_impl(*args: Any) -> None:
    *given, out = args
    rows = Rows(*given)
    first = starts_of_blocks(rows.lengths)
    if out.numel():
        stride = out.stride(0) if out.dim() == 2 else 0
        _kernels.cosine_matrix(rows.kernel, out.data_ptr(), first.data_ptr(), stride)


def _triton_impl(*args: Any) -> None:
    from scfast.ops._cosine_triton import PreparedRows

    x, y, cu_x, cu_y, out = args
    rows = PreparedRows(x, y, cu_x, cu_y, diagonal=True)
    first = starts_of_blocks(rows.lengths).to(out.device)
    with rows.device():
        rows.kernel("cosine_matrix").launch(rows.walk, out, first, out.stride(0) if out.dim() == 2 else None)


def _fake(*args: Any) -> None:
    return None


LIBRARY.impl("cosine_matrix", _cpu_impl, "CPU")
LIBRARY.impl("cosine_matrix", _triton_impl, "CUDA")
torch.library.register_fake("scfast::cosine_matrix", _fake, lib=LIBRARY)
