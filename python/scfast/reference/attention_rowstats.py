"""Statistics of the rows of a map of attention, materialised in float64."""

from __future__ import annotations

import torch

from scfast.maps import Map, Relevance
from scfast.packing import Packing
from scfast.reference._maps import fused_maps, own_keys


def attention_rowstats(
    q: torch.Tensor,
    k: torch.Tensor,
    packing: Packing,
    *,
    map: Map | None = None,
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
    signed = isinstance(map, Relevance) and map.signed
    maps = fused_maps(q, k, packing, map, heads, head_weights, **options)
    for cell, a in enumerate(maps):  # [Hout, nq, nk]
        rows = slice(packing.starts_q[cell], packing.starts_q[cell] + packing.lengths_q[cell])
        if a.shape[1] == 0 or a.shape[2] == 0:
            continue
        rho = a.sum(-1, keepdim=True)
        share = torch.where(rho == 0, 0.0, a / rho)  # entropy of the row as a distribution
        stats["entropy"][rows] = torch.nan if signed else torch.special.entr(share).sum(-1).T
        stats["max"][rows] = a.amax(-1).T
        stats["row_sum"][rows] = rho[..., 0].T
        row, key = own_keys(packing, cell)
        stats["self_weight"][rows.start + row] = a[:, row, key].T
        total[cell] = rho.sum((1, 2))
    return {**stats, "total": total}
