"""Statistics of the rows of attention, materialised in float64."""

from __future__ import annotations

import torch

from scfast.packing import Packing
from scfast.reference._maps import fuse_heads, prob_maps


def attention_rowstats(
    q: torch.Tensor,
    k: torch.Tensor,
    packing: Packing,
    *,
    heads: str = "none",
    head_weights: torch.Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    key_bias: torch.Tensor | None = None,
    causal: bool = False,
) -> dict[str, torch.Tensor]:
    """Every field of :class:`scfast.ops.RowStats`, in float64."""
    n_out = q.shape[1] if heads == "none" else 1
    shape = (packing.total_q, n_out)
    names = ("entropy", "max", "self_weight", "row_sum")
    stats = {name: q.new_zeros(shape, dtype=torch.float64) for name in names}
    total = q.new_zeros((packing.n_cells, n_out), dtype=torch.float64)
    options = {"scale": scale, "softcap": softcap, "key_bias": key_bias, "causal": causal}
    offsets = packing.causal_offset.tolist()
    for cell, (p, _) in enumerate(prob_maps(q, k, packing, **options)):  # type: ignore[arg-type]
        a = fuse_heads(p, heads, head_weights)  # [Hout, nq, nk]
        rows = slice(packing.starts_q[cell], packing.starts_q[cell] + packing.lengths_q[cell])
        if a.shape[1] == 0 or a.shape[2] == 0:
            continue
        rho = a.sum(-1, keepdim=True)
        share = torch.where(rho == 0, 0.0, a / rho)  # entropy of the row as a distribution
        stats["entropy"][rows] = torch.special.entr(share).sum(-1).T
        stats["max"][rows] = a.amax(-1).T
        stats["row_sum"][rows] = rho[..., 0].T
        own = torch.arange(a.shape[1], device=q.device) + offsets[cell]
        inside = (own >= 0) & (own < a.shape[2])
        diagonal = a[:, torch.arange(a.shape[1], device=q.device), own.clamp(0, a.shape[2] - 1)]
        stats["self_weight"][rows] = torch.where(inside, diagonal, 0.0).T
        total[cell] = rho.sum((1, 2))
    return {**stats, "total": total}
