"""The strongest keys of every query, materialised in float64."""

from __future__ import annotations

import torch

from scfast.packing import Packing
from scfast.reference._maps import fuse_heads, prob_maps


def attention_topk(
    q: torch.Tensor,
    k: torch.Tensor,
    packing: Packing,
    n: int,
    *,
    heads: str = "mean",
    head_weights: torch.Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    key_bias: torch.Tensor | None = None,
    causal: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(float64 values, int64 keys) of [Tq, Hout, n]; 0 and -1 beyond the keys in sight."""
    shape = (packing.total_q, q.shape[1] if heads == "none" else 1, n)
    values = q.new_zeros(shape, dtype=torch.float64)
    keys = q.new_full(shape, -1, dtype=torch.int64)
    options = {"scale": scale, "softcap": softcap, "key_bias": key_bias, "causal": causal}
    offsets = packing.causal_offset.tolist()
    for cell, (p, _) in enumerate(prob_maps(q, k, packing, **options)):  # type: ignore[arg-type]
        a = fuse_heads(p, heads, head_weights).transpose(0, 1)  # [nq, Hout, nk]
        row = torch.arange(a.shape[0], device=q.device)[:, None, None]
        seen = (
            torch.arange(a.shape[2], device=q.device) <= row + offsets[cell] if causal else torch.tensor(True)
        )
        order = torch.where(seen, -a, torch.inf).sort(dim=-1, stable=True)  # equal entries: the smaller key
        kept = min(n, a.shape[2])
        hidden = torch.isposinf(order.values[..., :kept])
        rows = slice(packing.starts_q[cell], packing.starts_q[cell] + packing.lengths_q[cell])
        values[rows, :, :kept] = torch.where(hidden, 0.0, -order.values[..., :kept])
        keys[rows, :, :kept] = torch.where(hidden, -1, order.indices[..., :kept])
    return values, keys
