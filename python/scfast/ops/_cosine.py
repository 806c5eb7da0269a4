"""What the cosine ops share: checks of their rows, and how kernels are told them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch

from scfast import _kernels
from scfast.ops import _cpu
from scfast.ops._checks import DTYPES
from scfast.packing import Packing

#: How every cosine op receives its rows.
ROWS = "Tensor x, Tensor? y, Tensor? cu_seqlens_x, Tensor? cu_seqlens_y"


def check_rows(
    x: torch.Tensor, y: torch.Tensor | None, packing: Packing | None
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Refuse rows that do not fit each other or the packing; returns where cells start in x and in y."""
    for name, rows in (("x", x), ("y", y)):
        if rows is None:
            continue
        if rows.dim() != 2 or rows.shape[1] == 0:
            raise ValueError(
                f"{name} must be [rows, columns] with a column or more, got shape {tuple(rows.shape)}: "
                "lay the vectors out as the rows of one matrix"
            )
        if rows.dtype not in DTYPES:
            raise TypeError(f"{name} is {rows.dtype}; use one of {', '.join(map(str, DTYPES))}")
        if rows.shape[0] >= 2**31:
            raise ValueError(
                f"{name} has {rows.shape[0]} rows; fewer than 2**31 are supported: compare blocks of rows"
            )
    if y is not None:
        if y.shape[1] != x.shape[1]:
            raise ValueError(f"x has {x.shape[1]} columns and y has {y.shape[1]}; they must agree")
        if y.dtype != x.dtype:
            raise TypeError(f"x is {x.dtype} and y is {y.dtype}; cast them to one dtype")
        if y.device != x.device:
            raise ValueError(f"x is on {x.device} and y on {y.device}: move them together")
    if packing is None:
        return None, None
    if not isinstance(packing, Packing):
        raise TypeError(
            f"packing must be a scfast.Packing, got {type(packing).__name__}: use Packing.from_lengths"
        )
    if packing.device != x.device:
        raise ValueError(f"x is on {x.device}, the packing on {packing.device}: move them together")
    if y is None and packing.lengths_q != packing.lengths_k:
        raise ValueError(
            "the packing's cells have other queries than keys, so y is needed: give the rows that x is compared with"
        )
    for name, rows, total in (("x", x, packing.total_q), ("y", y, packing.total_k)):
        if rows is not None and rows.shape[0] != total:
            raise ValueError(f"{name} has {rows.shape[0]} rows, but the packing's cells add up to {total}")
    return packing.cu_seqlens_q, None if y is None else packing.cu_seqlens_k


def check_count(name: str, value: int, most: int, what: str) -> None:
    """Refuse what is not a whole number from 1 to ``most``."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if not 1 <= value <= most:
        raise ValueError(f"{name}={value} {what}: ask for 1 to {most}")


def n_cells(cu_seqlens_x: torch.Tensor | None) -> int:
    """Cells that the pairs lie in."""
    return 1 if cu_seqlens_x is None else cu_seqlens_x.shape[0] - 1


class Rows:
    """The rows as kernels are told them, and the tensors that its pointers need alive.

    ``zeros`` is int64 [B, 2]: rows of x and of y that are all 0, filled by the kernel.
    """

    def __init__(
        self,
        x: torch.Tensor,
        y: torch.Tensor | None,
        cu_seqlens_x: torch.Tensor | None,
        cu_seqlens_y: torch.Tensor | None,
    ) -> None:
        x, y = dense(x), None if y is None else dense(y)
        cu_x = _starts(x, cu_seqlens_x)
        cu_y = cu_x if y is None else _starts(y, cu_seqlens_y)
        self.lengths = list(zip(cu_x.diff().tolist(), cu_y.diff().tolist(), strict=True))
        self.zeros = torch.zeros(len(self.lengths), 2, dtype=torch.int64)
        self.alive = (x, y, cu_x, cu_y)
        # x with itself is told by y = 0, which is also the pointer of no rows: then one of x stands in.
        other = 0 if y is None else (_cpu.pointer(y) or _cpu.pointer(x) or cu_y.data_ptr())
        self.kernel = _kernels.CosineRows(
            dtype=_cpu.DTYPE_CODES[x.dtype], x=_cpu.pointer(x), y=other,
            x_row=x.stride(0), y_row=0 if y is None else y.stride(0), dim=x.shape[1],
            cu_x=cu_x.data_ptr(), cu_y=cu_y.data_ptr(), n_cells=len(self.lengths),
            zeros=self.zeros.data_ptr(), threads=torch.get_num_threads(),
        )  # fmt: skip


def starts_of_blocks(lengths: Sequence[tuple[int, int]]) -> torch.Tensor:
    """int64 [B + 1]: where each cell's block [n, m] begins when the blocks lie end to end."""
    return torch.tensor(list(accumulate((n * m for n, m in lengths), initial=0)))


def dense(rows: torch.Tensor) -> torch.Tensor:
    """Rows with unit stride along their columns; other strides are handed to the kernel as they are."""
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()


def _starts(rows: torch.Tensor, cu_seqlens: torch.Tensor | None) -> torch.Tensor:
    return torch.tensor([0, rows.shape[0]]) if cu_seqlens is None else cu_seqlens.to(torch.int64)
