"""attention_rowstats: what each row of the fused map looks like; float32 [Tq, Hout].

Entropy (nats, of the row divided by its sum), largest entry, entry at the query's own key (j = i + causal_offset) and
sum; rows without keys give 0. Heads by themselves need no more than the row pass of the softmax. Where they are fused,
that pass leaves shift and norm, and this epilogue of visit_rows sees the fused map.
Outputs that are None are not computed: attention_colsum takes the row sums alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import triton
import triton.language as tl
from scfast.kernels import maps
from scfast.kernels.scores import LN2, live_rows

if TYPE_CHECKING:
    from scfast.kernels.batch import Batch

#: Rows per step of the sum over a cell.
BLOCK = 256


class Rowstats(NamedTuple):
    """Arguments of the epilogue."""

    weights: Any  # float32 [R, Tq]: rows of weight zero in every set are left out; None: all rows
    weights_row: Any
    sets: Any  # R
    outs: Any  # Hout
    row_sum: Any  # float32 [Tq, Hout]
    causal: Any  # constexpr
    entropy: Any = None  # float32 [Tq, Hout], and the next two; None: row sums alone
    max: Any = None
    self_weight: Any = None


@triton.jit
def rowstats_init(args, row, inside, head, cell):
    """(live, (sum, sum of a * log2 a, largest entry, own entry, key of the own entry, keys out of sight))."""
    first_query, _, first_key, n_keys, offset = cell
    own = row - first_query + offset + tl.arange(0, inside.shape[0])
    hidden = (own + 1 < n_keys) & inside if args.causal else tl.zeros([inside.shape[0]], tl.int1)
    own = tl.where((own >= 0) & (own < n_keys), first_key + own, -1)
    zero = tl.zeros([inside.shape[0]], tl.float32)
    return live_rows(args, row, inside), (zero, zero, zero + float("-inf"), zero, own, hidden)


@triton.jit
def rowstats_tile(args, state, a, slope, k, key, seen, head):
    """The fused map is a [QUERIES, KEYS], 0 at hidden keys and beyond the cell."""
    total, spread, largest, self_weight, own, hidden = state
    total += tl.sum(a, 1)
    if args.entropy is not None:
        spread += tl.sum(tl.where(a > 1.2e-38, a * tl.log2(tl.maximum(a, 1.2e-38)), 0.0), 1)
        keys = key + tl.arange(0, seen.shape[0])
        entries = tl.where(seen[None, :], a, float("-inf"))
        largest = tl.maximum(largest, tl.max(entries, 1))
        self_weight += tl.sum(tl.where(keys[None, :] == own[:, None], a, 0.0), 1)
    return total, spread, largest, self_weight, own, hidden


@triton.jit
def rowstats_done(args, state, row, inside, head):
    """A broken row is NaN in all that it gives; keys out of sight are entries of 0."""
    total, spread, largest, self_weight, _, hidden = state
    at = (row + tl.arange(0, inside.shape[0])).to(tl.int64) * args.outs + head
    tl.store(args.row_sum + at, total, mask=inside)
    if args.entropy is not None:
        none = total == 0
        safe = tl.where(none, 1.0, total)
        entropy = tl.where(none, 0.0, (tl.log2(safe) - spread / safe) * LN2)
        tl.store(args.entropy + at, entropy, mask=inside)
        largest = tl.where(hidden | (largest == float("-inf")), tl.maximum(largest, 0.0), largest)
        tl.store(args.max + at, tl.where(total != total, total, largest), mask=inside)
        tl.store(args.self_weight + at, self_weight, mask=inside)


#: The epilogue, as visit_rows takes it.
ROWSTATS = {"INIT": rowstats_init, "TILE": rowstats_tile, "DONE": rowstats_done}


@triton.jit
def add_rows(row_sum, total, cu_seqlens_q, outs, BLOCK: tl.constexpr):
    """Rows [Tq, Hout] of each cell added up in float64: total [B, Hout], float32 or float64. Grid (cells, Hout)."""
    cell, out = tl.program_id(0), tl.program_id(1)
    first, end = tl.load(cu_seqlens_q + cell), tl.load(cu_seqlens_q + cell + 1)
    sums = tl.zeros([BLOCK], tl.float64)
    for start in range(first, end, BLOCK):
        row = start + tl.arange(0, BLOCK)
        sums += tl.load(row_sum + row.to(tl.int64) * outs + out, mask=row < end, other=0.0).to(tl.float64)
    tl.store(total + cell * outs + out, tl.sum(sums, 0))


def sum_rows(batch: Batch, weights: Any, row_sum: Any) -> None:
    """row_sum [Tq, Hout] of a batch whose heads are fused; ``weights`` [R, Tq]: of rows with a weight alone."""
    args = Rowstats(
        weights=weights, weights_row=None if weights is None else weights.stride(0),
        sets=None if weights is None else weights.shape[0],
        outs=row_sum.shape[1], row_sum=row_sum, causal=batch.where.causal,
    )  # fmt: skip
    batch.visit_rows(f"{batch.visited} rows", row_sum.shape[1], args, ROWSTATS)


def launch(
    batch: Batch,
    fusion: str | None,
    factors: Any,
    kind: str,
    tensors: Sequence[Any],
    entropy: Any,
    max: Any,
    self_weight: Any,
    row_sum: Any,
    total: Any,
) -> None:
    """Statistics [Tq, Hout] and total [B, Hout] of a map, whose kind and tensors maps.py takes."""
    n_cells, outs = total.shape
    if kind == "prob" and fusion is None and factors is None:
        batch.softmax(entropy=entropy, max=max, self_weight=self_weight, row_sum=row_sum)
    else:
        batch = maps.normalise(batch, tensors, row_sum)
        batch = maps.fuse(batch, kind, tensors, fusion, outs, factors)
        args = Rowstats(
            weights=None, weights_row=None, sets=None, outs=outs, row_sum=row_sum, causal=batch.where.causal,
            entropy=entropy, max=max, self_weight=self_weight,
        )  # fmt: skip
        batch.visit_rows(f"{batch.visited} rows", outs, args, ROWSTATS)
    if n_cells:
        add_rows[(n_cells, outs)](row_sum, total, batch.where.cu_seqlens_q, outs, BLOCK=BLOCK)
