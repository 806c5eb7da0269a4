"""Attention with its row statistics, materialised in float64."""

from __future__ import annotations

import torch

from scfast.packing import Packing
from scfast.reference._maps import prob_maps


def attention_forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    packing: Packing,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    key_bias: torch.Tensor | None = None,
    causal: bool = False,
) -> dict[str, torch.Tensor]:
    """Everything that :func:`scfast.ops.attention_forward` can return, in float64."""
    group = q.shape[1] // k.shape[1]
    n_heads, width = q.shape[1], v.shape[-1]
    out = q.new_empty((packing.total_q, n_heads, width), dtype=torch.float64)
    lse = q.new_empty((packing.total_q, n_heads), dtype=torch.float64)
    entropy, largest = torch.empty_like(lse), torch.empty_like(lse)
    received = q.new_empty((n_heads, packing.total_k), dtype=torch.float64)
    options = {"scale": scale, "softcap": softcap, "key_bias": key_bias, "causal": causal}
    maps = prob_maps(q, k, packing, **options)  # type: ignore[arg-type]
    for (p, p_lse), rows, columns, values in zip(
        maps,
        _slices(packing.starts_q, packing.lengths_q),
        _slices(packing.starts_k, packing.lengths_k),
        packing.split_k(v),
        strict=True,
    ):
        values = values.double().repeat_interleave(group, dim=1)
        out[rows] = torch.einsum("hij,jhd->ihd", p, values)
        lse[rows] = p_lse.T
        entropy[rows] = torch.special.entr(p).sum(-1).T
        largest[rows] = p.amax(-1).T if p.shape[-1] else 0.0
        received[:, columns] = p.sum(1)
    return {"out": out, "lse": lse, "received": received, "entropy": entropy, "max": largest}


def _slices(starts: tuple[int, ...], lengths: tuple[int, ...]) -> list[slice]:
    return [slice(start, start + n) for start, n in zip(starts, lengths, strict=True)]
