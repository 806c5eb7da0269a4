"""Cosine similarities of the rows of every cell, materialised in float64."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from scfast.packing import Packing


def unit_rows(x: torch.Tensor) -> torch.Tensor:
    """Rows divided by their length; rows of zeros stay, rows that are not finite are NaN."""
    x = x.double()
    largest = x.abs().amax(1, keepdim=True)
    scaled = x / torch.where(largest > 0, largest, 1.0)  # so that no square overflows or vanishes
    length = scaled.square().sum(1, keepdim=True).sqrt()
    return scaled / torch.where(length > 0, length, 1.0) + torch.where(largest.isfinite(), 0.0, torch.nan)


def cosine_cells(
    x: torch.Tensor, y: torch.Tensor | None, packing: Packing | None
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(similarities [n, m], which of them are pairs) of every cell; x with itself: pairs i < j."""
    a = unit_rows(x)
    b = a if y is None else unit_rows(y)
    cells = [(a, b)] if packing is None else zip(packing.split_q(a), packing.split_k(b), strict=True)
    for rows, columns in cells:
        s = (rows @ columns.T).clamp(-1, 1)
        yield s, torch.ones_like(s, dtype=torch.bool).triu(1 if y is None else -len(rows))


def zero_rows(x: torch.Tensor, y: torch.Tensor | None, packing: Packing | None) -> torch.Tensor:
    """int64 [B, 2]: rows of x and of y of every cell that are all 0; 0 for y where there is none."""
    own = (x == 0).all(1)
    other = torch.zeros_like(own) if y is None else (y == 0).all(1)
    cells = (
        [(own, other)] if packing is None else zip(packing.split_q(own), packing.split_k(other), strict=True)
    )
    found = [torch.stack([a.sum(), b.sum()]) for a, b in cells]
    return torch.stack(found) if found else torch.zeros(0, 2, dtype=torch.int64, device=x.device)
