"""The attention maps themselves, in float64, cell by cell: what every other backend avoids holding."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

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
