"""What share of a cell's scores each gene has, against the share that its tokens alone would give it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import sparse

from scfast.analyses._arrays import ArrayAccumulator, ratio
from scfast.analyses.base import Addition, Batch, RowBlock, Scatter
from scfast.analyses.cell_scores import CellScores, CellTokens
from scfast.analyses.strata import Strata


class Shares(NamedTuple):
    """Of the scores that are stored for some cells, one entry each.

    ``cell`` and ``gene`` int64; ``attention`` the score's share of the cell's scores and ``frequency`` the gene's share
    of the cell's n gene tokens, 1 / n where every gene has one; ``relative`` the score in units of that of one token.
    """

    cell: np.ndarray
    gene: np.ndarray
    attention: np.ndarray
    frequency: np.ndarray
    relative: np.ndarray


def shares(
    scores: sparse.csr_matrix, tokens: sparse.csr_matrix | None = None, *, sum_to_one: bool = True
) -> Shares:
    """Shares of every score of cells [B, genes]; cells whose scores sum to 0 have none and are left out.

    Parameters
    ----------
    scores
        Not negative; an entry for every gene that the cell has a token of.
    tokens
        How many tokens those are, in the same places. Default: one each.
    sum_to_one
        Whether the scores of all tokens of a cell sum to 1, special ones included, so that the even score is 1 / n.
        Otherwise it is that of the cell's genes, their sum / n.
    """
    n_cells = scores.shape[0]
    cell = np.repeat(np.arange(n_cells), np.diff(scores.indptr))
    values = scores.data.astype(np.float64)
    held = np.ones_like(values) if tokens is None else tokens.data.astype(np.float64)
    total, n = (np.bincount(cell, x, minlength=n_cells) for x in (values, held))
    kept = total[cell] > 0
    cell, values, held = cell[kept], values[kept], held[kept]
    attention = values / total[cell]
    relative = (values if sum_to_one else attention) * n[cell]
    return Shares(cell, scores.indices[kept].astype(np.int64), attention, held / n[cell], relative)


class GeneSharesResult(NamedTuple):
    """Statistics of every group, nan where nothing is defined.

    ``cells`` int64 [groups]: those with scores. ``attention`` and ``frequency`` float64 [groups, genes]: mean shares
    over them. ``detecting`` int64 [groups, genes]: cells that have a token of the gene; ``relative`` float64
    [groups, genes]: their mean score in units of the even one.
    """

    cells: np.ndarray
    attention: np.ndarray
    frequency: np.ndarray
    detecting: np.ndarray
    relative: np.ndarray


class GeneShares(ArrayAccumulator):
    """Mean shares of genes in groups of cells, from a model's batches or from the scores that were kept of cells.

    Parameters
    ----------
    strata
        The groups, or groups and replicates.
    n_genes
        Columns of the counts matrix.
    name, row
        The observable that holds the scores [R, T], and which of its rows.
    sum_to_one
        1 or 0; see :func:`shares`.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy import sparse
    >>> from scfast.analyses import GeneShares, RowBlock, Strata
    >>> means = GeneShares(Strata.from_codes(np.array([0, 0]), 1), 3)
    >>> means.add(means.of_rows(RowBlock(np.arange(2), sparse.csr_matrix([[0.5, 0.3, 0.2], [0.6, 0.4, 0.0]]))))
    >>> means.result().attention.round(2).tolist(), means.result().relative.round(2).tolist()
    ([[0.55, 0.35, 0.1]], [[1.35, 0.85, 0.6]])
    """

    config = ("n_genes", "name", "row", "sum_to_one")

    def __init__(
        self, strata: Strata, n_genes: int, name: str = "rollout", row: int = -1, sum_to_one: int = 1
    ) -> None:
        self.strata, self.n_genes, self.name, self.row, self.sum_to_one = (
            strata,
            n_genes,
            name,
            row,
            sum_to_one,
        )
        per_gene = (strata.n, n_genes)
        self.sums = {
            "cells": np.zeros(strata.n, dtype=np.int64),
            "count": np.zeros(per_gene, dtype=np.int64),
            "attention": np.zeros(per_gene),
            "frequency": np.zeros(per_gene),
            "relative": np.zeros(per_gene),
        }

    def additions(self, batch: Batch) -> list[Addition]:
        """What the cells of a batch add; nothing is changed."""
        tokens = sparse.csr_matrix(CellTokens(self.n_genes).rows(batch).values)
        return self.of_rows(CellScores(self.n_genes, self.name, self.row).rows(batch), tokens)

    def of_rows(self, block: RowBlock, tokens: sparse.csr_matrix | None = None) -> list[Addition]:
        """What cells add whose scores [B, genes], and tokens, were kept; nothing is changed."""
        stratum = self.strata.of(block.rows)
        found = shares(sparse.csr_matrix(block.values), tokens, sum_to_one=bool(self.sum_to_one))
        inside = stratum[found.cell] >= 0
        cell, gene = found.cell[inside], found.gene[inside]
        places = Scatter(stratum[cell] * self.n_genes + gene)
        return [
            Scatter(stratum[np.unique(cell)]).counts("cells"),
            places.counts("count"),
            *(
                places.sums(name, getattr(found, name)[inside])
                for name in ("attention", "frequency", "relative")
            ),
        ]

    def result(self) -> GeneSharesResult:
        """Means of every group."""
        by_group = {name: self.strata.by_group(total) for name, total in self.sums.items()}
        cells, count = by_group["cells"], by_group["count"]
        return GeneSharesResult(
            cells, ratio(by_group["attention"], cells[:, None]), ratio(by_group["frequency"], cells[:, None]),
            count, ratio(by_group["relative"], count),
        )  # fmt: skip
