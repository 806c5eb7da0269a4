"""attention_matmul: out[i] = sum_j A[i, j] x[j], A the fused map or that of each head; float32.

A row pass leaves shift and norm; a second visit of rows multiplies the fused map with x, so that x is multiplied once
for all heads. Beside 16-bit inputs the map and x are split in two bfloat16 parts each, three products on tensor cores:
an error of 3e-6, far below that of their rounding. Wide matrices go by in blocks of columns, each of which computes the
map anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import triton
import triton.language as tl
from scfast.kernels.scores import load_rows, padded, store_rows
from triton.language import constexpr

if TYPE_CHECKING:
    from scfast.kernels.batch import Batch

#: Columns of x in a visit: with more of them the sums no longer fit a program's registers.
COLUMNS = 64


class Matmul(NamedTuple):
    """Arguments of the epilogue: one block of columns."""

    x: Any  # float32 [Tk, columns], unit stride along columns
    x_row: Any
    out: Any  # float32 [Tq, Hout, columns], unit stride along columns
    out_row: Any
    out_head: Any
    columns: Any  # constexpr
    width: Any  # constexpr: columns, padded to a power of two of at least 16
    precision: Any  # constexpr


@triton.jit
def matmul_init(args, row, inside, head, cell):
    """(all rows are live, sums [QUERIES, width])."""
    return inside, (tl.zeros([inside.shape[0], args.width], tl.float32),)


@triton.jit
def matmul_tile(args, state, a, slope, k, key, seen, head):
    """The fused map is a [QUERIES, KEYS], 0 at hidden keys and beyond the cell."""
    x = load_rows(args.x, key, seen, args.x_row, 0, 0, args.columns, args.width)
    return (tl.dot(a, x, state[0], input_precision=args.precision),)


@triton.jit
def matmul_done(args, state, row, inside, head):
    """Sums of rows that see no key are 0."""
    store_rows(args.out, row, inside, args.out_row, args.out_head, head, args.columns, args.width, state[0])


#: The epilogue, as visit_rows takes it.
MATMUL = {"INIT": matmul_init, "TILE": matmul_tile, "DONE": matmul_done}


def launch(batch: Batch, x: Any, factors: Any, out: Any) -> None:
    """Fill out [Tq, Hout, W] from x [Tk, W]."""
    batch = batch.normalise(out).fuse("sum", batch.heads // out.shape[1], factors)
    split = batch.bits == 16 and batch.gpu != "interpreter"  # which knows no bfloat16 parts
    for first in range(0, x.shape[1], COLUMNS):
        some, into = x[:, first : first + COLUMNS], out[..., first : first + COLUMNS]
        args = Matmul(
            x=some, x_row=x.stride(0), out=into, out_row=out.stride(0), out_head=out.stride(1),
            columns=constexpr(some.shape[1]), width=constexpr(padded(some.shape[1])),
            precision=constexpr("bf16x3") if split else batch.where.precision,
        )  # fmt: skip
        batch.visit_rows("matmul", out.shape[1], args, MATMUL)
