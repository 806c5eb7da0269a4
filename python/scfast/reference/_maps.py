"""The attention maps themselves, in float64, cell by cell: what every other backend avoids holding."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from scfast.maps import Map, Norm, Relevance
from scfast.packing import Packing


def prob_maps(
    q: torch.Tensor,
    k: torch.Tensor,
    packing: Packing,
    *,
    scale: float | None = None,
    softcap: float | None = None,
    key_bias: torch.Tensor | None = None,
    causal: bool = False,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield (P [H, nq, nk], lse [H, nq]) of each cell; without keys a row is 0 and lse -inf."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    group = q.shape[1] // k.shape[1]
    biases = (
        None
        if key_bias is None
        else packing.split_k(key_bias.double() if key_bias.dim() == 2 else key_bias.double()[:, None])
    )
    offsets = packing.causal_offset.tolist()
    for cell, (queries, keys) in enumerate(zip(packing.split_q(q), packing.split_k(k), strict=True)):
        keys = keys.double().repeat_interleave(group, dim=1)
        score = scale * torch.einsum("ihd,jhd->hij", queries.double(), keys)  # [H, nq, nk]
        if softcap:
            score = softcap * torch.tanh(score / softcap)
        if biases is not None:
            score = score + biases[cell].T[:, None, :]
        if causal:
            row = torch.arange(score.shape[1], device=q.device)[:, None]
            column = torch.arange(score.shape[2], device=q.device)[None, :]
            score = score.masked_fill(column > row + offsets[cell], -torch.inf)
        # Rows without keys are set aside first: their softmax, and its gradient, would be NaN.
        empty = torch.isneginf(score).all(-1)
        score = score.masked_fill(empty[..., None], 0.0)
        p = torch.softmax(score, dim=-1).masked_fill(empty[..., None], 0.0)
        yield p, torch.logsumexp(score, dim=-1).masked_fill(empty, -torch.inf)


def fuse_heads(maps: torch.Tensor, heads: str, head_weights: torch.Tensor | None) -> torch.Tensor:
    """[H, nq, nk] -> [Hout, nq, nk]: weights first, then the fusion (mean divides by the number of heads)."""
    if head_weights is not None:
        maps = maps * head_weights.double()[:, None, None]
    if heads == "none":
        return maps
    fuse: dict[str, Callable[..., torch.Tensor]] = {
        "mean": torch.mean, "sum": torch.sum, "max": torch.amax, "min": torch.amin,
    }  # fmt: skip
    return fuse[heads](maps, dim=0, keepdim=True)


def fused_maps(
    q: torch.Tensor,
    k: torch.Tensor,
    packing: Packing,
    map: Map | None,
    heads: str,
    head_weights: torch.Tensor | None,
    **score: Any,
) -> Iterator[torch.Tensor]:
    """Yield the map [Hout, nq, nk] of each cell, its heads fused; ``map=None`` is the probabilities."""
    for cell, (p, _) in enumerate(prob_maps(q, k, packing, **score)):
        if isinstance(map, Norm):
            yield _norm_map(p, map, heads, head_weights, packing, cell)
            continue
        if isinstance(map, Relevance):
            p = p * _probability_gradient(map, packing, cell)
            p = p if map.signed else p.clamp(min=0)
        yield fuse_heads(p, heads, head_weights)


def own_keys(packing: Packing, cell: int) -> tuple[torch.Tensor, torch.Tensor]:
    """([n] queries of a cell that have a key of their own, [n] that key): j = i + causal_offset."""
    row = torch.arange(packing.lengths_q[cell], device=packing.device)
    key = row + packing.causal_offset[cell]
    inside = (key >= 0) & (key < packing.lengths_k[cell])
    return row[inside], key[inside]


def _norm_map(
    p: torch.Tensor, map: Norm, heads: str, head_weights: torch.Tensor | None, packing: Packing, cell: int
) -> torch.Tensor:
    """[H, nq, nk] probabilities -> [Hout, nq, nk] norms, as :class:`Norm` writes them."""
    if head_weights is not None:
        p = p * head_weights.double()[:, None, None]
    gram = packing.split_k(map.gram.double())[cell]  # [nk, H, H]
    if heads == "none":
        length = gram.diagonal(dim1=1, dim2=2).T.clamp(min=0).sqrt()  # [H, nk]
        norm = p.abs() * length[:, None, :]
    else:
        square = torch.einsum("hij,jhg,gij->ij", p, gram, p)
        row, key = own_keys(packing, cell)
        if map.diagonal_linear is not None:
            linear = packing.split_q(map.diagonal_linear.double())[cell]  # [nq, H]
            square[row, key] += (linear[row] * p[:, row, key].T).sum(1)
        if map.diagonal_constant is not None:
            square[row, key] += packing.split_q(map.diagonal_constant.double())[cell][row]
        norm = square.clamp(min=0).sqrt()[None]
    if map.row_scale is not None:
        norm = norm * packing.split_q(map.row_scale.double())[cell][None, :, None]
    return norm


def _probability_gradient(map: Relevance, packing: Packing, cell: int) -> torch.Tensor:
    """[H, nq, nk]: dP = d_out v^T."""
    v, d_out = packing.split_k(map.v.double())[cell], packing.split_q(map.d_out.double())[cell]
    v = v.repeat_interleave(d_out.shape[1] // v.shape[1], dim=1)
    return torch.einsum("ihd,jhd->hij", d_out, v)
