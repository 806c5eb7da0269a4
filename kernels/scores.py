"""Tiles of scores on a GPU: where a batch lies, how rows are loaded and multiplied, what the score options do."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
#: Score of a hidden key: finite, so that differences of two of them are 0 and not NaN.
HIDDEN = tl.constexpr(-1e30)
#: Key biases are cut off here, above HIDDEN: a row whose keys all have the lowest float32 still sees them.
LOWEST_BIAS = tl.constexpr(-1e29)
#: Products of float32 are unrolled multiply-adds. Heads wider than UNROLLED take theirs in a loop over slices of SLICE
#: dims, loaded anew each time: whole rows of both operands are more than the registers of a thread.
UNROLLED, SLICE = 64, 32


def padded(n: int) -> int:
    """The next power of two from 16: what tensor cores take."""
    return max(16, 1 << (n - 1).bit_length())


class Where(NamedTuple):
    """What both loops are told: pointers (None where there is none), strides in elements, constants."""

    tiles: Any  # int32 [n, 2]: (cell, first owned query or key within it); cell -1: nothing to do
    cu_seqlens_q: Any  # int32 [B + 1]
    cu_seqlens_k: Any  # int32 [B + 1]
    causal_offset: Any  # int32 [B]
    q: Any  # [Tq, H, D], unit stride along D
    q_row: Any
    q_head: Any
    k: Any  # [Tk, Hkv, D], unit stride along D
    k_row: Any
    k_head: Any
    bias: Any  # float32 [Tk, 1 or H]
    bias_row: Any
    bias_head: Any
    scale: Any  # log2 e * scale; under a softcap, scale / cap
    cap: Any  # log2 e * softcap
    shift: Any  # float32 [H, pitch]: what is subtracted from a row's scores; +inf: a row without keys
    norm: Any  # float32 [H, pitch]: 1 / (the row's sum of exponentials after the shift)
    pitch: Any
    factors: Any  # float32 [H]: of the heads, before they are fused
    span: Any  # constexpr: query heads that an owner visits
    group: Any  # constexpr: query heads that share a key head
    dim: Any  # constexpr: D
    width: Any  # constexpr: D, padded to a power of two of at least 16
    causal: Any  # constexpr
    fusion: Any  # constexpr: "none" (each head by itself), "sum", "max" or "min" of the heads of each element
    kind: Any  # constexpr: what is fused, as named in maps.py
    map: Any  # its tensors
    slice: Any  # constexpr: head dims of a product that are taken together
    precision: Any  # constexpr: of products of float32


def slice_of(bits: int, width: int) -> int:
    """Head dims of a product that are taken together, for elements of so many bits."""
    return SLICE if bits == 32 and width > UNROLLED else width


@triton.jit
def tile_pointers(base, row, n, row_stride, head_stride, head, width):
    """[n, width] of a packed [T, heads, dim] tensor from ``row`` on: what a loop need not compute anew is apart."""
    first = base + (tl.cast(row, tl.int64) * row_stride + tl.cast(head, tl.int64) * head_stride)
    return first + (tl.arange(0, n).to(tl.int64)[:, None] * row_stride + tl.arange(0, width)[None, :])


@triton.jit
def load_rows(base, row, mask, row_stride, head_stride, head, dim, width, first=0):
    """Columns ``first`` to first + width of rows from ``row`` on; zeros beyond dim and where masked [n]."""
    pointers = tile_pointers(base + first, row, mask.shape[0], row_stride, head_stride, head, width)
    if dim % width != 0:
        return tl.load(pointers, mask=mask[:, None] & (first + tl.arange(0, width)[None, :] < dim), other=0.0)
    return tl.load(pointers, mask=mask[:, None], other=0.0)


@triton.jit
def store_rows(base, row, mask, row_stride, head_stride, head, dim, width, values):
    """Counterpart of load_rows."""
    pointers = tile_pointers(base, row, mask.shape[0], row_stride, head_stride, head, width)
    tl.store(pointers, values, mask=mask[:, None] & (tl.arange(0, width)[None, :] < dim))


@triton.jit
def product(x, a, y, b, dim, width, slice, precision):
    """Product of tile x with the transpose of tile y. Where slices are narrower than rows, they are loaded one by one.

    a and b say from where: (base, row, mask, row stride, head stride, head). The whole x and y are then not needed, and
    what nobody needs is not loaded.
    """
    if slice == width:
        return tl.dot(x, tl.trans(y), input_precision=precision)
    a_base, a_row, a_mask, a_row_stride, a_head_stride, a_head = a
    b_base, b_row, b_mask, b_row_stride, b_head_stride, b_head = b
    total = tl.zeros([a_mask.shape[0], b_mask.shape[0]], tl.float32)
    for first in range(0, width, slice):
        part = load_rows(a_base, a_row, a_mask, a_row_stride, a_head_stride, a_head, dim, slice, first)
        other = load_rows(b_base, b_row, b_mask, b_row_stride, b_head_stride, b_head, dim, slice, first)
        total = tl.dot(part, tl.trans(other), total, input_precision=precision)
    return total


@triton.jit
def row_pointers(base, pitch, head, row, n):
    """Entries of n rows from ``row`` on in a [H, pitch] array: one address, so that offsets are immediate."""
    return base + (tl.cast(head, tl.int64) * pitch + row) + tl.arange(0, n)


@triton.jit
def live_rows(args, row, inside):
    """Rows to visit: all of the cell, or those that some set of weights counts."""
    live = inside
    if args.weights is not None:
        live = tl.zeros([inside.shape[0]], tl.int1)
        for n in range(args.sets):
            at = row_pointers(args.weights, args.weights_row, n, row, inside.shape[0])
            live = live | (tl.load(at, mask=inside, other=0.0) != 0)
    return live


@triton.jit
def tanh(x):
    """Relative error 3e-7: a series near 0, where the quotient of exponentials would cancel."""
    y = x * x
    tail = y * (-17.0 / 315 + y * (62.0 / 2835))
    series = x + x * y * (-1.0 / 3 + y * (2.0 / 15 + tail))
    e = tl.math.exp2(tl.abs(x) * (-2.0 * LOG2E))
    quotient = (1.0 - e) / (1.0 + e)
    return tl.where(y < 0.0625, series, tl.where(x < 0, -quotient, quotient))


@triton.jit
def score_tile(where, q, row, live, k, key, seen, head, KEY_AXIS: tl.constexpr):
    """(scores in units of log2, their slope): [KEYS, QUERIES] for KEY_AXIS 0, [QUERIES, KEYS] for 1."""
    rows = (where.q, row, live, where.q_row, where.q_head, head)
    keys = (where.k, key, seen, where.k_row, where.k_head, head // where.group)
    if KEY_AXIS == 0:
        score = product(k, keys, q, rows, where.dim, where.width, where.slice, where.precision)
    else:
        score = product(q, rows, k, keys, where.dim, where.width, where.slice, where.precision)
    slope = 1.0
    score = score * where.scale
    if where.cap is not None:
        bent = tanh(score)
        slope = 1.0 - bent * bent
        score = bent * where.cap
    if where.bias is not None:
        at = tl.cast(key, tl.int64) * where.bias_row + tl.cast(head, tl.int64) * where.bias_head
        at = where.bias + at + tl.arange(0, seen.shape[0]) * where.bias_row
        bias = tl.load(at, mask=seen, other=0.0) * LOG2E
        score += tl.expand_dims(
            tl.maximum(bias, LOWEST_BIAS, propagate_nan=tl.PropagateNan.ALL), 1 - KEY_AXIS
        )
    return score, slope


@triton.jit
def cell_at(where, cell):
    """(first query, queries, first key, keys, causal offset) of a cell."""
    query, key = tl.load(where.cu_seqlens_q + cell), tl.load(where.cu_seqlens_k + cell)
    n_queries = tl.load(where.cu_seqlens_q + cell + 1) - query
    n_keys = tl.load(where.cu_seqlens_k + cell + 1) - key
    return query, n_queries, key, n_keys, tl.load(where.causal_offset + cell)
