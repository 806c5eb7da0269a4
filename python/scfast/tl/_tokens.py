"""Cells in memory, tokenised a block at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import sparse

from scfast.models.base import AttentionSource, Tokens
from scfast.run import Counts

#: Cells tokenised at once.
CELLS_AT_ONCE = 8192


def token_blocks(source: AttentionSource, counts: Counts) -> Iterator[tuple[sparse.csr_matrix, Tokens]]:
    """Counts and tokens of all cells, block by block, in order."""
    for start in range(0, counts.n_cells, CELLS_AT_ONCE):
        block, totals = counts.take(np.arange(start, min(start + CELLS_AT_ONCE, counts.n_cells)))
        yield block, source.tokenize(block, counts.var, totals)
