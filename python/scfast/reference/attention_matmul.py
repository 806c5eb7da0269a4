"""Product of attention with a matrix, A x, materialised in float64."""

from __future__ import annotations

import torch

from scfast.packing import Packing
from scfast.reference._maps import fuse_heads, prob_maps


def attention_matmul(
    q: torch.Tensor,
    k: torch.Tensor,
    packing: Packing,
    x: torch.Tensor,
    *,
    heads: str = "mean",
    head_weights: torch.Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    key_bias: torch.Tensor | None = None,
    causal: bool = False,
) -> torch.Tensor:
    """float64 [Tq, W], or [Tq, H, W] for ``heads="none"``."""
    options = {"scale": scale, "softcap": softcap, "key_bias": key_bias, "causal": causal}
    parts = []
    for (p, _), values in zip(
        prob_maps(q, k, packing, **options),  # type: ignore[arg-type]
        packing.split_k(x.double()),
        strict=True,
    ):
        parts.append((fuse_heads(p, heads, head_weights) @ values).transpose(0, 1))  # [nq, Hout, W]
    out = torch.cat(parts) if parts else q.new_zeros((0, q.shape[1], x.shape[1]), dtype=torch.float64)
    return out if heads == "none" else out[:, 0]
