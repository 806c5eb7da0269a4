"""Cells in memory, tokenised a block at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import sparse

from scfast.models.base import AttentionSource, Tokens
from scfast.run import Counts

#: Cells tokenised at once.
CELLS_AT_ONCE = 8192


def token_blocks(
    source: AttentionSource, counts: Counts, rows: np.ndarray | None = None
) -> Iterator[tuple[sparse.csr_matrix, Tokens]]:
    """Counts and tokens of all cells, or of ``rows``, block by block, in order."""
    rows = np.arange(counts.n_cells) if rows is None else rows
    for start in range(0, rows.size, CELLS_AT_ONCE):
        yield counts.tokenize(source, rows[start : start + CELLS_AT_ONCE])
