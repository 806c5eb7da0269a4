"""cosine_topk: of every row of x the k most similar rows of y (of x: other rows), largest first; float32, int64 [N, k].

A program owns a tile of rows and passes over the columns of their cell, its best entries in registers as in
``attention_topk``; more than ENTRIES are found in several passes. x with itself is computed as a whole: what half the
pairs would save, lists that are shared by programs, in memory and behind locks, would cost again.

Pairs that are NaN do not count; where fewer than k do, the rest is NaN and -1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import triton
import triton.language as tl
from scfast.kernels.attention_topk import keep_largest, largest_first
from scfast.kernels.cosine import SLICE, rows_of, similarities
from scfast.kernels.scores import padded
from triton.language import constexpr

if TYPE_CHECKING:
    from scfast.kernels.cosine import Walk

#: Entries of a pass: what a program's registers hold, and of the passes that have larger tiles.
ENTRIES, FEW = 128, 32


class Nearest(NamedTuple):
    """Arguments of a pass."""

    tiles: Any  # int32 [n, 2]: (cell, first row of x within it); cell -1: nothing to do
    out: Any  # float32 [N, k]
    out_rows: Any  # int64 [N, k]
    k: Any
    first: Any  # entry that the pass begins with
    entries: Any  # of the pass
    slots: Any  # constexpr: entries, padded to a power of two
    bounded: Any  # constexpr: k takes several passes


@triton.jit
def nearest_rows(where, args, QUERIES: tl.constexpr, KEYS: tl.constexpr, SLICE: tl.constexpr):
    """Grid (tiles of rows)."""
    cell = tl.load(args.tiles + 2 * tl.program_id(0))
    if cell < 0:
        return
    first_row = tl.load(args.tiles + 2 * tl.program_id(0) + 1)
    x, n, y, m = rows_of(where, cell)
    i = first_row + tl.arange(0, QUERIES)
    inside = i < n
    to = (x + i).to(tl.int64) * args.k + args.first
    # Empty slots hold -inf and rows below 0, each its own.
    slot = tl.arange(0, args.slots)[None, :]
    values = tl.full([QUERIES, args.slots], float("-inf"), tl.float32)
    rows = tl.zeros([QUERIES, args.slots], tl.int32) - 1 - slot
    if args.bounded:
        known = inside & (args.first > 0)
        bound = tl.load(args.out + to - 1, mask=known, other=float("inf"))
        bound_row = tl.load(args.out_rows + to - 1, mask=known, other=0).to(tl.int32)
        bound = tl.where(bound_row < 0, float("-inf"), bound)  # all that can be compared was found
    for start in range(0, m, KEYS):
        s = similarities(where, x + first_row, y + start, QUERIES, KEYS, SLICE)
        j = start + tl.arange(0, KEYS)
        shown = inside[:, None] & (j < m)[None, :] & (s == s)
        if where.itself:
            shown = shown & (i[:, None] != j[None, :])
        if args.bounded:
            later = (s == bound[:, None]) & (j[None, :] > bound_row[:, None])
            shown = shown & ((s < bound[:, None]) | later)
        values, rows = keep_largest(values, rows, tl.where(shown, s, float("-inf")), j)
    values, rows = largest_first(tl.where(values == 0, 0.0, values), rows)  # -0 is as large as 0
    kept = inside[:, None] & (slot < args.entries)
    found = rows >= 0
    tl.store(args.out + to[:, None] + slot, tl.where(found, values, float("nan")), mask=kept)
    tl.store(args.out_rows + to[:, None] + slot, tl.where(found, rows, -1).to(tl.int64), mask=kept)


def launch(walk: Walk, work_list: Any, values: Any, rows: Any) -> None:
    """Fill values and rows [N, k]; ``work_list``: rows of a tile -> Nearest.tiles."""
    k = values.shape[1]
    for first in range(0, k, ENTRIES):
        entries = min(k - first, ENTRIES)
        tile = walk.tile("nearest" if entries <= FEW else "nearest many")
        tiles = work_list(tile.queries)
        args = Nearest(
            tiles=tiles, out=values, out_rows=rows, k=k, first=first, entries=entries,
            slots=constexpr(padded(entries)), bounded=constexpr(k > ENTRIES),
        )  # fmt: skip
        if tiles.shape[0]:
            nearest_rows[(tiles.shape[0],)](
            walk.where, args, QUERIES=tile.queries, KEYS=tile.keys, SLICE=SLICE,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
