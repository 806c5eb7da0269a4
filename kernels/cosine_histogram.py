"""cosine_histogram: how the similarities of all pairs are distributed.

Exact counts of even bins over [-1, 1], int64; smallest and largest, float32; sum and sum of squares, float64. Pairs
that are NaN are counted apart. Bin b holds edges[b] <= s < edges[b + 1], the last one also s = 1.

Bins of a tile are counted WINDOW at a time, by the votes of warps: similarities lie close together, so that most tiles
take one window, and only what was found is added to the counts in memory. More bins than MANY are added one by one:
their addresses seldom meet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import triton
import triton.language as tl
from triton.language import constexpr

if TYPE_CHECKING:
    from scfast.kernels.cosine import Walk

#: Bins that are counted together, and from which on each pair is added by itself.
WINDOW = tl.constexpr(64)
MANY = 1024
#: Tiles whose sums are added at a time.
ADDED = 1024
#: Beyond every bin.
NO_BIN = tl.constexpr(0x7FFFFFFF)


class Histogram(NamedTuple):
    """Arguments of the tiles."""

    edges: Any  # float32 [bins + 1]
    counts: Any  # int64 [B, bins + 1]: NaN come last
    sums: Any  # float64 [tiles]
    squares: Any  # float64 [tiles]
    low: Any  # float32 [tiles]
    high: Any  # float32 [tiles]
    bins: Any
    half: Any  # bins / 2
    doubt: Any  # distance from the border of two bins, in bins, within which rounding cannot decide
    many: Any  # constexpr


@triton.jit
def bins_of(args, s):
    """int32: the bin by arithmetic, and by the nearest edge where rounding cannot decide; NaN are in bin ``bins``."""
    real = s == s
    z = tl.fma(tl.where(real, s, 0.0), args.half, args.half)
    border = (z + 0.5).to(tl.int32)
    doubtful = tl.abs(z - border.to(tl.float32)) < args.doubt
    edge = tl.load(args.edges + border, mask=doubtful, other=0.0)
    bin = tl.where(doubtful, border - (s < edge).to(tl.int32), z.to(tl.int32))
    return tl.where(real, tl.minimum(bin, args.bins - 1), args.bins)


@triton.jit
def histogram_tile(args, where, s, pair, i, j, at):
    """Adds to the counts, and leaves the tile's extremes and sums."""
    cell, _, _, _ = at
    tile = tl.program_id(0)
    bin = tl.where(pair, bins_of(args, s), -1)
    real = pair & (s == s)
    tl.store(args.low + tile, tl.min(tl.min(tl.where(real, s, float("inf")), 1), 0))
    tl.store(args.high + tile, tl.max(tl.max(tl.where(real, s, float("-inf")), 1), 0))
    s = tl.where(real, s, 0.0)
    tl.store(args.sums + tile, tl.sum(tl.sum(s, 1).to(tl.float64), 0))
    tl.store(args.squares + tile, tl.sum(tl.sum(s * s, 1).to(tl.float64), 0))
    counts = args.counts + cell.to(tl.int64) * (args.bins + 1)
    if args.many:
        tl.atomic_add(counts + bin, tl.full(bin.shape, 1, tl.int64), mask=bin >= 0, sem="relaxed")
    else:
        first = tl.min(tl.min(tl.where(bin >= 0, bin, NO_BIN), 1), 0)
        last = tl.max(tl.max(bin, 1), 0)
        bins = tl.reshape(bin, [bin.shape[0] * bin.shape[1]], can_reorder=True)
        for start in range(first, last + 1, WINDOW):
            counted = (bins >= start) & (bins < start + WINDOW)
            found = tl.histogram(bins - start, WINDOW, mask=counted)
            to = counts + start + tl.arange(0, WINDOW)
            tl.atomic_add(to, found.to(tl.int64), mask=found > 0, sem="relaxed")


@triton.jit
def add_tiles(args, starts, low, high, sums, squares, ADDED: tl.constexpr):
    """Grid (cells). Tiles starts[cell] to starts[cell + 1] are added to the cell's extremes and sums, in order."""
    cell = tl.program_id(0)
    lows, highs = tl.full([ADDED], float("inf"), tl.float32), tl.full([ADDED], float("-inf"), tl.float32)
    total, square = tl.zeros([ADDED], tl.float64), tl.zeros([ADDED], tl.float64)
    end = tl.load(starts + cell + 1)
    for first in range(tl.load(starts + cell), end, ADDED):
        tile = first + tl.arange(0, ADDED)
        inside = tile < end
        lows = tl.minimum(lows, tl.load(args.low + tile, mask=inside, other=float("inf")))
        highs = tl.maximum(highs, tl.load(args.high + tile, mask=inside, other=float("-inf")))
        total += tl.load(args.sums + tile, mask=inside, other=0.0)
        square += tl.load(args.squares + tile, mask=inside, other=0.0)
    tl.store(low + cell, tl.minimum(tl.load(low + cell), tl.min(lows, 0)))
    tl.store(high + cell, tl.maximum(tl.load(high + cell), tl.max(highs, 0)))
    tl.store(sums + cell, tl.load(sums + cell) + tl.sum(total, 0))
    tl.store(squares + cell, tl.load(squares + cell) + tl.sum(square, 0))


def launch(walk: Walk, edges: Any, counts: Any, extremes: Any, moments: Any) -> None:
    """Add to counts [B, bins + 1], extremes float32 [2, B] and moments float64 [2, B]."""
    n_cells, bins = counts.shape[0], counts.shape[1] - 1
    tile = walk.tile("pairs")
    for tiles, starts in walk.launches(tile.queries, tile.keys):
        n = tiles.shape[0]
        args = Histogram(
            edges=edges, counts=counts, sums=moments.new_empty(n), squares=moments.new_empty(n),
            low=extremes.new_empty(n), high=extremes.new_empty(n), bins=bins, half=0.5 * bins,
            doubt=bins * 2.0**-22, many=constexpr(bins > MANY),
        )  # fmt: skip
        walk.visit_pairs(tile, tiles, args, histogram_tile)
        add_tiles[(n_cells,)](args, starts, *extremes.unbind(0), *moments.unbind(0), ADDED=ADDED)
