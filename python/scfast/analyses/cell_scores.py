"""Gene scores of every cell, and the tokens behind them, as sparse rows."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from scfast.analyses.base import Batch, RowBlock


class CellScores:
    """One row per cell: the score of every gene that the cell has a token of, summed over the gene's tokens.

    Parameters
    ----------
    n_genes
        Columns of the counts matrix.
    name
        The observable that holds the scores [R, T].
    row
        Which of the R rows.
    """

    fill: float | None = None

    def __init__(self, n_genes: int, name: str = "rollout", row: int = -1) -> None:
        self.n_columns, self.name, self.row = n_genes, name, row

    def rows(self, batch: Batch) -> RowBlock:
        """float32 CSR [B, genes], columns in order."""
        pairs = batch.genes
        indptr = np.searchsorted(pairs.cell, np.arange(batch.tokens.n_cells + 1))
        scores = batch.gene_scores(self.name, self.row).astype(np.float32)
        shape = (batch.tokens.n_cells, self.n_columns)
        return RowBlock(
            batch.rows, sparse.csr_matrix((scores, pairs.gene.astype(np.int32), indptr), shape=shape)
        )


class CellTokens:
    """One row per cell: how many tokens of every gene the cell has, beside :class:`CellScores`.

    Parameters
    ----------
    n_genes
        Columns of the counts matrix.
    """

    fill: float | None = None

    def __init__(self, n_genes: int) -> None:
        self.n_columns = n_genes

    def rows(self, batch: Batch) -> RowBlock:
        """float32 CSR [B, genes] of whole numbers, columns in order."""
        pairs = batch.genes
        indptr = np.searchsorted(pairs.cell, np.arange(batch.tokens.n_cells + 1))
        counts = np.bincount(pairs.entry, minlength=len(pairs.gene)).astype(np.float32)
        shape = (batch.tokens.n_cells, self.n_columns)
        return RowBlock(
            batch.rows, sparse.csr_matrix((counts, pairs.gene.astype(np.int32), indptr), shape=shape)
        )
