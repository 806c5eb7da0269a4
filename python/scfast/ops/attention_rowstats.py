"""attention_rowstats: what each row of attention looks like: entropy, peak, weight on itself, sum."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from scfast import _kernels, reference
from scfast.maps import Map
from scfast.ops import _cpu, _triton
from scfast.ops._checks import check_heads, check_qk, check_score
from scfast.ops._dispatch import choose
from scfast.ops._library import LIBRARY, PACKING, SCORE
from scfast.ops._maps import MAP, check_map, map_tensors
from scfast.packing import Packing

LIBRARY.define(
    f"attention_rowstats(Tensor q, Tensor k, {PACKING}, {SCORE}, str heads, Tensor? head_weights, {MAP})"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)


class RowStats(NamedTuple):
    """Statistics of the rows of attention: [Tq, Hout] each, ``total`` [B, Hout]; float32.

    Attributes
    ----------
    entropy
        Of the row divided by its sum, in nats; NaN where elements may be negative by their map
        (:class:`Relevance`, signed).
    max
        The largest entry.
    self_weight
        The entry at the query's own key, j = i + causal_offset.
    row_sum
        The sum of the row.
    total
        The sum over a cell's rows, [B, Hout].
    """

    entropy: torch.Tensor
    max: torch.Tensor
    self_weight: torch.Tensor
    row_sum: torch.Tensor
    total: torch.Tensor


def attention_rowstats(
    q: torch.Tensor,
    k: torch.Tensor,
    packing: Packing,
    *,
    map: Map | None = None,
    heads: str | None = None,
    head_weights: torch.Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    key_bias: torch.Tensor | None = None,
    causal: bool = False,
    backend: str = "auto",
) -> RowStats:
    """Statistics of every row of a (fused) map of attention, without holding the map.

    Parameters
    ----------
    q, k
        [Tq, H, D] and [Tk, Hkv, D]; float32, bfloat16 or float16.
    packing
        Where the cells lie.
    map
        What an element of the map is: :class:`Prob` (the default), :class:`Norm` or :class:`Relevance`.
    heads, head_weights
        Fusion as in :func:`attention_colsum`; the default keeps the heads apart, but for :class:`Norm`, whose heads are
        summed as vectors.
    scale, softcap, key_bias, causal, backend
        As in :func:`attention_forward`.

    Returns
    -------
    RowStats
        Rows without keys give zeros.

    Raises
    ------
    ValueError, TypeError
        Shapes, dtypes or devices that do not fit, named.
    BackendError
        No backend takes the inputs.

    Examples
    --------
    >>> import torch, scfast
    >>> q, k = torch.zeros(2, 4, 1, 8).unbind(0)
    >>> stats = scfast.ops.attention_rowstats(q, k, scfast.Packing.from_lengths([4]))
    >>> stats.max[0].item(), stats.total.tolist()
    (0.25, [[4.0]])
    """
    check_qk(q, k, packing)
    scale, cap, bias = check_score(q, packing, scale, softcap, key_bias)
    map, heads = check_map(map, q, k, packing, heads, "none")
    factors = check_heads(q, heads, head_weights)
    chosen = choose("attention_rowstats", backend, map.kind, q=q, k=k)
    if chosen == "reference":
        stats = reference.attention_rowstats(
            q, k, packing, map=map, heads=heads, head_weights=factors,
            scale=scale, softcap=softcap, key_bias=bias, causal=causal,
        )  # fmt: skip
        return RowStats(**{name: x.float() for name, x in stats.items()})
    run = _triton.runner("attention_rowstats", chosen, q, _triton_impl)
    return RowStats(
        *run(
            q, k, packing.cu_seqlens_q, packing.cu_seqlens_k, packing.work, packing.causal_offset,
            bias, scale, cap, causal, heads, factors, map.kind, map_tensors(map),
        )
    )  # fmt: skip


def _cpu_impl(
    q: torch.Tensor, k: torch.Tensor, cu_seqlens_q: torch.Tensor, *rest: Any
) -> tuple[torch.Tensor, ...]:
    *packing_and_score, heads, head_weights, kind, tensors = rest
    q, k = _cpu.dense_rows(q), _cpu.dense_rows(k)
    *stats, total = _allocate(q, cu_seqlens_q, heads)
    fusion, factors = _cpu.fusion(q, heads, head_weights)
    map, _alive = _cpu.given_map(kind, tensors)
    _kernels.attention_rowstats(
        _cpu.geometry(q, k, cu_seqlens_q, *packing_and_score),
        fusion, _cpu.pointer(factors), map, *(_cpu.pointer(x) for x in stats),
    )  # fmt: skip
    if kind == "signed relevance":
        stats[0].fill_(torch.nan)
    lengths = cu_seqlens_q.diff().long()
    cells = torch.repeat_interleave(torch.arange(lengths.numel()), lengths, output_size=q.shape[0])
    total.copy_(torch.zeros(total.shape, dtype=torch.float64).index_add_(0, cells, stats[3].double()))
    return (*stats, total)


def _triton_impl(
    q: torch.Tensor, k: torch.Tensor, cu_seqlens_q: torch.Tensor, *rest: Any
) -> tuple[torch.Tensor, ...]:
    *packing_and_score, heads, head_weights, kind, tensors = rest
    results = _allocate(q, cu_seqlens_q, heads)
    fusion, factors = _triton.fusion(q, heads, head_weights)
    _triton.launch(
        "attention_rowstats", q, k, (cu_seqlens_q, *packing_and_score),
        fusion, factors, kind, _triton.map_tensors(kind, tensors), *results,
    )  # fmt: skip
    if kind == "signed relevance":
        results[0].fill_(torch.nan)
    return results


def _allocate(q: torch.Tensor, cu_seqlens_q: torch.Tensor, heads: str) -> tuple[torch.Tensor, ...]:
    n_out = q.shape[1] if heads == "none" else 1
    rows = [q.new_empty((q.shape[0], n_out), dtype=torch.float32) for _ in range(4)]
    return (*rows, q.new_empty((cu_seqlens_q.shape[0] - 1, n_out), dtype=torch.float32))


def _fake(
    q: torch.Tensor, k: torch.Tensor, cu_seqlens_q: torch.Tensor, *rest: Any
) -> tuple[torch.Tensor, ...]:
    return _allocate(q, cu_seqlens_q, rest[-4])


LIBRARY.impl("attention_rowstats", _cpu_impl, "CPU")
LIBRARY.impl("attention_rowstats", _triton_impl, "CUDA")
torch.library.register_fake("scfast::attention_rowstats", _fake, lib=LIBRARY)
