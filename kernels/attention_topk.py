"""attention_topk: the n largest entries of every row of the fused map and their keys; float32 and int64 [Tq, Hout, n].

Largest first, equal ones in the order of their keys. A row pass leaves shift and norm; a second visit of rows keeps the
best entries of each row in registers, in no order. While some row of a tile holds an entry above the worst of its best,
the largest entry of every row leaves the tile and takes the place of that worst one: keys come in order, so an equal
entry loses. Most tiles hold few of them. More entries than registers hold are found in several visits, each of which
begins below the last entry of the one before.

Where fewer than n keys are in sight the rest is value 0 and key -1. Only a row of NaN finds fewer entries than it sees:
it is NaN throughout.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import triton
import triton.language as tl
from scfast.kernels.scores import padded
from triton.language import constexpr

if TYPE_CHECKING:
    from scfast.kernels.batch import Batch

#: Entries of a visit: what a program's registers hold.
ENTRIES = 64
#: Beyond every key.
NO_KEY = tl.constexpr(0x7FFFFFFF)


class Topk(NamedTuple):
    """Arguments of the epilogue: one block of entries."""

    out: Any  # float32 [Tq, Hout, n]
    out_keys: Any  # int64 [Tq, Hout, n]
    outs: Any  # Hout
    n: Any
    first: Any  # entry that the block begins with
    entries: Any  # of the block
    slots: Any  # constexpr: entries, padded to a power of two
    bounded: (
        Any  # constexpr: n takes several blocks; the same for all of them, so that they see the same bits
    )
    causal: Any  # constexpr


@triton.jit
def _first_entry(args, row, inside, head):
    """Offsets of the block's first entry of n rows, int64 [n]."""
    return ((row + tl.arange(0, inside.shape[0])).to(tl.int64) * args.outs + head) * args.n + args.first


@triton.jit
def topk_init(args, row, inside, head, cell):
    """(rows that see keys, (values, keys [QUERIES, slots], end of the keys in sight, first key, bound, its key)).

    Empty slots hold -inf and keys below 0, each its own.
    """
    first_query, _, first_key, n_keys, offset = cell
    end = tl.zeros([inside.shape[0]], tl.int32) + n_keys
    if args.causal:
        own = row - first_query + offset + tl.arange(0, inside.shape[0])
        end = tl.maximum(tl.minimum(own + 1, n_keys), 0)
    values = tl.full([inside.shape[0], args.slots], float("-inf"), tl.float32)
    keys = tl.zeros([inside.shape[0], args.slots], tl.int32) - 1 - tl.arange(0, args.slots)[None, :]
    bound, bound_key = tl.zeros([inside.shape[0]], tl.float32), end
    if args.bounded:
        before = _first_entry(args, row, inside, head) - 1
        known = inside & (args.first > 0)
        bound = tl.load(args.out + before, mask=known, other=float("inf"))
        bound_key = tl.load(args.out_keys + before, mask=known, other=0).to(tl.int32)
        bound = tl.where(bound_key < 0, float("-inf"), bound)  # all that is in sight was found
    return inside & (end > 0), (values, keys, end, first_key, bound, bound_key)


@triton.jit
def keep_largest(values, keys, left, place):
    """The best entries of each row [n, slots], in no order, after those of a tile [n, m]; -inf is none.

    ``place`` [m] are the keys of the tile, larger than all before.
    """
    top, worst = tl.max(left, 1), tl.min(values, 1)
    while tl.max((top > worst).to(tl.int32), 0) > 0:
        chosen = tl.min(tl.where(left == top[:, None], place[None, :], NO_KEY), 1)
        last = tl.max(tl.where(values == worst[:, None], keys, -NO_KEY), 1)
        replaced = (keys == last[:, None]) & (top > worst)[:, None]
        values = tl.where(replaced, top[:, None], values)
        keys = tl.where(replaced, chosen[:, None], keys)
        left = tl.where(place[None, :] == chosen[:, None], float("-inf"), left)
        top, worst = tl.max(left, 1), tl.min(values, 1)
    return values, keys


@triton.jit
def largest_first(values, keys):
    """Entries [n, slots] in order: sorted as integers, bits of a value above those of its key in reverse."""
    bits = values.to(tl.int32, bitcast=True)
    bits = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64)
    code = tl.sort((bits << 32) | ((keys ^ NO_KEY).to(tl.int64) & 0xFFFFFFFF), 1, descending=True)
    bits = (code >> 32).to(tl.int32)
    value = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.float32, bitcast=True)
    return value, code.to(tl.int32) ^ NO_KEY


@triton.jit
def topk_tile(args, state, a, slope, k, key, seen, head):
    """The fused map is a [QUERIES, KEYS]; keys are counted from the first of the cell."""
    values, keys, end, first_key, bound, bound_key = state
    place = key - first_key + tl.arange(0, seen.shape[0])
    shown = seen[None, :]
    if args.causal:
        shown = place[None, :] < end[:, None]
    if args.bounded:
        later = (a == bound[:, None]) & (place[None, :] > bound_key[:, None])
        shown = shown & ((a < bound[:, None]) | later)
    left = tl.where(shown, a, float("-inf"))
    values, keys = keep_largest(values, keys, left, place)
    return values, keys, end, first_key, bound, bound_key


@triton.jit
def topk_done(args, state, row, inside, head):
    """Rows of NaN are NaN; beyond the keys in sight stand 0 and -1."""
    values, keys, end, _, _, _ = state
    slot = tl.arange(0, args.slots)[None, :]
    found = tl.sum((keys >= 0).to(tl.int32), 1)
    wanted = tl.maximum(tl.minimum(end - args.first, args.entries), 0)
    value, place = largest_first(values, keys)
    broken = (found < wanted)[:, None]
    value = tl.where(broken, float("nan"), value)
    place = tl.where(broken, args.first + slot, place)
    filled = slot < wanted[:, None]
    at = _first_entry(args, row, inside, head)[:, None] + slot
    kept = inside[:, None] & (slot < args.entries)
    tl.store(args.out + at, tl.where(filled, value, 0.0), mask=kept)
    tl.store(args.out_keys + at, tl.where(filled, place, -1).to(tl.int64), mask=kept)


#: The epilogue, as visit_rows takes it.
TOPK = {"INIT": topk_init, "TILE": topk_tile, "DONE": topk_done}


def launch(batch: Batch, fusion: str | None, factors: Any, values: Any, keys: Any) -> None:
    """Fill values and keys [Tq, Hout, n]."""
    _, outs, n = values.shape
    batch = batch.normalise(values).fuse(fusion or "sum", batch.heads // outs, factors)
    for first in range(0, n, ENTRIES):
        entries = min(n - first, ENTRIES)
        args = Topk(
            out=values, out_keys=keys, outs=outs, n=n, first=first, entries=entries,
            slots=constexpr(padded(entries)), bounded=constexpr(n > ENTRIES), causal=batch.where.causal,
        )  # fmt: skip
        batch.visit_rows("topk", outs, args, TOPK)
