"""Counts in memory, handed out as rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import sparse

from scfast.models.base import AttentionSource, Tokens
from scfast.models.counts import looked_at
from scfast.run.stages import stage


@dataclass(frozen=True, eq=False)
class Counts:
    """A counts matrix [cells, genes], its genes, and the total count of every cell where it is known.

    Attributes
    ----------
    matrix
        Sparse or dense; never copied as a whole.
    var
        Describes the columns; its index holds the gene ids.
    n_counts
        [cells], or None: the row sums are taken.
    """

    matrix: sparse.spmatrix | np.ndarray
    var: pd.DataFrame
    n_counts: np.ndarray | None = None

    @property
    def on_disk(self) -> bool:
        """Whether the counts, and so what there is one of per cell, may be larger than the memory."""
        return False

    @property
    def shard_cells(self) -> int | None:
        """Rows whose order a plan should keep together; None: any order will do."""
        return None

    @property
    def n_cells(self) -> int:
        """Number of rows."""
        return int(self.matrix.shape[0])

    def take(self, rows: np.ndarray) -> tuple[sparse.csr_matrix, np.ndarray | None]:
        """CSR rows with sorted columns and no stored zeros, and their total counts."""
        block = sparse.csr_matrix(self.matrix[rows])
        block.sum_duplicates()
        block.eliminate_zeros()
        return block, None if self.n_counts is None else self.n_counts[rows]

    def tokenize(self, source: AttentionSource, rows: np.ndarray) -> tuple[sparse.csr_matrix, Tokens]:
        """Counts and tokens of some cells, without a warning per block about values that were looked at as a whole.

        Where a model's cells are tokenised together, those beside them in the data are too, whichever are asked for.

        Raises
        ------
        ValueError
            When tokens that were made beforehand are of another number of cells.
        """
        rows, together = np.asarray(rows, dtype=np.int64), source.cells_together
        if source.prepared is not None:
            if source.prepared.n_cells != self.n_cells:
                raise ValueError(
                    f"{source.name} holds tokens of {source.prepared.n_cells} cells, but the data have {self.n_cells}"
                )
            return self.take(rows)[0], source.prepared.select(rows)
        every = rows
        if together > 1:
            every = (np.unique(rows // together)[:, None] * together + np.arange(together)).ravel()
            every = every[every < self.n_cells]
        with stage("reading"):
            block, totals = self.take(every)
        with looked_at(), stage("tokenising"):
            tokens = source.tokenize(block, self.var, totals)
        if together == 1:
            return block, tokens
        places = np.searchsorted(every, rows)
        return block[places], tokens.select(places)
