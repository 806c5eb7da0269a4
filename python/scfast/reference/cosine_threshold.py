"""Pairs of rows that are similar enough, materialised in float64."""

from __future__ import annotations

import torch

from scfast.packing import Packing
from scfast.reference._cosine import cosine_cells, zero_rows


def cosine_threshold(
    x: torch.Tensor, threshold: float, y: torch.Tensor | None = None, *, packing: Packing | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """(indptr [N + 1], indices, float64 values, rows of zeros [B, 2]): CSR [N, M], x with itself i < j."""
    least = torch.tensor(threshold, dtype=torch.float32).double().item()
    counts, indices, values = [x.new_zeros(1, dtype=torch.int64)], [], []
    first = 0
    for s, pairs in cosine_cells(x, y, packing):
        found = pairs & (s >= least)
        counts.append(found.sum(1))
        indices.append(found.nonzero()[:, 1] + first)
        values.append(s[found])
        first += s.shape[1]
    none = x.new_zeros(0, dtype=torch.float64)
    return (
        torch.cat(counts).cumsum(0),
        torch.cat([none.long(), *indices]),
        torch.cat([none, *values]),
        zero_rows(x, y, packing),
    )
