"""attention_scatter: attention summed by the ids of its keys and queries; gene x gene sums over cells."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.weak import WeakIdKeyDictionary

from scfast import _kernels, reference
from scfast.ops import _cpu, _triton
from scfast.ops._checks import (
    check_heads,
    check_id_values,
    check_ids,
    check_linear,
    check_out,
    check_qk,
    check_score,
)
from scfast.ops._dispatch import choose
from scfast.ops._library import LIBRARY, PACKING, SCORE
from scfast.ops._maps import probabilities_alone
from scfast.packing import Packing

#: Above every id: of tokens that are not counted.
_NO_ID = 2**31 - 1

LIBRARY.define(
    f"attention_scatter(Tensor q, Tensor k, {PACKING}, {SCORE}, Tensor ids, Tensor ids_q, Tensor(a!) out,"
    " int first_row, int limit, str heads, Tensor? head_weights) -> ()"
)


@probabilities_alone
def attention_scatter(
    q: torch.Tensor,
    k: torch.Tensor,
    packing: Packing,
    ids: torch.Tensor,
    out: torch.Tensor,
    *,
    ids_q: torch.Tensor | None = None,
    rows: tuple[int, int] | None = None,
    heads: str = "mean",
    head_weights: torch.Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    key_bias: torch.Tensor | None = None,
    causal: bool = False,
    backend: str = "auto",
) -> torch.Tensor:
    """Add the attention of every pair of a key and a query to the element of ``out`` that their ids name.

    ``out[source, target] += A[i, j]`` for every key j with id ``source`` and every query i with id ``target`` of a
    cell: the weight of the edge from the gene that is read to the gene that reads. Ids may repeat within a cell. Called
    batch after batch, ``out`` holds the sum over all cells.

    Every element gets its summands in the order of the cells, whatever the number of threads: the bits of ``out`` do
    not depend on it. ``out`` lies in memory a row of targets after another, and a cell of n tokens touches n rows: the
    op is fastest where the system backs ``out`` with huge pages.

    Parameters
    ----------
    q, k
        [Tq, H, D] and [Tk, Hkv, D]; float32, bfloat16 or float16.
    packing
        Where the cells lie.
    ids
        [Tk], int64 or int32: the source of every key, below the rows of ``out`` (or anything, with ``rows``); -1 is not
        counted. Keys that are not counted still take their share of the softmax.
    out
        [sources, targets], float64 (rounded once a summand) or float32, each row dense: what is added to, in place.
    ids_q
        [Tq]: the target of every query, -1: not counted, not computed. Default: ``ids``, where every query is a key.
    rows
        (first, last): ``out`` holds the sources first to last - 1 only, and other keys are left out. Blocks add up to
        the whole; each of them computes the whole map. Default: all, ``(0, len(out))``.
    heads
        ``"mean"`` or ``"sum"``.
    head_weights
        [H]: factor of each head's map before the fusion.
    scale, softcap, key_bias, causal, backend
        As in :func:`attention_forward`.

    Returns
    -------
    torch.Tensor
        ``out`` itself.

    Raises
    ------
    ValueError, TypeError
        Shapes, dtypes or devices that do not fit, ids beyond ``out``, another fusion, named.
    BackendError
        No backend takes the inputs.

    Examples
    --------
    >>> import torch, scfast
    >>> q, k = torch.randn(2, 5, 2, 8).unbind(0)
    >>> genes = torch.tensor([4, 7, 9, 7, 4])  # of two cells with 3 and 2 tokens
    >>> out = torch.zeros(10, 10, dtype=torch.float64)
    >>> _ = scfast.ops.attention_scatter(q, k, scfast.Packing.from_lengths([3, 2]), genes, out)
    >>> out.sum(0)[[4, 7, 9]].round(decimals=3).tolist()  # every query's row sums to 1
    [2.0, 2.0, 1.0]
    """
    check_qk(q, k, packing)
    scale, cap, bias = check_score(q, packing, scale, softcap, key_bias)
    check_linear("attention_scatter", heads, ("mean", "sum"))
    factors = check_heads(q, heads, head_weights)
    first, last = check_out(out, q, rows)
    if ids_q is None:
        if packing.lengths_q != packing.lengths_k:
            raise ValueError(
                "ids_q is needed where cells have other queries than keys: give the target of every query"
            )
        ids_q = ids
    check_ids("ids", ids, packing.total_k, q)
    check_ids("ids_q", ids_q, packing.total_q, q)
    limit = last if rows is None else 2**31
    chosen = choose("attention_scatter", backend, q=q, k=k)
    if chosen == "reference":
        check_id_values("ids", ids, limit)
        check_id_values("ids_q", ids_q, out.shape[1])
        return out.add_(
            reference.attention_scatter(
                q, k, packing, ids, (out.shape[0], out.shape[1]), ids_q=ids_q, rows=(first, last), heads=heads,
                head_weights=factors, scale=scale, softcap=softcap, key_bias=bias, causal=causal,
            )
        )  # fmt: skip
    run = _triton.runner("attention_scatter", chosen, q, _triton_impl)
    run(
        q, k, packing.cu_seqlens_q, packing.cu_seqlens_k, packing.work, packing.causal_offset,
        bias, scale, cap, causal, ids, ids_q, out, first, limit, heads, factors,
    )  # fmt: skip
    return out


def _cpu_impl(q: torch.Tensor, k: torch.Tensor, cu_seqlens_q: torch.Tensor, *rest: Any) -> None:
    *packing_and_score, ids, ids_q, out, first_row, limit, heads, head_weights = rest
    check_id_values("ids", ids, limit)
    check_id_values("ids_q", ids_q, out.shape[1])
    q, k = _cpu.dense_rows(q), _cpu.dense_rows(k)
    targets, sources = ids_q.to(torch.int32).contiguous(), ids.to(torch.int32).contiguous()
    query_order = _by_id(targets, cu_seqlens_q)
    _, factors = _cpu.fusion(q, heads, head_weights)
    _kernels.attention_scatter(
        _cpu.geometry(q, k, cu_seqlens_q, *packing_and_score),
        _cpu.pointer(targets), _cpu.pointer(sources), _cpu.pointer(query_order), _cpu.pointer(factors),
        _cpu.pointer(out), out.dtype == torch.float64, out.stride(0), first_row, out.shape[0],
    )  # fmt: skip


def _by_id(ids: torch.Tensor, cu_seqlens: torch.Tensor) -> torch.Tensor:
    """int32 [T]: the places within each cell in the order of their ids, equal ids as they come."""
    starts, lengths = cu_seqlens[:-1].long(), cu_seqlens.diff().long()
    cell = torch.repeat_interleave(torch.arange(len(lengths)), lengths, output_size=len(ids))
    order = torch.argsort(cell * 2**32 + ids, stable=True)
    return (order - starts[cell]).to(torch.int32)


def _triton_impl(
    q: torch.Tensor, k: torch.Tensor, cu_seqlens_q: torch.Tensor, cu_seqlens_k: torch.Tensor, *rest: Any
) -> None:
    work, offset, bias, *score, ids, ids_q, out, first_row, limit, heads, head_weights = rest
    _check_once("ids", ids, limit)
    _check_once("ids_q", ids_q, out.shape[1])
    queries = _sorted(ids_q, cu_seqlens_q, 0, out.shape[1])
    keys = _sorted(ids, cu_seqlens_k, first_row, first_row + out.shape[0])
    ordered = (cu_seqlens_q, cu_seqlens_k, work, offset, None if bias is None else bias[keys.order], *score)
    _, factors = _triton.fusion(q, heads, head_weights)
    _triton.launch(
        "attention_scatter", q, k, (cu_seqlens_q, cu_seqlens_k, work, offset, bias, *score),
        _triton.batch(q[queries.order], k[keys.order], ordered),
        queries, keys, factors, out, first_row, q.new_empty(0, dtype=torch.float32),
    )  # fmt: skip


#: ids that were looked at -> (version, limit): looking waits for the GPU, so once for all layers of a batch.
_checked: WeakIdKeyDictionary = WeakIdKeyDictionary()


def _check_once(name: str, ids: torch.Tensor, limit: int) -> None:
    looked_at = (0 if ids.is_inference() else ids._version, limit)
    if looked_at not in _checked.setdefault(ids, set()):
        check_id_values(name, ids, limit)
        _checked[ids].add(looked_at)


def _sorted(ids: torch.Tensor, cu_seqlens: torch.Tensor, first: int, end: int) -> Any:
    """Tokens by (cell, id), and where the blocks of ids begin in each cell; ids outside [first, end) are in none."""
    from scfast.kernels.attention_scatter import Sorted

    lengths, device = cu_seqlens.diff().long(), ids.device
    cells = torch.arange(len(lengths), device=device)
    cell = torch.repeat_interleave(cells, lengths, output_size=len(ids))
    known = torch.where((ids >= first) & (ids < end), ids.long(), _NO_ID)
    code, order = (cell * 2**32 + known).sort(stable=True)

    def starts(tokens: float) -> torch.Tensor:
        step = max(1, int(tokens * len(lengths)))
        edges = torch.cat([known.sort().values[::step], known.new_tensor([_NO_ID])])
        return torch.searchsorted(code, cells[:, None] * 2**32 + edges).to(torch.int32)

    places = (order - cu_seqlens[cell]).to(torch.int32)
    return Sorted(order, known[order].to(torch.int32), places, starts)


def _fake(q: torch.Tensor, k: torch.Tensor, *rest: Any) -> None:
    return None


LIBRARY.impl("attention_scatter", _cpu_impl, "CPU")
LIBRARY.impl("attention_scatter", _triton_impl, "CUDA")
torch.library.register_fake("scfast::attention_scatter", _fake, lib=LIBRARY)
