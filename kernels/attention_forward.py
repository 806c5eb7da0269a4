"""attention_forward: online softmax over the rows of each head, with values and statistics on request.

One epilogue of visit_rows serves three purposes: the forward pass; the row pass that column sums and fused statistics
begin with (no values; only ``shift`` and ``norm`` are written); and the statistics of heads by themselves. Outputs
that are None are not computed. lse is a natural logarithm, entropy in nats, max = 1 / sum of exp(score - largest
score). Rows without keys: out 0, lse -inf, statistics 0, shift +inf. Sources: Milakov & Gimelshein 2018; Dao et al.
2022, FlashAttention.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import triton
import triton.language as tl
from scfast.kernels import attention_colsum
from scfast.kernels.scores import HIDDEN, LN2, live_rows, load_rows, padded, row_pointers, store_rows
from triton.language import constexpr

if TYPE_CHECKING:
    from scfast.kernels.batch import Batch


class Softmax(NamedTuple):
    """Arguments of the epilogue."""

    v: Any = None  # [Tk, Hkv, Dv], unit stride along Dv
    v_row: Any = None
    v_head: Any = None
    out: Any = None  # [Tq, H, Dv], contiguous, dtype of v
    dim: Any = None  # constexpr: Dv
    width: Any = None  # constexpr: Dv, padded to a power of two of at least 16
    group: Any = None  # constexpr
    precision: Any = None  # constexpr
    heads: Any = None  # H
    lse: Any = None  # float32 [Tq, H]
    entropy: Any = None  # float32 [Tq, H]
    max: Any = None  # float32 [Tq, H]
    self_weight: Any = None  # float32 [Tq, H]: the entry at the query's own key, j = i + causal_offset
    row_sum: Any = None  # float32 [Tq, H]
    shift: Any = None  # float32 [H, pitch], as in Where
    norm: Any = None  # float32 [H, pitch]
    pitch: Any = None
    weights: Any = None  # float32 [R, Tq]: rows of weight zero in every set are left out
    weights_row: Any = None
    sets: Any = None  # R


@triton.jit
def softmax_init(args, row, inside, head, cell):
    """(live, (largest score, sums of exponential, of it * score, of it * value, own score, own key))."""
    zero = tl.zeros([inside.shape[0]], tl.float32)
    values = zero if args.v is None else tl.zeros([inside.shape[0], args.width], tl.float32)
    first_query, _, first_key, n_keys, offset = cell
    own = row - first_query + offset + tl.arange(0, inside.shape[0])
    own = tl.where((own >= 0) & (own < n_keys), first_key + own, -1)
    return live_rows(args, row, inside), (zero + HIDDEN, zero, zero, values, zero + HIDDEN, own)


@triton.jit
def softmax_tile(args, state, score, slope, k, key, seen, head):
    """Online softmax: what was added up under a smaller maximum is scaled down."""
    largest, total, spread, values, own_score, own = state
    if args.self_weight is not None:
        keys = key + tl.arange(0, seen.shape[0])
        own_score = tl.maximum(own_score, tl.max(tl.where(keys[None, :] == own[:, None], score, HIDDEN), 1))
    top = tl.maximum(largest, tl.max(score, 1))
    depth = score - top[:, None]
    p = tl.math.exp2(depth)
    decay = tl.math.exp2(largest - top)
    if args.entropy is not None:
        spread = decay * (spread + (largest - top) * total) + tl.sum(p * depth, 1)
    total = total * decay + tl.sum(p, 1)
    if args.v is not None:
        v = load_rows(args.v, key, seen, args.v_row, args.v_head, head // args.group, args.dim, args.width)
        values = tl.dot(p.to(v.dtype), v, values * decay[:, None], input_precision=args.precision)
    return top, total, spread, values, own_score, own


@triton.jit
def softmax_done(args, state, row, inside, head):
    """Rows that saw no key have HIDDEN as their largest score; NaN in their sum sets broken rows apart."""
    largest, total, spread, values, own_score, _ = state
    empty = (largest <= 0.5 * HIDDEN) & (total == total)
    norm = tl.where(empty, 0.0, 1.0 / total)
    at = (row + tl.arange(0, inside.shape[0])).to(tl.int64) * args.heads + head
    if args.lse is not None:
        lse = tl.where(empty, float("-inf"), (largest + tl.log2(total)) * LN2)
        tl.store(args.lse + at, lse, mask=inside)
    if args.entropy is not None:
        entropy = tl.where(empty, 0.0, (tl.log2(total) - spread / total) * LN2)
        tl.store(args.entropy + at, entropy, mask=inside)
    if args.max is not None:
        tl.store(args.max + at, norm, mask=inside)
    if args.self_weight is not None:
        tl.store(args.self_weight + at, tl.math.exp2(own_score - largest) * norm, mask=inside)
    if args.row_sum is not None:
        tl.store(args.row_sum + at, total * norm, mask=inside)
    if args.shift is not None:
        shift = row_pointers(args.shift, args.pitch, head, row, inside.shape[0])
        tl.store(shift, tl.where(empty, float("inf"), largest), mask=inside)
        tl.store(row_pointers(args.norm, args.pitch, head, row, inside.shape[0]), norm, mask=inside)
    if args.v is not None:
        out = tl.where(empty[:, None], 0.0, values * norm[:, None])
        store_rows(args.out, row, inside, args.heads * args.dim, args.dim, head, args.dim, args.width, out)


#: The epilogue, as visit_rows takes it.
SOFTMAX = {"INIT": softmax_init, "TILE": softmax_tile, "DONE": softmax_done}


def launch(
    batch: Batch, v: Any, out: Any, lse: Any, received: Any = None, entropy: Any = None, max: Any = None
) -> None:
    """Everything that is not None; ``received`` [H, Tk] needs the final sums of each row: a second visit."""
    width = padded(v.shape[2])
    if received is not None:
        shift, norm = batch.scratch(lse), batch.scratch(lse)
        batch = batch._replace(where=batch.where._replace(shift=shift, norm=norm))
    args = Softmax(
        v=v, v_row=v.stride(0), v_head=v.stride(1), out=out, dim=constexpr(v.shape[2]), width=constexpr(width),
        group=batch.where.group, precision=batch.where.precision, heads=batch.heads,
        lse=lse, entropy=entropy, max=max,
        shift=batch.where.shift, norm=batch.where.norm, pitch=batch.where.pitch,
    )  # fmt: skip
    batch.visit_rows("forward", batch.heads, args, SOFTMAX, width)
    if received is not None:
        weights = batch.where.norm  # of rows that weigh 1
        attention_colsum.sum_columns(batch, batch.heads, received[None], weights, (0, batch.where.pitch))
