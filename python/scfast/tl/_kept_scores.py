"""Scores of every cell that an earlier tool kept in ``adata.layers``."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from scfast.analyses import GeneShares, RowBlock, Strata

if TYPE_CHECKING:
    from anndata import AnnData

#: Cells taken at once.
CELLS_AT_ONCE = 4096
#: Scores of a cell that is said to sum to 1 may be off by rounding so much.
ROUNDING = 1e-3


@dataclass(frozen=True, eq=False)
class KeptScores:
    """Scores of genes, and what was noted of them.

    Attributes
    ----------
    matrix
        float CSR [cells, genes]: an entry for every gene that the cell has a token of.
    results
        ``adata.uns`` of the same name.
    genes
        Names of the columns.
    sum_to_one
        Whether the scores of a cell's tokens sum to 1, as those of a rollout do.
    tokens
        Tokens of each gene, in the places of ``matrix``; None where every gene has one.
    """

    matrix: sparse.csr_matrix
    results: dict[str, Any]
    genes: pd.Index
    sum_to_one: bool
    tokens: sparse.csr_matrix | None = None

    def blocks(self, rows: np.ndarray) -> Iterator[tuple[RowBlock, sparse.csr_matrix | None]]:
        """The scores of these rows and their tokens, some at a time."""
        for start in range(0, len(rows), CELLS_AT_ONCE):
            here = rows[start : start + CELLS_AT_ONCE]
            yield RowBlock(here, self.matrix[here]), None if self.tokens is None else self.tokens[here]

    def gene_shares(self, strata: Strata) -> GeneShares:
        """Shares of genes in the cells of these strata."""
        totals = GeneShares(strata, self.matrix.shape[1], sum_to_one=int(self.sum_to_one))
        for block, tokens in self.blocks(np.flatnonzero(strata.of_row >= 0)):
            totals.add(totals.of_rows(block, tokens))
        return totals


def kept_scores(adata: AnnData, key: str) -> KeptScores:
    """The scores under ``key``, checked.

    Raises
    ------
    KeyError
        When no tool kept scores under that name.
    TypeError
        When they are not sparse any more, so that genes without a token cannot be told from those that score 0.
    ValueError
        When scores are negative, nan or infinite.
    """
    if key not in adata.layers or "table" not in adata.uns.get(key, {}):
        raise KeyError(
            f"adata has no scores of cells named {key!r} (layers[{key!r}] and uns[{key!r}]): run scfast.tl.rollout("
            f"adata, model, key_added={key!r}) first, with store_cells=True"
        )
    layer = _in_memory(adata.layers[key])
    if not sparse.issparse(layer):
        raise TypeError(
            f"adata.layers[{key!r}] is a {type(layer).__name__}; sparse scores are needed, because an entry says that"
            " a cell has a token of the gene: run the tool again"
        )
    matrix = sparse.csr_matrix(layer)
    if not np.isfinite(matrix.data).all():
        raise ValueError(f"adata.layers[{key!r}] holds nan or infinite scores: run the tool again")
    if matrix.nnz and matrix.data.min() < 0:
        raise ValueError(
            f"adata.layers[{key!r}] holds negative scores (down to {matrix.data.min():.3g}), of which there are no"
            " shares: use a tool whose scores are not signed"
        )
    totals = np.asarray(matrix.sum(axis=1, dtype=np.float64)).ravel()
    nothing = int(np.sum((totals == 0) & (np.diff(matrix.indptr) > 0)))
    if nothing:
        warnings.warn(
            f"the scores of {nothing} cells in adata.layers[{key!r}] are all 0; these cells are left out",
            UserWarning,
            stacklevel=3,
        )
    sum_to_one = bool(totals.max(initial=0.0) <= 1 + ROUNDING)
    return KeptScores(
        matrix, adata.uns[key], adata.var_names.astype(str), sum_to_one, _tokens(adata, key, matrix)
    )


def _in_memory(layer: Any) -> Any:
    """The layer, read where it is on disk."""
    return layer.to_memory() if hasattr(layer, "to_memory") else layer


def _tokens(adata: AnnData, key: str, matrix: sparse.csr_matrix) -> sparse.csr_matrix | None:
    """The tokens that were kept beside scores, where a gene has several."""
    name = adata.uns[key].get("params", {}).get("tokens_layer")
    if name is None:
        return None
    tokens = sparse.csr_matrix(_in_memory(adata.layers[name])) if name in adata.layers else None
    if tokens is None or not (
        np.array_equal(tokens.indptr, matrix.indptr) and np.array_equal(tokens.indices, matrix.indices)
    ):
        raise KeyError(
            f"adata.layers[{name!r}] does not hold the tokens of the scores in adata.layers[{key!r}], of which a cell"
            " has several of one gene: run the tool again"
        )
    return tokens


def own_groupby(kept: KeptScores, groupby: str | None) -> str | None:
    """The column to group by: the one that is named, else the one that the scores were computed with."""
    return kept.results.get("params", {}).get("groupby") if groupby is None else groupby
