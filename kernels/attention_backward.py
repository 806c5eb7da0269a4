"""attention_backward: dq, dk, dv from the saved lse, without the map.

    p = exp(s - lse)    dv = p^T d_out    ds = p * (d_out v^T - delta) * slope    dq = scale ds k    dk = scale ds^T q

with delta = <d_out, out> (Dao et al. 2022, FlashAttention, algorithm 4). Two visits, each owner alone with what it
writes: the query-stationary one gives dq and leaves delta and the shift of every row (lse in units of log2; +inf
without keys); the key-stationary one gives dk and dv, and goes through the query heads of a key head in turn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import triton
import triton.language as tl
from scfast.kernels.scores import LOG2E, load_rows, padded, product, row_pointers, slice_of, store_rows
from triton.language import constexpr

if TYPE_CHECKING:
    from scfast.kernels.batch import Batch


class Backward(NamedTuple):
    """Arguments of both epilogues."""

    v: Any  # [Tk, Hkv, Dv], unit stride along Dv
    v_row: Any
    v_head: Any
    d_out: Any  # [Tq, H, Dv], contiguous, as is out
    out: Any
    lse: Any  # float32 [Tq, H]
    delta: Any  # float32 [H, pitch]
    shift: Any  # float32 [H, pitch]
    pitch: Any
    dq: Any  # [Tq, H, D], contiguous
    dk: Any  # [Tk, Hkv, D], contiguous
    dv: Any  # [Tk, Hkv, Dv], contiguous
    scale: Any
    heads: Any  # H
    kv_heads: Any  # Hkv
    group: Any  # constexpr: H / Hkv
    dim: Any  # constexpr: D
    width: Any  # constexpr
    dim_v: Any  # constexpr: Dv
    width_v: Any  # constexpr
    slice_v: Any  # constexpr
    precision: Any  # constexpr


@triton.jit
def _d_out_at(args, row, mask, head):
    return args.d_out, row, mask, args.heads * args.dim_v, args.dim_v, head


@triton.jit
def _values_at(args, key, mask, head):
    return args.v, key, mask, args.v_row, args.v_head, head


@triton.jit
def _d_out(args, row, mask, head):
    return load_rows(
        args.d_out, row, mask, args.heads * args.dim_v, args.dim_v, head, args.dim_v, args.width_v
    )


@triton.jit
def queries_init(args, row, inside, head, cell):
    """(live, (dq, shift, delta, d_out, row, inside))."""
    d_out = _d_out(args, row, inside, head)
    out = load_rows(
        args.out, row, inside, args.heads * args.dim_v, args.dim_v, head, args.dim_v, args.width_v
    )
    delta = tl.sum(d_out.to(tl.float32) * out.to(tl.float32), 1)
    n: tl.constexpr = inside.shape[0]
    at = (row + tl.arange(0, n)).to(tl.int64) * args.heads + head
    lse = tl.load(args.lse + at, mask=inside, other=float("-inf"))
    shift = tl.where(lse == float("-inf"), float("inf"), lse * LOG2E)
    tl.store(row_pointers(args.delta, args.pitch, head, row, n), delta, mask=inside)
    tl.store(row_pointers(args.shift, args.pitch, head, row, n), shift, mask=inside)
    return inside, (tl.zeros([n, args.width], tl.float32), shift, delta, d_out, row, inside)


@triton.jit
def queries_tile(args, state, score, slope, k, key, seen, head):
    """dq, without its scale."""
    dq, shift, delta, d_out, row, inside = state
    p = tl.math.exp2(score - shift[:, None])
    v = load_rows(args.v, key, seen, args.v_row, args.v_head, head // args.group, args.dim_v, args.width_v)
    rows, values = _d_out_at(args, row, inside, head), _values_at(args, key, seen, head // args.group)
    dp = product(d_out, rows, v, values, args.dim_v, args.width_v, args.slice_v, args.precision)
    ds = p * (dp - delta[:, None]) * slope
    dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=args.precision)
    return dq, shift, delta, d_out, row, inside


@triton.jit
def queries_done(args, state, row, inside, head):
    """Rows without keys have a gradient of 0."""
    store_rows(
        args.dq,
        row,
        inside,
        args.heads * args.dim,
        args.dim,
        head,
        args.dim,
        args.width,
        state[0] * args.scale,
    )


@triton.jit
def keys_init(args, key, seen, owner, QUERIES: tl.constexpr):
    """(dk, dv, v, where v lies)."""
    v = load_rows(args.v, key, seen, args.v_row, args.v_head, owner, args.dim_v, args.width_v)
    dk = tl.zeros([seen.shape[0], args.width], tl.float32)
    return dk, tl.zeros([seen.shape[0], args.width_v], tl.float32), v, _values_at(args, key, seen, owner)


@triton.jit
def keys_rows(args, row, inside, head):
    """(rows of the cell, (delta, d_out, where d_out lies))."""
    at = row_pointers(args.delta, args.pitch, head, row, inside.shape[0])
    delta = tl.load(at, mask=inside, other=0.0)
    return inside, (delta, _d_out(args, row, inside, head), _d_out_at(args, row, inside, head))


@triton.jit
def keys_tile(args, state, p, slope, q, brought):
    """The map is p [KEYS, QUERIES]; dk without its scale."""
    dk, dv, v, values = state
    delta, d_out, rows = brought
    dv = tl.dot(p.to(d_out.dtype), d_out, dv, input_precision=args.precision)
    dp = product(v, values, d_out, rows, args.dim_v, args.width_v, args.slice_v, args.precision)
    ds = p * (dp - delta[None, :]) * slope
    return tl.dot(ds.to(q.dtype), q, dk, input_precision=args.precision), dv, v, values


@triton.jit
def keys_done(args, state, key, seen, owner):
    """Keys that no query sees have gradients of 0."""
    dk, dv, _, _ = state
    store_rows(
        args.dk, key, seen, args.kv_heads * args.dim, args.dim, owner, args.dim, args.width, dk * args.scale
    )
    store_rows(
        args.dv, key, seen, args.kv_heads * args.dim_v, args.dim_v, owner, args.dim_v, args.width_v, dv
    )


#: The epilogues, as visit_rows and visit_keys take them.
QUERIES = {"INIT": queries_init, "TILE": queries_tile, "DONE": queries_done}
KEYS = {"INIT": keys_init, "ROWS": keys_rows, "TILE": keys_tile, "DONE": keys_done}


def launch(
    batch: Batch, d_out: Any, v: Any, out: Any, lse: Any, scale: float, dq: Any, dk: Any, dv: Any
) -> None:
    """All three gradients; every tensor but v contiguous."""
    where = batch.where
    kv_heads, dim_v = v.shape[1:]
    width_v = padded(dim_v)
    args = Backward(
        v=v, v_row=v.stride(0), v_head=v.stride(1), d_out=d_out, out=out, lse=lse,
        delta=batch.scratch(lse), shift=batch.scratch(lse), pitch=where.pitch, dq=dq, dk=dk, dv=dv, scale=scale,
        heads=batch.heads, kv_heads=kv_heads, group=where.group, dim=where.dim, width=where.width,
        dim_v=constexpr(dim_v), width_v=constexpr(width_v), slice_v=constexpr(slice_of(batch.bits, width_v)),
        precision=where.precision,
    )  # fmt: skip
    batch.visit_rows("backward rows", batch.heads, args, QUERIES, width_v)
    batch.visit_keys(
        "backward keys", kv_heads, args, KEYS, width_v, shift=args.shift, span=where.group
    )  # an owner is a key head
