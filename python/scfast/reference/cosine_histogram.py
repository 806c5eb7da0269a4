"""The distribution of cosine similarities, materialised in float64."""

from __future__ import annotations

import torch

from scfast.packing import Packing
from scfast.reference._cosine import cosine_cells, zero_rows


def cosine_histogram(
    x: torch.Tensor, y: torch.Tensor | None = None, *, packing: Packing | None = None, bins: int = 200
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(counts [B, bins + 1], the last of NaN; rows of zeros [B, 2]; min and max [2, B]; sum and sum of squares)."""
    edges = torch.linspace(-1, 1, bins + 1, dtype=torch.float64, device=x.device).to(torch.float32).double()
    counts, extremes, moments = [], [], []
    for s, pairs in cosine_cells(x, y, packing):
        found = s[pairs]
        real = found[~found.isnan()]
        bin_of = (torch.searchsorted(edges, real, right=True) - 1).clamp(max=bins - 1)
        counts.append(torch.cat([bin_of.bincount(minlength=bins), found.isnan().sum()[None]]))
        low, high = real.new_tensor([torch.inf]), real.new_tensor([-torch.inf])
        extremes.append(torch.stack([torch.cat([real, low]).min(), torch.cat([real, high]).max()]))
        moments.append(torch.stack([real.sum(), real.square().sum()]))
    n = len(counts)
    return (
        torch.stack(counts) if n else torch.zeros(0, bins + 1, dtype=torch.int64, device=x.device),
        zero_rows(x, y, packing),
        torch.stack(extremes, dim=1).float() if n else torch.zeros(2, 0, device=x.device),
        torch.stack(moments, dim=1) if n else torch.zeros(2, 0, dtype=torch.float64, device=x.device),
    )
