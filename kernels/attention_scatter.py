"""attention_scatter: out[source - first, target] += A[i, j] for keys j and queries i of these ids; float64 or float32.

Tokens come sorted by id within each cell. A program owns a block of sources x a block of targets, and so alone writes
to their part of out: it goes through the cells in order, computes the fused map of the block's keys and queries, and
adds it. No atomics: every element gets its summands in the order of the cells; equal ids of a tile take turns. Why the
ids divide the work and not the cells: cells share their genes, so that programs that own cells would meet in every row
of out. A block has as many tokens of the batch as fill most of a tile in an average cell.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import triton
import triton.language as tl
from scfast.kernels.maps import fused_tile

if TYPE_CHECKING:
    from scfast.kernels.batch import Batch

#: Tokens that a block has in the average cell, as a share of a tile: cells differ, and a full tile would often be two.
SHARE = 0.75


class Sorted(NamedTuple):
    """Tokens in the order of (cell, id)."""

    order: Any  # int64 [T]: where they are in the batch
    ids: Any  # int32 [T]
    places: Any  # int32 [T]: within their cell, as causal masks count them
    starts: Callable[
        [float], Any
    ]  # tokens of a block in the average cell -> int32 [B, blocks + 1]: its first token


class Scatter(NamedTuple):
    """Tokens of a batch in the order of (cell, id), and where their sums go. Places are those within a cell."""

    sources: Any  # int32 [Tk]
    targets: Any  # int32 [Tq]
    key_places: Any  # int32 [Tk]
    query_places: Any  # int32 [Tq]
    key_starts: Any  # int32 [B, key blocks + 1]: first token of each cell and block
    query_starts: Any  # int32 [B, query blocks + 1]
    causal_offset: Any  # int32 [B]
    cells: Any  # B
    out: Any  # float64 or float32 [sources, targets]
    out_row: Any
    first: Any  # source of the first row of out


@triton.jit
def _turns(ids, first, seen):
    """(ids of a tile, how many equal ones come before each of them)."""
    n = tl.arange(0, seen.shape[0])
    own = tl.load(ids + first + n, mask=seen, other=-1)
    # The same ids along the other axis.
    other = tl.load(ids + first + n, mask=seen, other=-2)
    before = (own[:, None] == other[None, :]) & (n[None, :] < n[:, None])
    return own, tl.sum(before.to(tl.int32), 1)


@triton.jit
def scatter_blocks(where, args, QUERIES: tl.constexpr, KEYS: tl.constexpr):
    """Grid (key blocks, query blocks)."""
    key_block, query_block = tl.program_id(0), tl.program_id(1)
    key_blocks, query_blocks = tl.num_programs(0) + 1, tl.num_programs(1) + 1
    for cell in range(args.cells):
        key_start = args.key_starts + cell * key_blocks + key_block
        query_start = args.query_starts + cell * query_blocks + query_block
        first_key, end_key = tl.load(key_start), tl.load(key_start + 1)
        first_query, end_query = tl.load(query_start), tl.load(query_start + 1)
        offset = tl.load(args.causal_offset + cell)
        if first_query < end_query:
            for key in range(first_key, end_key, KEYS):
                seen = key + tl.arange(0, KEYS) < end_key
                source, source_turn = _turns(args.sources, key, seen)
                source_turns = tl.max(source_turn, 0) + 1
                key_place = tl.load(args.key_places + key + tl.arange(0, KEYS), mask=seen, other=0)
                to_row = args.out + (source - args.first).to(tl.int64) * args.out_row
                for row in range(first_query, end_query, QUERIES):
                    live = row + tl.arange(0, QUERIES) < end_query
                    target, target_turn = _turns(args.targets, row, live)
                    target_turns = tl.max(target_turn, 0) + 1
                    a = fused_tile(where, row, live, key, seen, 0, 1)  # [QUERIES, KEYS]
                    counted = live[:, None] & seen[None, :]
                    if where.causal:
                        place = tl.load(args.query_places + row + tl.arange(0, QUERIES), mask=live, other=0)
                        counted = counted & (key_place[None, :] <= place[:, None] + offset)
                    to = to_row[None, :] + target[:, None]
                    for m in range(source_turns):
                        for n in range(target_turns):
                            now = counted & (source_turn == m)[None, :] & (target_turn == n)[:, None]
                            sums = tl.load(to, mask=now, other=0.0)
                            tl.store(to, sums + a.to(sums.dtype), mask=now)
                            tl.debug_barrier()  # other threads may add to these elements next


def launch(
    batch: Batch, ordered: Batch, queries: Sorted, keys: Sorted, factors: Any, out: Any, first: int, like: Any
) -> None:
    """Add to out [sources, targets]; ``ordered``: the batch of sorted tokens, ``like``: any float32 tensor there."""
    batch = batch.normalise(like)
    rows = {}
    for name in ("shift", "norm"):
        rows[name] = batch.scratch(like)
        rows[name][:, : len(queries.order)] = getattr(batch.where, name)[:, queries.order]
    ordered = ordered.fuse("sum", batch.heads, factors)
    tile = ordered.tile("scatter")
    args = Scatter(
        sources=keys.ids, targets=queries.ids, key_places=keys.places, query_places=queries.places,
        key_starts=keys.starts(SHARE * tile.keys), query_starts=queries.starts(SHARE * tile.queries),
        causal_offset=batch.where.causal_offset, cells=batch.where.causal_offset.shape[0],
        out=out, out_row=out.stride(0), first=first,
    )  # fmt: skip
    grid = (args.key_starts.shape[1] - 1, args.query_starts.shape[1] - 1)
    if min(grid) > 0:
        scatter_blocks[grid](
            ordered.where._replace(**rows), args, QUERIES=tile.queries, KEYS=tile.keys,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
