"""Cosine similarities, in float64."""

from __future__ import annotations

import torch

from scfast.packing import Packing
from scfast.reference._cosine import cosine_cells


def cosine_matrix(
    x: torch.Tensor, y: torch.Tensor | None = None, *, packing: Packing | None = None
) -> torch.Tensor:
    """float64 [N, M]; with a packing the cells' blocks [n, m] end to end."""
    blocks = [s for s, _ in cosine_cells(x, y, packing)]
    if packing is None:
        return blocks[0]
    return torch.cat([s.flatten() for s in blocks] or [x.new_zeros(0, dtype=torch.float64)])
