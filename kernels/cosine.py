"""The loop over pairs of rows on a GPU: cosine similarities, a tile at a time, float32 in [-1, 1].

``prepare_rows`` divides rows by a power of two near their length, which is exact, and lays them out in half precision,
padded; what is left of 1 / length is a float32 factor of the finished product. float32 rows are the sum of two halves,
22 bits, and a similarity is three products of tensor cores:

    x = high + low    <x, y> = <low, high'> + <high, low'> + <high, high'>

What is left out, <low, low'>, and what two halves do not hold are at most 2**-22 of |x| |y| each. Tensor cores cut sums
off where float32 would round them; sums of SLICE columns are therefore added up outside of them.

A tile is a program of its own, so that nothing depends on the order of programs: integers are added by atomics,
exactly; floating-point sums are left for each tile and added in order. TILE(args, where, s, pair, i, j, at) takes the
similarities s [QUERIES, KEYS] of rows i and j of a cell, and which of them are pairs; ``at`` says which cell: its
number, its first row of x and of y, and how many rows of y it has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import triton
import triton.language as tl
from scfast.kernels.tiles import Tile, choose

#: Columns that a step of a product takes; rows are padded to a multiple of it.
SLICE = 64
#: Rows and columns that a program prepares at a time.
PREPARED_ROWS, PREPARED_COLUMNS = 16, 128
#: Rows are scaled to lengths between 2**13 and 2**14: the widest range that no product of halves leaves.
EXPONENT = tl.constexpr(14)


class Parts(NamedTuple):
    """Rows as products take them."""

    high: Any  # bfloat16 or float16 [N, depth]
    low: Any  # float16 [N, depth], what high leaves of float32; None for 16-bit rows
    factor: Any  # float32 [N]: 0 for rows of zeros, NaN for rows that are not finite
    rows: Any  # N


class Pairs(NamedTuple):
    """What the loop is told of the rows."""

    tiles: Any  # int32 [n, 3]: (cell, first row of x, first row of y within it)
    x: Parts
    y: Parts
    x_starts: Any  # int32 [B + 1]
    y_starts: Any  # int32 [B + 1]
    depth: Any  # columns, padded
    itself: Any  # constexpr: x with itself, each pair once, i < j
    diagonal: Any  # constexpr: and i = j


class Walk(NamedTuple):
    """Rows of a call and how to launch on them."""

    where: Pairs  # without tiles
    gpu: str  # "sm_90" and so on, or "interpreter"
    bits: int  # of an input element
    launches: Callable[
        [int, int], Iterator[tuple[Any, Any]]
    ]  # (queries, keys of a tile) -> Pairs.tiles, first of each cell

    def tile(self, visit: str) -> Tile:
        """The tile of a visit; how many columns the rows have does not matter to it."""
        return choose(self.gpu, visit, self.bits, SLICE)

    def visit_pairs(self, tile: Tile, tiles: Any, args: Any, of_a_tile: Any) -> None:
        """Launch the loop on a list of tiles."""
        if tiles.shape[0]:
            visit_pairs[(tiles.shape[0],)](
                self.where._replace(tiles=tiles), args, TILE=of_a_tile, QUERIES=tile.queries, KEYS=tile.keys,
                SLICE=SLICE, num_warps=tile.warps, num_stages=tile.stages,
            )  # fmt: skip


@triton.jit
def prepare_rows(rows, stride, columns, to, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr):
    """Grid (blocks of ROWS rows). Squares are summed in float64: no length overflows, none vanishes."""
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside, column = n < to.rows, tl.arange(0, COLUMNS)
    row = rows + n.to(tl.int64)[:, None] * stride
    squares = tl.zeros([ROWS, COLUMNS], tl.float64)
    for first in range(0, columns, COLUMNS):
        taken = inside[:, None] & (first + column < columns)[None, :]
        x = tl.load(row + (first + column)[None, :], mask=taken, other=0.0).to(tl.float64)
        squares += x * x
    square = tl.sum(squares, 1)
    length = tl.sqrt(square)
    finite = square < float("inf")
    # length * power lies in [2**(EXPONENT - 1), 2**EXPONENT).
    exponent = (length.to(tl.int64, bitcast=True) >> 52) & 0x7FF
    power = ((2045 - exponent + EXPONENT) << 52).to(tl.float64, bitcast=True)
    used = finite & (square > 0)
    power = tl.where(used, power, 1.0)
    factor = tl.where(used, 1.0 / (tl.where(used, length, 1.0) * power), 0.0)
    tl.store(to.factor + n, tl.where(finite, factor, float("nan")).to(tl.float32), mask=inside)
    start = n.to(tl.int64)[:, None] * DEPTH
    for first in range(0, DEPTH, COLUMNS):
        d = first + column
        taken = (inside & used)[:, None] & (d < columns)[None, :]
        x = tl.load(row + d[None, :], mask=taken, other=0.0).to(tl.float64)
        scaled = (x * power[:, None]).to(tl.float32)
        high = scaled.to(to.high.dtype.element_ty)
        kept = inside[:, None] & (d < DEPTH)[None, :]
        tl.store(to.high + start + d[None, :], high, mask=kept)
        if to.low is not None:
            tl.store(to.low + start + d[None, :], (scaled - high.to(tl.float32)).to(tl.float16), mask=kept)


def prepare(rows: Any, parts: Parts, depth: int) -> None:
    """Fill parts; rows [N, D] with unit stride along D."""
    if parts.rows:
        prepare_rows[(-(-parts.rows // PREPARED_ROWS),)](
            rows, rows.stride(0), rows.shape[1], parts, ROWS=PREPARED_ROWS, COLUMNS=PREPARED_COLUMNS, DEPTH=depth,
        )  # fmt: skip


@triton.jit
def _clamped(parts, first, n: tl.constexpr):
    """Rows from ``first`` on, n of them; beyond the last one, the last one: its similarities are no pairs."""
    return tl.minimum(first + tl.arange(0, n), parts.rows - 1)


@triton.jit
def similarities(where, row, column, QUERIES: tl.constexpr, KEYS: tl.constexpr, SLICE: tl.constexpr):
    """float32 [QUERIES, KEYS] of packed rows of x from ``row`` on and of y from ``column`` on; NaN of broken rows."""
    i, j = _clamped(where.x, row, QUERIES), _clamped(where.y, column, KEYS)
    d = tl.arange(0, SLICE)
    a = i.to(tl.int64)[:, None] * where.depth + d[None, :]
    b = j.to(tl.int64)[None, :] * where.depth + d[:, None]
    total = tl.zeros([QUERIES, KEYS], tl.float32)
    for first in range(0, where.depth, SLICE):
        x, y = tl.load(where.x.high + a + first), tl.load(where.y.high + b + first)
        if where.x.low is None:
            total = tl.dot(x, y, total)
        else:
            part = tl.dot(tl.load(where.x.low + a + first), y)
            part = tl.dot(x, tl.load(where.y.low + b + first), part)
            total += tl.dot(x, y, part)
    s = total * (tl.load(where.x.factor + i)[:, None] * tl.load(where.y.factor + j)[None, :])
    return tl.clamp(s, -1.0, 1.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def rows_of(where, cell):
    """(first row of x, rows, first row of y, rows) of a cell."""
    x, y = tl.load(where.x_starts + cell), tl.load(where.y_starts + cell)
    return x, tl.load(where.x_starts + cell + 1) - x, y, tl.load(where.y_starts + cell + 1) - y


@triton.jit
def visit_pairs(
    where, args, TILE: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, SLICE: tl.constexpr
):
    """Grid (tiles)."""
    at = where.tiles + 3 * tl.program_id(0)
    cell, first_row, first_column = tl.load(at), tl.load(at + 1), tl.load(at + 2)
    x, n, y, m = rows_of(where, cell)
    s = similarities(where, x + first_row, y + first_column, QUERIES, KEYS, SLICE)
    i, j = first_row + tl.arange(0, QUERIES), first_column + tl.arange(0, KEYS)
    pair = (i < n)[:, None] & (j < m)[None, :]
    if where.itself:
        pair = pair & (i[:, None] < j[None, :] + where.diagonal)
    TILE(args, where, s, pair, i, j, (cell, x, y, m))
