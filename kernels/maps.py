"""Maps of attention in which heads meet: what a tile of them is, and what is made ready before they are visited.

    prob        p_h                                                    fused over heads by sum, max or min
    relevance   p_h <d_out_h, v_h>, its positive part unless signed    fused over heads by sum, max or min
    head norm   |p_h| sqrt(G_hh) row_scale                             of each head by itself
    norm        sqrt(p^T G p) row_scale                                of all heads at once

with p_h times the head's factor, and G [H, H] the inner products of a key's vectors (Kobayashi et al. 2020; Chefer et
al. 2021). A norm needs H (H + 1) / 2 multiply-adds for a pair of query and key. A block of heads is held in registers;
the heads after it are computed once more, one by one, so that any number of heads fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import triton
import triton.language as tl
from scfast.kernels.scores import (
    LOG2E,
    cell_at,
    load_rows,
    padded,
    product,
    row_pointers,
    score_tile,
    slice_of,
)
from triton.language import constexpr

if TYPE_CHECKING:
    from scfast.kernels.batch import Batch

#: Inner products are held times this over the largest of a key's squares, so that squares of probabilities down to
#: 1e-31 stay normal numbers; its root.
LIFT, ROOT_OF_LIFT = tl.constexpr(2.0**80), tl.constexpr(2.0**40)
#: Heads of a norm that are held at once, at most.
BLOCK_OF_HEADS = 8
#: Queries, or keys, per program of the kernels without a loop over a map.
ROWS = 32


class Relevance(NamedTuple):
    """Tensors of the maps of relevance."""

    v: Any  # [Tk, Hkv, Dv], unit stride along Dv
    v_row: Any
    v_head: Any
    d_out: Any  # [Tq, H, Dv], unit stride along Dv
    d_row: Any
    d_head: Any
    dim: Any  # constexpr: Dv
    width: Any  # constexpr: Dv, padded to a power of two of at least 16
    slice: Any  # constexpr
    positive: Any  # constexpr: the positive part alone


class Norm(NamedTuple):
    """Tensors of the maps of norms."""

    gram: Any  # float32 [H (H + 1) / 2, pitch]: lower triangle of G, both halves in it, lifted; None for head norms
    size: Any  # float32 [pitch]: what takes the lift back; for head norms [H, pitch], sqrt(G_hh)
    pitch: Any
    row_scale: Any  # float32 [Tq], None: 1
    own_key: Any  # int32 [Tq]: key whose element has terms of its own; None: no element has
    own: Any  # float32 [Tq]: that element
    block: Any  # constexpr: heads held at once


@triton.jit
def fused_tile(where, row, live, key, seen, owner, KEY_AXIS: tl.constexpr):
    """The fused map of a tile from ``row`` on, its heads one after another; axes as in score_tile."""
    if where.kind == "norm":
        return _norm_tile(where, row, live, key, seen, KEY_AXIS)
    first = owner * where.span
    fused = _head_tile(where, row, live, key, seen, first, KEY_AXIS)
    for n in range(1, where.span):
        p = _head_tile(where, row, live, key, seen, first + n, KEY_AXIS)
        if where.fusion == "max":
            fused = tl.maximum(fused, p, propagate_nan=tl.PropagateNan.ALL)
        elif where.fusion == "min":
            fused = tl.minimum(fused, p, propagate_nan=tl.PropagateNan.ALL)
        else:
            fused += p
    return fused


@triton.jit
def _head_tile(where, row, live, key, seen, head, KEY_AXIS: tl.constexpr):
    p = _probabilities(where, row, live, key, seen, head, KEY_AXIS)
    if where.kind == "relevance":
        gradient = _gradient(where.map, row, live, key, seen, head, where.group, where.precision, KEY_AXIS)
        if where.map.positive:
            gradient = tl.maximum(gradient, 0.0, propagate_nan=tl.PropagateNan.ALL)
        p *= gradient
    elif where.kind == "head norm":
        length = row_pointers(where.map.size, where.map.pitch, head, key, seen.shape[0])
        p = tl.abs(p) * tl.expand_dims(tl.load(length, mask=seen, other=0.0), 1 - KEY_AXIS)
        p = _scale_rows(where.map, p, row, live, KEY_AXIS)
    return p


@triton.jit
def _gradient(map, row, live, key, seen, head, group, precision, KEY_AXIS: tl.constexpr):
    """Of the probabilities: <d_out, v>."""
    d_out = load_rows(map.d_out, row, live, map.d_row, map.d_head, head, map.dim, map.width)
    v = load_rows(map.v, key, seen, map.v_row, map.v_head, head // group, map.dim, map.width)
    rows = (map.d_out, row, live, map.d_row, map.d_head, head)
    keys = (map.v, key, seen, map.v_row, map.v_head, head // group)
    if KEY_AXIS == 0:
        gradient = product(v, keys, d_out, rows, map.dim, map.width, map.slice, precision)
    else:
        gradient = product(d_out, rows, v, keys, map.dim, map.width, map.slice, precision)
    return gradient


@triton.jit
def _probabilities(where, row, live, key, seen, head, KEY_AXIS: tl.constexpr):
    """Of one head, times its factor."""
    q = load_rows(where.q, row, live, where.q_row, where.q_head, head, where.dim, where.width)
    k = load_rows(where.k, key, seen, where.k_row, where.k_head, head // where.group, where.dim, where.width)
    score, _ = score_tile(where, q, row, live, k, key, seen, head, KEY_AXIS)
    n: tl.constexpr = live.shape[0]
    shift = tl.load(row_pointers(where.shift, where.pitch, head, row, n), mask=live, other=float("inf"))
    norm = tl.load(row_pointers(where.norm, where.pitch, head, row, n), mask=live, other=0.0)
    if where.factors is not None:
        norm *= tl.load(where.factors + head)
    return tl.math.exp2(score - tl.expand_dims(shift, KEY_AXIS)) * tl.expand_dims(norm, KEY_AXIS)


@triton.jit
def _scale_rows(map, element, row, live, KEY_AXIS: tl.constexpr):
    if map.row_scale is not None:
        scale = tl.load(map.row_scale + row + tl.arange(0, live.shape[0]), mask=live, other=0.0)
        element *= tl.expand_dims(scale, KEY_AXIS)
    return element


@triton.jit
def _products(where, held, last, first, head, key, seen, KEY_AXIS: tl.constexpr):
    """Sum over the held heads g, from ``last`` down to ``first``, of G[head, g] p_g; an entry of G for every key."""
    row = head * (head + 1) // 2  # of the triangle
    total = tl.zeros(held[0].shape, tl.float32)
    for k in tl.static_range(0, where.map.block):
        g = last - k
        entry = row_pointers(where.map.gram, where.map.pitch, row + tl.maximum(g, 0), key, seen.shape[0])
        entry = tl.load(entry, mask=seen & (g >= first), other=0.0)
        total += held[k] * tl.expand_dims(entry, 1 - KEY_AXIS)
    return total


@triton.jit
def _norm_tile(where, row, live, key, seen, KEY_AXIS: tl.constexpr):
    n_queries: tl.constexpr = live.shape[0]
    n_keys: tl.constexpr = seen.shape[0]
    square = tl.zeros([n_keys, n_queries] if KEY_AXIS == 0 else [n_queries, n_keys], tl.float32)
    held = ()  # tiles of the last heads, the latest first
    for _ in tl.static_range(0, where.map.block):
        held = held + (square,)  # noqa: RUF005 - a star means nothing to Triton
    for first in range(0, where.span, where.map.block):
        end = tl.minimum(first + where.map.block, where.span)
        for head in range(first, end):
            p = _probabilities(where, row, live, key, seen, head, KEY_AXIS)
            shifted = (p,)
            for k in tl.static_range(0, where.map.block - 1):
                shifted = shifted + (held[k],)  # noqa: RUF005
            held = shifted
            others = _products(where, held, head, first, head, key, seen, KEY_AXIS)
            square += p * others
        for head in range(end, where.span):
            p = _probabilities(where, row, live, key, seen, head, KEY_AXIS)
            square += p * _products(where, held, end - 1, first, head, key, seen, KEY_AXIS)
    size = tl.load(where.map.size + key + tl.arange(0, n_keys), mask=seen, other=0.0)
    norm = tl.sqrt(tl.maximum(square, 0.0, propagate_nan=tl.PropagateNan.ALL))
    norm = _scale_rows(where.map, norm * tl.expand_dims(size, 1 - KEY_AXIS), row, live, KEY_AXIS)
    if where.map.own_key is not None:
        rows = row + tl.arange(0, n_queries)
        own_key = tl.expand_dims(tl.load(where.map.own_key + rows, mask=live, other=-1), KEY_AXIS)
        own = tl.expand_dims(tl.load(where.map.own + rows, mask=live, other=0.0), KEY_AXIS)
        norm = tl.where(tl.expand_dims(key + tl.arange(0, n_keys), 1 - KEY_AXIS) == own_key, own, norm)
    return norm


@triton.jit
def _root(square):
    return tl.where(square < 0, 0.0, tl.sqrt(square))


@triton.jit
def pack_gram(gram, packed, size, pitch, total_k, heads, TOGETHER: tl.constexpr, BLOCK: tl.constexpr):
    """G [Tk, H, H] as Norm holds it: keys side by side. Grid (blocks of keys)."""
    key = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = key < total_k
    at = gram + key.to(tl.int64) * heads * heads
    largest = tl.zeros([BLOCK], tl.float32)
    for h in range(heads):
        square = tl.load(at + h * (heads + 1), mask=inside, other=0.0)
        if TOGETHER:
            largest = tl.maximum(largest, square)
        else:
            tl.store(size + tl.cast(h, tl.int64) * pitch + key, _root(square), mask=inside)
    if TOGETHER:
        largest = tl.where(largest >= 1.1754944e-38, largest, 1.0)  # of a key without vectors, any
        tl.store(size + key, tl.sqrt(largest) / ROOT_OF_LIFT, mask=inside)
        for h in range(heads):
            for g in range(h + 1):
                entry = tl.load(at + h * heads + g, mask=inside, other=0.0)
                mirrored = tl.load(at + g * heads + h, mask=inside, other=0.0)
                entry = tl.where(g < h, entry + mirrored, entry)
                pair = tl.cast(h * (h + 1) // 2 + g, tl.int64)
                tl.store(packed + pair * pitch + key, entry / largest * LIFT, mask=inside)


@triton.jit
def shift_of_lse(lse, shift, norm, pitch, total_q, heads, BLOCK: tl.constexpr):
    """What normalises a row, from its log-sum-exp [Tq, H]. Grid (blocks of queries, heads)."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    head, inside = tl.program_id(1), row < total_q
    x = tl.load(lse + row.to(tl.int64) * heads + head, mask=inside, other=0.0)
    empty = x == float("-inf")
    at = tl.cast(head, tl.int64) * pitch + row
    tl.store(shift + at, tl.where(empty, float("inf"), x * LOG2E), mask=inside)
    tl.store(norm + at, tl.where(empty, 0.0, 1.0), mask=inside)


@triton.jit
def own_probabilities(where, own_key, p, QUERIES: tl.constexpr):
    """Entries p [H, pitch] of queries and their own keys, own_key [Tq]: j = i + causal offset.

    Grid (tiles of queries, heads).
    """
    cell = tl.load(where.tiles + 2 * tl.program_id(0))
    if cell < 0:
        return
    head = tl.program_id(1)
    first_query, n_queries, first_key, n_keys, offset = cell_at(where, cell)
    first = tl.load(where.tiles + 2 * tl.program_id(0) + 1)
    i = first + tl.arange(0, QUERIES)
    inside, seen = i < n_queries, (i < n_queries) & (i + offset >= 0) & (i + offset < n_keys)
    row, key = first_query + first, first_key + first + offset
    tile = _probabilities(where, row, inside, key, seen, head, 1)
    n = tl.arange(0, QUERIES)
    own = tl.where(seen, tl.sum(tl.where(n[:, None] == n[None, :], tile, 0.0), 1), 0.0)
    tl.store(row_pointers(p, where.pitch, head, row, QUERIES), own, mask=inside)
    if head == 0:
        tl.store(own_key + row + n, tl.where(seen, key + n, -1), mask=inside)


@triton.jit
def own_norms(p, pitch, gram, linear, constant, row_scale, own_key, own, total_q, heads, BLOCK: tl.constexpr):
    """Elements with terms of their own, in float64, as these may cancel. Grid (blocks of queries)."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    key = tl.load(own_key + row, mask=row < total_q, other=-1)
    inside = key >= 0
    square = tl.zeros([BLOCK], tl.float64)
    if constant is not None:
        square += tl.load(constant + row, mask=inside, other=0.0).to(tl.float64)
    for h in range(heads):
        inner = tl.zeros([BLOCK], tl.float64)
        if linear is not None:
            inner += tl.load(linear + row.to(tl.int64) * heads + h, mask=inside, other=0.0).to(tl.float64)
        at = gram + (key.to(tl.int64) * heads + h) * heads
        for g in range(heads):
            entry = tl.load(at + g, mask=inside, other=0.0).to(tl.float64)
            inner += entry * tl.load(p + tl.cast(g, tl.int64) * pitch + row, mask=inside, other=0.0)
        square += inner * tl.load(p + tl.cast(h, tl.int64) * pitch + row, mask=inside, other=0.0)
    element = _root(square.to(tl.float32))
    if row_scale is not None:
        element *= tl.load(row_scale + row, mask=inside, other=0.0)
    tl.store(own + row, element, mask=inside)


def normalise(batch: Batch, tensors: Sequence[Any], like: Any, weights: Any = None) -> Batch:
    """The batch with shift and norm of every row: from the log-sum-exp among a map's tensors, or by a visit of rows.

    A visit leaves out rows of weight zero in all sets [R, Tq].
    """
    lse = tensors[-1] if tensors else None
    if lse is None:
        return batch.normalise(like, weights)
    (total_q, heads), shift, norm = lse.shape, batch.scratch(lse), batch.scratch(lse)
    if total_q:
        grid = (triton.cdiv(total_q, ROWS), heads)
        shift_of_lse[grid](lse, shift, norm, batch.where.pitch, total_q, heads, BLOCK=ROWS)
    return batch._replace(where=batch.where._replace(shift=shift, norm=norm))


def fuse(
    batch: Batch, kind: str, tensors: Sequence[Any], fusion: str | None, outs: int, factors: Any
) -> Batch:
    """The normalised batch, its heads fused to ``outs``, with a map: its kind and tensors as the ops list them."""
    batch = batch.fuse(fusion or "sum", batch.heads // outs, factors)
    if kind == "prob":
        return batch
    if kind == "norm":
        return _norms(batch, *tensors[:-1])
    return _relevance(batch, *tensors[:-1], positive=kind == "relevance")


def _relevance(batch: Batch, v: Any, d_out: Any, positive: bool) -> Batch:
    dim, width = v.shape[2], padded(v.shape[2])
    map = Relevance(
        v=v, v_row=v.stride(0), v_head=v.stride(1), d_out=d_out, d_row=d_out.stride(0), d_head=d_out.stride(1),
        dim=constexpr(dim), width=constexpr(width), slice=constexpr(slice_of(batch.bits, width)),
        positive=constexpr(positive),
    )  # fmt: skip
    where = batch.where._replace(kind=constexpr("relevance"), map=map)
    return batch._replace(where=where, visited="relevance", widest=width)


def _norms(batch: Batch, gram: Any, linear: Any, constant: Any, row_scale: Any) -> Batch:
    """Every tensor is contiguous. Heads that are not fused have norms of their own."""
    total_k, heads = gram.shape[:2]
    together = batch.where.span.value == heads
    pitch = -(-max(total_k, 1) // 16) * 16
    packed = gram.new_empty((heads * (heads + 1) // 2, pitch)) if together else None
    size = gram.new_empty((1 if together else heads, pitch))
    if total_k:
        grid = (triton.cdiv(total_k, ROWS),)
        pack_gram[grid](gram, packed, size, pitch, total_k, heads, TOGETHER=together, BLOCK=ROWS)
    own_key, own = None, None
    if linear is not None or constant is not None:
        own_key, own = _own_elements(batch, gram, linear, constant, row_scale)
    blocks = -(-heads // BLOCK_OF_HEADS)
    map = Norm(
        gram=packed, size=size, pitch=pitch, row_scale=row_scale, own_key=own_key, own=own,
        block=constexpr(-(-heads // blocks)),
    )  # fmt: skip
    where = batch.where._replace(kind=constexpr("norm" if together else "head norm"), map=map)
    return batch._replace(where=where, visited="norm" if together else "fused")


def _own_elements(batch: Batch, gram: Any, linear: Any, constant: Any, row_scale: Any) -> tuple[Any, Any]:
    """(key of every query whose element has terms of its own, int32 [Tq]; that element [Tq])."""
    tiles, p = batch.work_list("queries", ROWS), batch.scratch(gram)
    total_q, heads = batch.where.q.shape[:2]
    own_key, own = tiles.new_empty((total_q,)), gram.new_empty((total_q,))
    if total_q:
        where = batch.where._replace(tiles=tiles)
        own_probabilities[(tiles.shape[0], heads)](where, own_key, p, QUERIES=ROWS)
        own_norms[(triton.cdiv(total_q, ROWS),)](
            p, where.pitch, gram, linear, constant, row_scale, own_key, own, total_q, heads, BLOCK=ROWS
        )
    return own_key, own
