"""Column sums of a map of attention, r^T M, materialised in float64."""

from __future__ import annotations

import torch

from scfast.maps import Map
from scfast.packing import Packing
from scfast.reference._maps import fused_maps


def attention_colsum(
    q: torch.Tensor,
    k: torch.Tensor,
    packing: Packing,
    row_weights: torch.Tensor,
    *,
    map: Map | None = None,
    heads: str = "mean",
    head_weights: torch.Tensor | None = None,
    residual: float | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    key_bias: torch.Tensor | None = None,
    causal: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """([R, Hout, Tk] column sums or rollout step, [Tq, Hout] row sums), both float64."""
    options = {"scale": scale, "softcap": softcap, "key_bias": key_bias, "causal": causal}
    weights = packing.split_q(row_weights.double(), dim=1)  # per cell [R, nq]
    sums, row_sums = [], []
    maps = fused_maps(q, k, packing, map, heads, head_weights, **options)
    for a, r in zip(maps, weights, strict=True):  # [Hout, nq, nk], [R, nq]
        rho = a.sum(-1)  # [Hout, nq]
        r = r[:, None, :].expand(-1, a.shape[0], -1)  # [R, Hout, nq]
        if residual is not None:
            r = torch.where(r == 0, 0.0, r / (residual * rho + (1 - residual)))
        # queries of weight zero are skipped, whatever their scores hold
        used = torch.where((r == 0).all(0)[..., None], 0.0, a)
        product = torch.einsum("rhi,hij->rhj", r, used)
        sums.append(product if residual is None else residual * product + (1 - residual) * r)
        row_sums.append(rho.T)
    if not sums:
        n_out = q.shape[1] if heads == "none" else 1
        return row_weights.new_zeros((row_weights.shape[0], n_out, 0)).double(), q.new_zeros(
            (0, n_out)
        ).double()
    return torch.cat(sums, dim=-1), torch.cat(row_sums)
