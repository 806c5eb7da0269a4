"""The most similar rows of every row, materialised in float64."""

from __future__ import annotations

import torch

from scfast.packing import Packing
from scfast.reference._cosine import cosine_cells, zero_rows


def cosine_topk(
    x: torch.Tensor, k: int, y: torch.Tensor | None = None, *, packing: Packing | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(float64 values [N, k], int64 indices [N, k], rows of zeros [B, 2]); NaN and -1 where there are fewer."""
    values = x.new_full((x.shape[0], k), torch.nan, dtype=torch.float64)
    indices = x.new_full((x.shape[0], k), -1, dtype=torch.int64)
    first = 0
    for s, _ in cosine_cells(x, y, packing):
        n, m = s.shape
        left_out = s.isnan()
        if y is None:
            left_out |= torch.eye(n, dtype=torch.bool, device=x.device)
        order = torch.where(left_out, torch.inf, -s).sort(dim=1, stable=True)  # equal ones: the smaller row
        kept = min(k, m)
        real = order.values[:, :kept] < torch.inf
        values[first : first + n, :kept] = torch.where(real, -order.values[:, :kept], torch.nan)
        indices[first : first + n, :kept] = torch.where(real, order.indices[:, :kept], -1)
        first += n
    return values, indices, zero_rows(x, y, packing)
