"""Attention rollout by multiplying maps, in float64: the oracle of the sweep, and other conventions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from scfast.packing import Packing
from scfast.reference._maps import fuse_heads, prob_maps


class RolloutMatrices(NamedTuple):
    """float64 [N, n, n] each: ``layers``, what is multiplied; ``joint``, the product after each layer."""

    layers: torch.Tensor
    joint: torch.Tensor


def rollout_matrices(
    maps: Sequence[torch.Tensor],
    *,
    residual: float = 0.5,
    heads: str = "mean",
    convention: str = "abnar",
    discard_ratio: float = 0.0,
) -> RolloutMatrices:
    """Rollout of one cell from its attention maps.

    Parameters
    ----------
    maps
        Per layer [H, n, n], rows are queries.
    residual
        a of D^-1 (a A + (1 - a) I) (Abnar & Zuidema 2020); 0.5 in ``"vit-explain"``.
    heads
        Fusion: ``"mean"``, ``"max"``, ``"min"``, ``"sum"``.
    convention
        ``"abnar"`` divides each row by its sum. ``"vit-explain"`` divides column j by the sum of row j, as
        the package of that name does.
    discard_ratio
        Of ``"vit-explain"``: the smallest int(n * n * ratio) entries of the fused map become 0, except entry
        (0, 0).

    Examples
    --------
    >>> maps = [torch.full((2, 3, 3), 1 / 3)] * 2
    >>> rollout_matrices(maps).joint[-1].sum(-1)
    tensor([1.0000, 1.0000, 1.0000], dtype=torch.float64)
    """
    steps: list[torch.Tensor] = []
    joint: list[torch.Tensor] = []
    for layer_maps in maps:
        fused = fuse_heads(layer_maps.double(), heads, None)[0]
        identity = torch.eye(fused.shape[0], dtype=torch.float64, device=fused.device)
        if convention == "vit-explain":
            step = (_discard(fused, discard_ratio) + identity) / 2
            step = step / step.sum(-1)  # no keepdim: row sums fall on columns
        else:
            step = residual * fused + (1 - residual) * identity
            step = step / step.sum(-1, keepdim=True)
        steps.append(step)
        joint.append(step @ joint[-1] if joint else step)
    return RolloutMatrices(torch.stack(steps), torch.stack(joint))


def packed_rollout(
    layers: Sequence[tuple[torch.Tensor, torch.Tensor, Mapping[str, Any]]],
    packing: Packing,
    weights: torch.Tensor,
    **conventions: Any,
) -> torch.Tensor:
    """Scores w^T (product of all layers) of packed cells, float64 [R, T].

    Parameters
    ----------
    layers
        Per layer q [T, H, D], k [T, Hkv, D] and its score options.
    packing
        Where the cells lie.
    weights
        Readouts [R, T].
    **conventions
        As in :func:`rollout_matrices`.
    """
    cells = zip(*(prob_maps(q, k, packing, **options) for q, k, options in layers), strict=True)
    scores = [
        w.double() @ rollout_matrices([p for p, _ in maps], **conventions).joint[-1]
        for maps, w in zip(cells, packing.split_q(weights, dim=1), strict=True)
    ]
    return torch.cat(scores, dim=1) if scores else weights.double()


def _discard(fused: torch.Tensor, ratio: float) -> torch.Tensor:
    flat = fused.flatten().clone()
    smallest = flat.topk(int(flat.numel() * ratio), largest=False).indices
    flat[smallest[smallest != 0]] = 0.0
    return flat.view_as(fused)
