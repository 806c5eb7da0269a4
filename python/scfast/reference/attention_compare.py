"""Inner products of two models' attention maps, materialised in float64."""

from __future__ import annotations

from typing import Any

import torch

from scfast.packing import Packing
from scfast.reference._maps import prob_maps


def attention_compare(
    q1: torch.Tensor,
    k1: torch.Tensor,
    q2: torch.Tensor,
    k2: torch.Tensor,
    packing: Packing,
    *,
    options1: dict[str, Any] | None = None,
    options2: dict[str, Any] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(sum of P1 * P2, sum of P1^2, sum of P2^2) of each cell and head, float64 [B, H] each."""
    ones = (p for p, _ in prob_maps(q1, k1, packing, **options1 or {}))
    twos = (p for p, _ in prob_maps(q2, k2, packing, **options2 or {}))
    sums = q1.new_zeros((3, packing.n_cells, q1.shape[1]), dtype=torch.float64)
    for cell, (p1, p2) in enumerate(zip(ones, twos, strict=True)):  # [H, nq, nk]
        for row, (a, b) in enumerate(((p1, p2), (p1, p1), (p2, p2))):
            sums[row, cell] = (a * b).sum((1, 2))
    return sums[0], sums[1], sums[2]
