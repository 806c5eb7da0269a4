"""Sums of attention by the ids of keys and queries, materialised in float64."""

from __future__ import annotations

import torch

from scfast.packing import Packing
from scfast.reference._maps import fuse_heads, prob_maps


def attention_scatter(
    q: torch.Tensor,
    k: torch.Tensor,
    packing: Packing,
    ids: torch.Tensor,
    shape: tuple[int, int],
    *,
    ids_q: torch.Tensor | None = None,
    rows: tuple[int, int] | None = None,
    heads: str = "mean",
    head_weights: torch.Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    key_bias: torch.Tensor | None = None,
    causal: bool = False,
) -> torch.Tensor:
    """float64 [sources, targets] of ``shape``: what is added to ``out``."""
    options = {"scale": scale, "softcap": softcap, "key_bias": key_bias, "causal": causal}
    first, end = (0, shape[0]) if rows is None else rows
    out = q.new_zeros(shape, dtype=torch.float64)
    for (p, _), source, target in zip(
        prob_maps(q, k, packing, **options),  # type: ignore[arg-type]
        packing.split_k(ids.long()),
        packing.split_q((ids if ids_q is None else ids_q).long()),
        strict=True,
    ):
        (a,) = fuse_heads(p, heads, head_weights)  # [nq, nk]
        key = (source >= first) & (source < end)
        query = target >= 0
        where = (source[key, None] - first, target[None, query])
        out.index_put_(where, a[query][:, key].T, accumulate=True)
    return out
