"""Cells cut down to equal length, so that none owes its attention to having more genes than another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import sparse

from scfast.models.base import AttentionSource, TokenKind, Tokens
from scfast.run.counts import Counts


@dataclass(frozen=True, eq=False)
class EqualLength(Counts):
    """Counts of which every cell keeps ``n_genes`` gene tokens, drawn at random and left in their order.

    A cell's draw depends on its row and on the seed alone. A cell with fewer gene tokens keeps all it has; counts
    and what was lost stay those of the whole cell.

    Attributes
    ----------
    matrix, var, n_counts
        As of :class:`Counts`.
    n_genes
        Gene tokens that are kept.
    seed
        Of the draws.
    """

    n_genes: int = 1
    seed: int = 0

    def tokenize(self, source: AttentionSource, rows: np.ndarray) -> tuple[sparse.csr_matrix, Tokens]:
        """Counts and thinned tokens of some cells."""
        block, tokens = super().tokenize(source, rows)
        is_gene = (tokens.kind.numpy() == TokenKind.GENE) & (tokens.gene_index.numpy() >= 0)
        keep = ~is_gene
        for row, start, length in zip(rows, tokens.packing.starts_q, tokens.lengths, strict=True):
            genes = start + np.flatnonzero(is_gene[start : start + length])
            size = min(self.n_genes, len(genes))
            keep[np.random.default_rng([self.seed, int(row)]).choice(genes, size, replace=False)] = True
        return block, tokens.keep(keep)
