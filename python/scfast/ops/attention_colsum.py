"""attention_colsum: r^T P, the attention that keys receive from weighted queries; one step of rollout."""

from __future__ import annotations

from typing import Any

import torch

from scfast import _kernels, reference
from scfast.maps import Map
from scfast.ops import _cpu, _triton
from scfast.ops._checks import check_heads, check_qk, check_row_weights, check_score
from scfast.ops._dispatch import choose
from scfast.ops._library import LIBRARY, PACKING, SCORE
from scfast.ops._maps import MAP, check_map, map_tensors
from scfast.packing import Packing

LIBRARY.define(
    f"attention_colsum(Tensor q, Tensor k, {PACKING}, {SCORE}, Tensor row_weights, str heads,"
    f" Tensor? head_weights, float? residual, bool row_sums, {MAP}) -> (Tensor, Tensor)"
)


def attention_colsum(
    q: torch.Tensor,
    k: torch.Tensor,
    packing: Packing,
    row_weights: torch.Tensor | None = None,
    *,
    map: Map | None = None,
    heads: str | None = None,
    head_weights: torch.Tensor | None = None,
    residual: float | None = None,
    row_sums: bool = False,
    scale: float | None = None,
    softcap: float | None = None,
    key_bias: torch.Tensor | None = None,
    causal: bool = False,
    backend: str = "auto",
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    """Weighted column sums of a map of attention of every cell, without holding the map.

    Parameters
    ----------
    q, k
        [Tq, H, D] and [Tk, Hkv, D]; float32, bfloat16 or float16.
    packing
        Where the cells lie.
    row_weights
        [R, Tq] or [Tq], finite: the weight of every query, R sets in one visit. Queries whose weights are all zero
        are skipped. Default: 1/n within each cell.
    map
        What an element of the map is: :class:`Prob` (the default), :class:`Norm` or :class:`Relevance`.
    heads
        Fusion of the heads of each element: ``"mean"`` (the default), ``"sum"``, ``"max"``, ``"min"``, or ``"none"``.
        The heads of a :class:`Norm` are summed as vectors (leave it out), or stay apart (``"none"``).
    head_weights
        [H]: factor of each head's map before the fusion.
    residual
        ``a`` in [0, 1]: return the whole rollout step a (r'^T A) + (1 - a) r' with r' = r / (a rho + 1 - a), rho the
        row sums of the fused map A (Abnar & Zuidema 2020, read backwards). Needs as many queries as keys.
    row_sums
        Return the row sums too.
    scale, softcap, key_bias, causal, backend
        As in :func:`attention_forward`.

    Returns
    -------
    torch.Tensor
        float32 [R, Hout, Tk], Hout = H for ``heads="none"`` and 1 otherwise; with ``row_sums=True`` a pair with the
        row sums of the fused map, float32 [Tq, Hout].

    Raises
    ------
    ValueError, TypeError
        Shapes, dtypes or devices that do not fit, named.
    BackendError
        No backend takes the inputs.

    Examples
    --------
    >>> import torch, scfast
    >>> q, k = torch.randn(2, 5, 2, 8).unbind(0)
    >>> received = scfast.ops.attention_colsum(q, k, scfast.Packing.from_lengths([3, 2]))
    >>> received.shape, received.sum().round().item()
    (torch.Size([1, 1, 5]), 2.0)
    """
    check_qk(q, k, packing)
    scale, cap, bias = check_score(q, packing, scale, softcap, key_bias)
    map, heads = check_map(map, q, k, packing, heads, "mean")
    factors = check_heads(q, heads, head_weights)
    weights = check_row_weights(row_weights, q, packing)
    if residual is not None:
        if not 0.0 <= residual <= 1.0:
            raise ValueError(f"residual must lie in [0, 1], got {residual}")
        if packing.lengths_q != packing.lengths_k:
            raise ValueError(
                "residual needs as many queries as keys in every cell: it adds each query to its own key"
            )
    chosen = choose("attention_colsum", backend, map.kind, q=q, k=k)
    if chosen == "reference":
        sums, rho = reference.attention_colsum(
            q, k, packing, weights, map=map, heads=heads, head_weights=factors, residual=residual,
            scale=scale, softcap=softcap, key_bias=bias, causal=causal,
        )  # fmt: skip
        sums, rho = sums.float(), rho.float()
    else:
        run = _triton.runner("attention_colsum", chosen, q, _triton_impl)
        sums, rho = run(
            q, k, packing.cu_seqlens_q, packing.cu_seqlens_k, packing.work, packing.causal_offset,
            bias, scale, cap, causal, weights, heads, factors, residual, row_sums,
            map.kind, map_tensors(map),
        )  # fmt: skip
    return (sums, rho) if row_sums else sums


def _cpu_impl(q: torch.Tensor, k: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
    *packing_and_score, row_weights, heads, head_weights, residual, row_sums, kind, tensors = rest
    q, k, row_weights = _cpu.dense_rows(q), _cpu.dense_rows(k), row_weights.contiguous()
    sums, rho = _allocate(q, k, row_weights, heads, row_sums)
    fusion, factors = _cpu.fusion(q, heads, head_weights)
    map, _alive = _cpu.given_map(kind, tensors)
    _kernels.attention_colsum(
        _cpu.geometry(q, k, *packing_and_score),
        _cpu.pointer(row_weights), row_weights.shape[0], fusion, _cpu.pointer(factors),
        -1.0 if residual is None else residual, _cpu.pointer(sums), _cpu.pointer(rho), map,
    )  # fmt: skip
    return sums, rho


def _triton_impl(q: torch.Tensor, k: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
    *packing_and_score, row_weights, heads, head_weights, residual, row_sums, kind, tensors = rest
    sums, rho = _allocate(q, k, row_weights, heads, row_sums)
    fusion, factors = _triton.fusion(q, heads, head_weights)
    _triton.launch(
        "attention_colsum", q, k, packing_and_score,
        row_weights.contiguous(), fusion, factors, residual, kind, _triton.map_tensors(kind, tensors),
        sums, rho if row_sums else None,
    )  # fmt: skip
    return sums, rho


def _allocate(
    q: torch.Tensor, k: torch.Tensor, row_weights: torch.Tensor, heads: str, row_sums: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    n_out = q.shape[1] if heads == "none" else 1
    sums = q.new_empty((row_weights.shape[0], n_out, k.shape[0]), dtype=torch.float32)
    return sums, q.new_empty((q.shape[0], n_out) if row_sums else (0,), dtype=torch.float32)


def _fake(q: torch.Tensor, k: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, torch.Tensor]:
    row_weights, heads, _, _, row_sums, _, _ = rest[-7:]
    return _allocate(q, k, row_weights, heads, row_sums)


LIBRARY.impl("attention_colsum", _cpu_impl, "CPU")
LIBRARY.impl("attention_colsum", _triton_impl, "CUDA")
torch.library.register_fake("scfast::attention_colsum", _fake, lib=LIBRARY)
