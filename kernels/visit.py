"""The two loops over attention maps on a GPU. What becomes of a tile is handed in as jit functions.

``visit_keys`` is key-stationary: a program owns a tile of keys and passes over the queries, for sums over queries.
``visit_rows`` is query-stationary, for sums over keys. What a program owns it alone writes: no atomics, and results
that depend neither on the order of programs nor on the other cells of the batch.

An epilogue is a set of jit functions. Its state is a tuple, its arguments a NamedTuple of pointers; row and key are
the first of a tile in the packed tensors, and a mask (inside, live, seen) says which of the tile's take part:

    visit_keys   INIT(args, key, seen, owner, QUERIES) -> state
                 ROWS(args, row, inside, head) -> live, brought
                 TILE(args, state, p, slope, q, brought) -> state        DONE(args, state, key, seen, owner)
    visit_rows   INIT(args, row, inside, head, cell) -> live, state
                 TILE(args, state, x, slope, k, key, seen, head) -> state  DONE(args, state, row, inside, head)

p [KEYS, QUERIES] is the map times the row's sum of exponentials, or the fused map; x [QUERIES, KEYS] the scores, or
the fused map. Scores are in units of log2, HIDDEN where a query does not see a key. slope is d score / d (scale q k)
under a softcap. A row that is not live is loaded as zeros, and its p is 0, whatever its memory holds.
"""

import triton
import triton.language as tl
from scfast.kernels.maps import fused_tile
from scfast.kernels.scores import HIDDEN, cell_at, load_rows, row_pointers, score_tile


@triton.jit
def _pass_queries(
    where, args, state, k, begin, end, first_query, n_queries, offset, j, key, seen, head,
    ROWS: tl.constexpr, TILE: tl.constexpr, QUERIES: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    for start in range(begin, end, QUERIES):
        i = start + tl.arange(0, QUERIES)
        row = first_query + start
        inside = i < n_queries if MASKED else tl.full([QUERIES], 1, tl.int1)
        live, brought = ROWS(args, row, inside, head)
        if where.fusion == "none":
            q = load_rows(where.q, row, live, where.q_row, where.q_head, head, where.dim, where.width)
            score, slope = score_tile(where, q, row, live, k, key, seen, head, 0)
            at = row_pointers(where.shift, where.pitch, head, row, QUERIES)
            shift = tl.load(at, mask=inside, other=float("inf"))
            p = tl.math.exp2(score - shift[None, :])
        else:
            q, slope = k, 1.0  # heads are fused: no epilogue asks for one head's queries
            p = fused_tile(where, row, live, key, seen, head, 0)
        if MASKED and where.causal:
            p = tl.where(j[:, None] <= i[None, :] + offset, p, 0.0)
        state = TILE(args, state, p, slope, q, brought)
    return state


@triton.jit
def visit_keys(
    where, args, INIT: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, DONE: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Grid (tiles of keys, owners). An owner's heads are visited in turn, or together when they are fused."""
    cell = tl.load(where.tiles + 2 * tl.program_id(0))
    if cell < 0:
        return
    owner = tl.program_id(1)
    first_query, n_queries, first_key, n_keys, offset = cell_at(where, cell)
    first = tl.load(where.tiles + 2 * tl.program_id(0) + 1)
    j = first + tl.arange(0, KEYS)
    key, seen = first_key + first, j < n_keys
    state = INIT(args, key, seen, owner, QUERIES)
    # Tiles of [full, tail) need no masks. Maps of more than probabilities take one loop, masked: its turns are long.
    once: tl.constexpr = where.kind != "prob"
    begin, full, tail = 0, 0, 0 if once else n_queries // QUERIES * QUERIES
    if where.causal:  # queries before begin see none of these keys, from full on all of them
        begin = tl.maximum(first - offset, 0) // QUERIES * QUERIES
        last = tl.minimum(first + KEYS, n_keys) - 1
        full = tl.maximum(tl.cdiv(tl.maximum(last - offset, 0), QUERIES) * QUERIES, begin)
        tail = begin if once else tl.maximum(tail, full)
    for n in range(0, where.span if where.fusion == "none" else 1):
        head = owner * where.span + n if where.fusion == "none" else owner
        k = load_rows(
            where.k, key, seen, where.k_row, where.k_head, head // where.group, where.dim, where.width
        )
        if where.causal and not once:
            state = _pass_queries(
                where, args, state, k, begin, tl.minimum(full, n_queries), first_query, n_queries, offset, j, key,
                seen, head, ROWS, TILE, QUERIES, True,
            )  # fmt: skip
        if not once:
            state = _pass_queries(
                where, args, state, k, full, tail, first_query, n_queries, offset, j, key, seen, head,
                ROWS, TILE, QUERIES, False,
            )  # fmt: skip
        state = _pass_queries(
            where, args, state, k, tail, n_queries, first_query, n_queries, offset, j, key, seen, head,
            ROWS, TILE, QUERIES, True,
        )  # fmt: skip
    DONE(args, state, key, seen, owner)


@triton.jit
def _pass_keys(
    where, args, state, q, begin, end, first_key, n_keys, offset, i, row, live, head,
    TILE: tl.constexpr, KEYS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    for start in range(begin, end, KEYS):
        j = start + tl.arange(0, KEYS)
        key = first_key + start
        seen = j < n_keys if MASKED else tl.full([KEYS], 1, tl.int1)
        if where.fusion == "none":
            k = load_rows(
                where.k, key, seen, where.k_row, where.k_head, head // where.group, where.dim, where.width
            )
            x, slope = score_tile(where, q, row, live, k, key, seen, head, 1)
            hidden = HIDDEN
        else:
            k, slope = q, 1.0  # heads are fused: no epilogue asks for one head's keys
            x = fused_tile(where, row, live, key, seen, head, 1)
            hidden = 0.0
        if MASKED:
            shown = seen[None, :]
            if where.causal:
                shown = shown & (j[None, :] <= i[:, None] + offset)
            x = tl.where(shown, x, hidden)
        state = TILE(args, state, x, slope, k, key, seen, head)
    return state


@triton.jit
def visit_rows(
    where, args, INIT: tl.constexpr, TILE: tl.constexpr, DONE: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Grid (tiles of queries, heads; output heads when they are fused)."""
    cell = tl.load(where.tiles + 2 * tl.program_id(0))
    if cell < 0:
        return
    head = tl.program_id(1)
    first_query, n_queries, first_key, n_keys, offset = cell_at(where, cell)
    first = tl.load(where.tiles + 2 * tl.program_id(0) + 1)
    i = first + tl.arange(0, QUERIES)
    row, inside = first_query + first, i < n_queries
    live, state = INIT(args, row, inside, head, (first_query, n_queries, first_key, n_keys, offset))
    end, unmasked = n_keys, n_keys
    if where.causal:
        end = tl.minimum(tl.maximum(first + QUERIES + offset, 0), n_keys)
        unmasked = tl.minimum(tl.maximum(first + offset + 1, 0), n_keys)
    end = tl.where(tl.max(live.to(tl.int32), 0) > 0, end, 0)
    once: tl.constexpr = where.kind != "prob"  # as in visit_keys
    unmasked = 0 if once else tl.minimum(unmasked, end) // KEYS * KEYS  # from here on tiles are masked
    q = load_rows(where.q, row, live, where.q_row, where.q_head, head, where.dim, where.width)
    if not once:
        state = _pass_keys(
            where, args, state, q, 0, unmasked, first_key, n_keys, offset, i, row, live, head,
            TILE, KEYS, False,
        )  # fmt: skip
    state = _pass_keys(
        where, args, state, q, unmasked, end, first_key, n_keys, offset, i, row, live, head,
        TILE, KEYS, True,
    )  # fmt: skip
    DONE(args, state, row, inside, head)
