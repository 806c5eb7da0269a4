"""cosine_matrix: the similarities themselves, float32. Of x with itself each is computed once and stored twice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import triton
import triton.language as tl

if TYPE_CHECKING:
    from scfast.kernels.cosine import Walk


class Matrix(NamedTuple):
    """Arguments of the tiles."""

    out: Any  # float32 [N, M], or the blocks of the cells end to end
    starts: Any  # int64 [B]: where each cell's block begins
    stride: Any  # of rows; None: blocks are dense


@triton.jit
def matrix_tile(args, where, s, pair, i, j, at):
    """Stores the pairs, and of x with itself their mirror images."""
    cell, _, _, m = at
    stride = tl.cast(m if args.stride is None else args.stride, tl.int64)
    out = args.out + tl.load(args.starts + cell)
    tl.store(out + i[:, None] * stride + j[None, :], s, mask=pair)
    if where.itself:
        below = tl.trans(pair & (i[:, None] < j[None, :]))
        tl.store(out + j[:, None] * stride + i[None, :], tl.trans(s), mask=below)


def launch(walk: Walk, out: Any, starts: Any, stride: int | None) -> None:
    """Fill out."""
    tile = walk.tile("pairs")
    for tiles, _ in walk.launches(tile.queries, tile.keys):
        walk.visit_pairs(tile, tiles, Matrix(out=out, starts=starts, stride=stride), matrix_tile)
