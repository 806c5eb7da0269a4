"""cosine_threshold: the pairs whose similarity reaches a threshold.

Two visits of the pairs, and no atomics: the first counts what each tile holds; in the second a tile begins where those
before it end, and tiles that hold nothing are left out. Why not one visit that takes its places as it goes: they would
depend on the run, and their number is needed to hold them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import triton
import triton.language as tl

if TYPE_CHECKING:
    from scfast.kernels.cosine import Walk


class Threshold(NamedTuple):
    """Arguments of both visits."""

    threshold: Any  # float32
    found: Any  # int64 [tiles]: pairs of each tile; in the second visit where its first one goes
    places: Any  # int64 [pairs]: row of x * columns + row of y; None in the first visit
    similar: Any  # float32 [pairs]
    columns: Any  # rows of y, int64


@triton.jit
def count_tile(args, where, s, pair, i, j, at):
    """How many pairs reach the threshold."""
    reached = pair & (s >= args.threshold)
    tl.store(args.found + tl.program_id(0), tl.sum(tl.sum(reached.to(tl.int32), 1), 0).to(tl.int64))


@triton.jit
def collect_tile(args, where, s, pair, i, j, at):
    """These pairs, row by row."""
    _, x, y, _ = at
    reached = pair & (s >= args.threshold)
    one = reached.to(tl.int32)
    of_row = tl.sum(one, 1)
    before = (tl.cumsum(of_row, 0) - of_row)[:, None] + tl.cumsum(one, 1) - one
    to = tl.load(args.found + tl.program_id(0)) + before
    place = (x + i).to(tl.int64)[:, None] * args.columns + (y + j)[None, :]
    tl.store(args.places + to, place, mask=reached)
    tl.store(args.similar + to, s, mask=reached)


def count(walk: Walk, threshold: float, like: Any) -> list[tuple[Any, Any]]:
    """(tiles, pairs that each of them holds, int64) of every launch; ``like``: any int64 tensor of the device."""
    tile, found = walk.tile("pairs"), []
    for tiles, _ in walk.launches(tile.queries, tile.keys):
        found.append((tiles, like.new_zeros(tiles.shape[0])))
        walk.visit_pairs(tile, tiles, Threshold(threshold, found[-1][1], None, None, None), count_tile)
    return found


def collect(
    walk: Walk, threshold: float, tiles: Any, first: Any, places: Any, values: Any, columns: int
) -> None:
    """Fill places and values from ``first`` int64 [tiles] on."""
    args = Threshold(threshold, first, places, values, columns)
    walk.visit_pairs(walk.tile("pairs"), tiles, args, collect_tile)
