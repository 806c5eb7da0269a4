"""attention_colsum: sums[r, hout, j] = sum_i row_weights[r, i] * A[i, j], A the fused map; float32.

A row pass leaves shift and norm; the key-stationary pass adds up weight * norm * exp2(score - shift). The maps of the
heads are added afterwards, in index order, unless the fusion (max, min) or the map needs them side by side. The
rollout step is a * (r'^T A) + (1 - a) * r' with r' = r / (a * rho + 1 - a), rho the row sums of A (Abnar & Zuidema
2020).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import triton
import triton.language as tl
from scfast.kernels import attention_rowstats, maps
from scfast.kernels.scores import cell_at, padded, row_pointers
from triton.language import constexpr

if TYPE_CHECKING:
    from scfast.kernels.batch import Batch

#: Tokens per program of the kernels without a loop over a map.
BLOCK = 256
#: Sets of weights in a visit: with more of them the sums no longer fit a program's registers.
SETS = 64


class Colsum(NamedTuple):
    """Arguments of the epilogues: one set of weights, or many."""

    weights: Any  # float32 [R, Hw, pitch_w]: of rows of the map that the visit sees; see weigh_rows
    set_stride: Any  # elements from one set to the next
    head_stride: Any  # elements from one head to the next: 0 where heads share their weights
    sets: Any  # R
    padded: Any  # constexpr: R, padded to a power of two of at least 16
    norm: Any  # float32 [H, pitch], for many sets; None where the map is normalised already
    pitch: Any
    sums: Any  # float32 [R, slots, Tk]
    slots: Any  # heads, or 1
    total_k: Any


@triton.jit
def one_init(args, key, seen, owner, QUERIES: tl.constexpr):
    """[KEYS, QUERIES]: the sum over queries waits until the loop is over."""
    return (tl.zeros([seen.shape[0], QUERIES], tl.float32),)


@triton.jit
def one_rows(args, row, inside, head):
    """(rows that count, weights [QUERIES]): a weight holds the row's norm."""
    at = row_pointers(args.weights, args.head_stride, head, row, inside.shape[0])
    weight = tl.load(at, mask=inside, other=0.0)
    return weight != 0, weight


@triton.jit
def one_tile(args, state, p, slope, q, weight):
    """A multiply-add for each element."""
    return (state[0] + p * weight[None, :],)


@triton.jit
def one_done(args, state, key, seen, owner):
    """Column sums [KEYS] of the set."""
    at = row_pointers(args.sums, args.total_k, owner, key, seen.shape[0])
    tl.store(at, tl.sum(state[0], 1), mask=seen)


@triton.jit
def many_init(args, key, seen, owner, QUERIES: tl.constexpr):
    """[KEYS, padded]."""
    return (tl.zeros([seen.shape[0], args.padded], tl.float32),)


@triton.jit
def many_rows(args, row, inside, head):
    """(rows that count in any set, weight * norm [QUERIES, padded])."""
    n = tl.arange(0, args.padded)
    at = row_pointers(args.weights, args.head_stride, head, row, inside.shape[0])
    at = at[:, None] + n.to(tl.int64)[None, :] * args.set_stride
    weights = tl.load(at, mask=inside[:, None] & (n[None, :] < args.sets), other=0.0)
    live = tl.max((weights != 0).to(tl.int32), 1) > 0
    if args.norm is not None:
        norm = row_pointers(args.norm, args.pitch, head, row, inside.shape[0])
        weights *= tl.load(norm, mask=live, other=0.0)[:, None]
    return live, weights


@triton.jit
def many_tile(args, state, p, slope, q, weights):
    """Three products of tf32 keep the probabilities to float32's precision, on tensor cores."""
    return (tl.dot(p, weights, state[0], input_precision="tf32x3"),)


@triton.jit
def many_done(args, state, key, seen, owner):
    """Column sums [KEYS, padded] of all sets."""
    n = tl.arange(0, args.padded)
    slot = n.to(tl.int64)[None, :] * args.slots + owner
    at = slot * args.total_k + (key + tl.arange(0, seen.shape[0]))[:, None]
    tl.store(args.sums + at, state[0], mask=seen[:, None] & (n[None, :] < args.sets))


#: The epilogues, as visit_keys takes them.
ONE = {"INIT": one_init, "ROWS": one_rows, "TILE": one_tile, "DONE": one_done}
MANY = {"INIT": many_init, "ROWS": many_rows, "TILE": many_tile, "DONE": many_done}


class Step(NamedTuple):
    """Arguments of the kernels around the visit: row sums, weights, sums over heads."""

    rho: Any  # float32 [Tq, Hout]: row sums; None where nothing needs them
    known: Any  # constexpr: rho is a constant of each output head where a row has keys, and is written here
    weights: Any  # float32 [R, Tq]
    scaled: Any  # float32 [R, Hout, Tq]: r'; None without a residual
    folded: Any  # float32 [H, pitch]: weight * norm of one set; None for many sets and for fused heads
    residual: Any
    sums: Any  # float32 [R, slots, Tk]
    result: Any  # float32 [R, Hout, Tk]
    total_q: Any
    total_k: Any
    sets: Any  # R
    outs: Any  # Hout
    slots: Any  # heads of sums for each output head
    factors: Any  # float32 [H], None: 1


@triton.jit
def weigh_rows(where, args, QUERIES: tl.constexpr):
    """Row sums where they are known, and what rows weigh. Grid (tiles of queries, output heads)."""
    cell = tl.load(where.tiles + 2 * tl.program_id(0))
    if cell < 0:
        return
    out = tl.program_id(1)
    first_query, n_queries, _, n_keys, offset = cell_at(where, cell)
    first = tl.load(where.tiles + 2 * tl.program_id(0) + 1)
    i = first + tl.arange(0, QUERIES)
    row, inside = first_query + i, i < n_queries
    at = row.to(tl.int64) * args.outs + out
    rho = tl.zeros([QUERIES], tl.float32)
    if args.rho is not None:
        if args.known:
            total = 0.0
            for n in range(args.slots):
                total += 1.0 if args.factors is None else tl.load(args.factors + out * args.slots + n)
            sees = (i + offset >= 0) & (n_keys > 0) if where.causal else (i >= 0) & (n_keys > 0)
            rho = tl.where(sees, total, 0.0)
            tl.store(args.rho + at, rho, mask=inside)
        else:
            rho = tl.load(args.rho + at, mask=inside, other=0.0)
    for n in range(args.sets):
        index = tl.cast(n, tl.int64)
        weight = tl.load(args.weights + (index * args.total_q + row), mask=inside, other=0.0)
        if args.scaled is not None:
            weight = tl.where(weight == 0, 0.0, weight / (args.residual * rho + (1.0 - args.residual)))
            tl.store(args.scaled + ((index * args.outs + out) * args.total_q + row), weight, mask=inside)
        if args.folded is not None:  # of the only set; the norm of a row that is left out may be anything
            for slot in range(args.slots):
                head = out * args.slots + slot
                norm = tl.load(
                    row_pointers(where.norm, where.pitch, head, first_query + first, QUERIES), mask=inside
                )
                folded = tl.where(weight == 0, 0.0, weight * norm)
                at_folded = row_pointers(args.folded, where.pitch, head, first_query + first, QUERIES)
                tl.store(at_folded, folded, mask=inside)


@triton.jit
def add_heads(args, BLOCK: tl.constexpr):
    """Sums of heads to sums of output heads, in index order. Grid (R * Hout, of any number, blocks of keys)."""
    key = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = key < args.total_k
    index = tl.full([1], 0, tl.int64) + tl.program_id(0)  # set * Hout + output head
    first = tl.program_id(0) % args.outs * args.slots
    total = tl.zeros([BLOCK], tl.float32)
    for n in range(args.slots):
        part = tl.load(args.sums + (index * args.slots + n) * args.total_k + key, mask=inside, other=0.0)
        total += part if args.factors is None else part * tl.load(args.factors + first + n)
    if args.scaled is not None:  # as many queries as keys: a query is added to its own key
        own = tl.load(args.scaled + index * args.total_q + key, mask=inside, other=0.0)
        total = args.residual * total + (1.0 - args.residual) * own
    tl.store(args.result + index * args.total_k + key, total, mask=inside)


def sum_columns(batch: Batch, owners: int, sums: Any, weights: Any, strides: tuple[int, int]) -> None:
    """Sums [R, owners, Tk] of a batch with shift and norm; see Colsum for weights and their strides."""
    fused, many = batch.where.fusion.value != "none", sums.shape[0] > 1
    visit = (f"{batch.visited} keys" if fused else "colsum") + (" many" if many else "")
    for first in range(0, sums.shape[0], SETS):
        some = sums[first : first + SETS]
        args = Colsum(
            weights=weights[first:], set_stride=strides[0], head_stride=strides[1], sets=some.shape[0],
            padded=constexpr(padded(some.shape[0])), norm=batch.where.norm if many and not fused else None,
            pitch=batch.where.pitch, sums=some, slots=owners, total_k=sums.shape[2],
        )  # fmt: skip
        batch.visit_keys(visit, owners, args, MANY if many else ONE)


def launch(
    batch: Batch,
    weights: Any,
    fusion: str | None,
    factors: Any,
    residual: float | None,
    kind: str,
    tensors: Sequence[Any],
    sums: Any,
    rho: Any,
) -> None:
    """Sums [R, Hout, Tk] from weights [R, Tq], contiguous; rho [Tq, Hout] if it is not None.

    Of a map, whose kind and tensors maps.py takes.
    """
    n_sets, outs, total_k = sums.shape
    total_q, heads = weights.shape[1], batch.heads
    linear = kind == "prob" and fusion in (None, "sum")
    asked, stepping = rho is not None, residual is not None
    if stepping and not asked:
        rho = sums.new_empty((total_q, outs))
    batch = maps.normalise(batch, tensors, sums, None if asked and not linear else weights)
    if not linear:
        batch, factors = maps.fuse(batch, kind, tensors, fusion, outs, factors), None
        if rho is not None:
            attention_rowstats.sum_rows(batch, None if asked else weights, rho)
    owners = heads if linear else outs
    finished = not stepping and factors is None and owners == outs
    step = Step(
        rho=rho, known=constexpr(linear), weights=weights,
        scaled=sums.new_empty((n_sets, outs, total_q)) if stepping else None,
        folded=batch.scratch(sums) if linear and n_sets == 1 else None,
        residual=residual, sums=sums if finished else sums.new_empty((n_sets, owners, total_k)), result=sums,
        total_q=total_q, total_k=total_k, sets=n_sets, outs=outs, slots=owners // outs, factors=factors,
    )  # fmt: skip
    tiles = batch.work_list("queries", BLOCK)
    if tiles.shape[0] and not (rho is None and step.folded is None):
        weigh_rows[(tiles.shape[0], outs)](batch.where._replace(tiles=tiles), step, QUERIES=BLOCK)
    if step.folded is not None:
        sum_columns(batch, owners, step.sums, step.folded, (0, batch.where.pitch))
    elif stepping:
        sum_columns(batch, owners, step.sums, step.scaled, (outs * total_q, total_q if outs > 1 else 0))
    else:
        sum_columns(batch, owners, step.sums, weights, (total_q, 0))
    if not finished and total_k:
        add_heads[(n_sets * outs, triton.cdiv(total_k, BLOCK))](step, BLOCK=BLOCK)
