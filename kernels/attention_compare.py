"""attention_compare: sums of P1 * P2, P1^2 and P2^2 over the maps of two models, head by head; float64 [3, B, H].

One visit of the rows of the first model, whose epilogue computes the second model's tile beside each tile: both
softmaxes run online, and the products of a row follow its largest scores. So each map is computed once, where
normalising both first would compute it twice. Rows are summed in float64 afterwards, each cell by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import triton
import triton.language as tl
from scfast.kernels.attention_rowstats import BLOCK, add_rows
from scfast.kernels.scores import HIDDEN, load_rows, score_tile

if TYPE_CHECKING:
    from scfast.kernels.batch import Batch

#: P1 * P2, P1^2, P2^2.
PRODUCTS = tl.constexpr(3)


class Compare(NamedTuple):
    """Arguments of the epilogue."""

    rows: Any  # float32 [Tq, 3, H]
    heads: Any  # H
    two: Any  # Where of the second model; last, because Triton 3.6 loses the constants of a tuple that others follow


@triton.jit
def _follow(largest, score):
    """(largest score so far, p un-normalised, factor of what was added up before)."""
    top = tl.maximum(largest, tl.max(score, 1))
    return top, tl.math.exp2(score - top[:, None]), tl.math.exp2(largest - top)


@triton.jit
def _inverse(largest, total):
    """1 / total; 0 for a row that sees no key, whose largest score is HIDDEN."""
    return tl.where((largest <= 0.5 * HIDDEN) & (total == total), 0.0, 1.0 / total)


@triton.jit
def compare_init(args, row, inside, head, cell):
    """(all rows are live, (of each model the largest score and the sum; products; the second one's q and keys)).

    Keys of the second model are counted by their end for each row: the first one that it does not see.
    """
    zero = tl.zeros([inside.shape[0]], tl.float32)
    first_query, _, first_key, n_keys, offset = cell
    end = tl.zeros([inside.shape[0]], tl.int32) + n_keys
    if args.two.causal:
        end = tl.minimum(row - first_query + offset + 1 + tl.arange(0, inside.shape[0]), n_keys)
    q = load_rows(
        args.two.q, row, inside, args.two.q_row, args.two.q_head, head, args.two.dim, args.two.width
    )
    return inside, (
        zero + HIDDEN,
        zero,
        zero + HIDDEN,
        zero,
        zero,
        zero,
        zero,
        q,
        row,
        inside,
        first_key + end,
    )


@triton.jit
def compare_tile(args, state, score, slope, k, key, seen, head):
    """Two exponentials and three multiply-adds for each element of the two maps."""
    largest1, total1, largest2, total2, dot, square1, square2, q, row, inside, end = state
    key_head = head // args.two.group
    k2 = load_rows(
        args.two.k, key, seen, args.two.k_row, args.two.k_head, key_head, args.two.dim, args.two.width
    )
    score2, _ = score_tile(args.two, q, row, inside, k2, key, seen, head, 1)
    if args.two.causal:
        score2 = tl.where((key + tl.arange(0, seen.shape[0]))[None, :] < end[:, None], score2, HIDDEN)
    else:
        score2 = tl.where(seen[None, :], score2, HIDDEN)
    largest1, p1, keep1 = _follow(largest1, score)
    largest2, p2, keep2 = _follow(largest2, score2)
    total1 = total1 * keep1 + tl.sum(p1, 1)
    total2 = total2 * keep2 + tl.sum(p2, 1)
    dot = dot * (keep1 * keep2) + tl.sum(p1 * p2, 1)
    square1 = square1 * (keep1 * keep1) + tl.sum(p1 * p1, 1)
    square2 = square2 * (keep2 * keep2) + tl.sum(p2 * p2, 1)
    return largest1, total1, largest2, total2, dot, square1, square2, q, row, inside, end


@triton.jit
def compare_done(args, state, row, inside, head):
    """Products of normalised rows."""
    largest1, total1, largest2, total2, dot, square1, square2, _, _, _, _ = state
    norm1, norm2 = _inverse(largest1, total1), _inverse(largest2, total2)
    at = args.rows + (row + tl.arange(0, inside.shape[0])).to(tl.int64) * (PRODUCTS * args.heads) + head
    tl.store(at, dot * norm1 * norm2, mask=inside)
    tl.store(at + args.heads, square1 * norm1 * norm1, mask=inside)
    tl.store(at + 2 * args.heads, square2 * norm2 * norm2, mask=inside)


#: The epilogue, as visit_rows takes it.
COMPARE = {"INIT": compare_init, "TILE": compare_tile, "DONE": compare_done}


def launch(one: Batch, two: Batch, rows: Any, sums: Any) -> None:
    """Sums float64 [B, 3, H], by way of rows float32 [Tq, 3, H].

    The visit goes no further than the first model sees: a causal one does not come before one that is not.
    """
    one = one._replace(bits=max(one.bits, two.bits))
    args = Compare(two=two.where, rows=rows, heads=one.heads)
    one.visit_rows("compare", one.heads, args, COMPARE, two.where.width.value)
    outs = PRODUCTS.value * one.heads
    if sums.shape[0]:
        add_rows[(sums.shape[0], outs)](rows, sums, one.where.cu_seqlens_q, outs, BLOCK=BLOCK)
