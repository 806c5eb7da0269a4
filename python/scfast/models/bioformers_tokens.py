"""BioFormers' tokens: the genes of a cell, unexpressed ones too, each with the bin of its count, and <cls>."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import sparse

from scfast import ops
from scfast.models.base import TokenKind, Tokens
from scfast.models.dictionaries import Dictionaries
from scfast.packing import Packing

#: Row of the gene table that stands for <cls>; genes follow.
CLS = 0


@dataclass(frozen=True)
class Binning:
    """How counts become bins (:func:`scfast.ops.bin_values`).

    Attributes
    ----------
    mode
        ``"segment"``, ``"value"`` or ``"quantile"``.
    n_bins
        Bins, that of zero among them.
    cutoff, per_doubling
        Of mode "value".
    target
        Of mode "value": the total that cells are scaled to, the mean of those trained on; None: counts as they are.

    Examples
    --------
    >>> counts = sparse.csr_matrix([[0, 1, 3, 40]])
    >>> Binning("value", 30, cutoff=8.0, per_doubling=3).bins(counts, np.array([44.0])).tolist()
    [1, 3, 15]
    """

    mode: str = "value"
    n_bins: int = 30
    cutoff: float | None = None
    per_doubling: int | None = None
    target: float | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any], origin: str) -> Binning:
        """Read ``binning`` of a ``config.json``.

        Raises
        ------
        ValueError
            When it asks for what :func:`scfast.ops.bin_values` refuses.
        """
        try:
            binning = cls(**config)
            binning.bins(sparse.csr_matrix((0, 0)), np.zeros(0))
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{origin}: binning={config!r:.200} cannot be read: {error}") from None
        return binning

    @property
    def last_exact(self) -> int | None:
        """The largest bin that a single whole count has, that of the cut-off; None where bins are no counts."""
        return round(8.0 if self.cutoff is None else self.cutoff) if self.mode == "value" else None

    def bins(self, cells: sparse.csr_matrix, totals: np.ndarray) -> np.ndarray:
        """int32 [entries]: bin of every entry of ``cells``, whose totals over all genes are ``totals``."""
        options: dict[str, Any] = {}
        if self.mode == "value":
            options = {"cutoff": self.cutoff, "per_doubling": self.per_doubling}
            if self.target is not None:
                options |= {"totals": totals, "target": self.target}
        elif self.mode == "quantile":
            options = {"row_ids": _fingerprints(cells)}
        return ops.bin_values(
            cells.indptr, cells.indices, cells.data, mode=self.mode, n_bins=self.n_bins, **options
        )


@dataclass(frozen=True)
class Inputs:
    """What a cell becomes before it is embedded.

    Attributes
    ----------
    genes
        Of the vocabulary, in order of their rows.
    binning
        How counts become values.
    zero_genes
        Whether genes that a cell lacks are tokens too.
    max_tokens
        Longest cell, <cls> included.
    conditions
        Names of the external tokens.
    mark_targets
        Whether there is one external token more, for the genes that a cell's conditions act on.
    """

    genes: tuple[str, ...]
    binning: Binning
    zero_genes: bool = True
    max_tokens: int | None = None
    conditions: tuple[str, ...] = ()
    mark_targets: bool = False

    @property
    def n_conditions(self) -> int:
        """External tokens, the mark among them."""
        return len(self.conditions) + self.mark_targets

    @property
    def longest(self) -> int:
        """``max_tokens``, by default room for every gene."""
        return len(self.genes) + 1 if self.max_tokens is None else self.max_tokens

    @property
    def tables(self) -> Dictionaries:
        """The genes as :func:`match_genes` looks them up."""
        tokens = {gene: row for row, gene in enumerate(self.genes, start=CLS + 1)}
        return Dictionaries(tokens=tokens, medians=dict.fromkeys(self.genes, 1.0))


def _fingerprints(cells: sparse.csr_matrix) -> np.ndarray:
    """int64 [B]: a number made of a cell's own entries, so that its random ties are its own in every batch."""
    rows = zip(cells.indptr[:-1], cells.indptr[1:], strict=True)
    entries = [cells.indices[a:b].tobytes() + cells.data[a:b].tobytes() for a, b in rows]
    return np.array([zlib.crc32(entry) for entry in entries], dtype=np.int64)


def by_gene(counts: sparse.csr_matrix, token_ids: np.ndarray, n_genes: int) -> sparse.csr_matrix:
    """Counts float64 [B, n_genes + 1], a column for each token; columns of one gene are added up.

    Parameters
    ----------
    counts
        [B, G].
    token_ids
        int64 [G]: token of each column, from 1; -1 where the vocabulary lacks it.
    n_genes
        In the vocabulary.
    """
    known = np.flatnonzero(token_ids >= 0)
    shape = (len(token_ids), n_genes + 1)
    choose = sparse.csr_matrix((np.ones(len(known)), (known, token_ids[known])), shape=shape)
    cells = sparse.csr_matrix(counts.astype(np.float64) @ choose)
    cells.eliminate_zeros()
    cells.sort_indices()
    return cells


def tokens_of(
    counts: sparse.csr_matrix,
    token_ids: np.ndarray,
    standing: np.ndarray,
    totals: np.ndarray,
    binning: Binning,
    *,
    n_genes: int,
    zero_genes: bool,
    cls_last: bool,
    max_tokens: int,
) -> Tokens:
    """Tokens of every cell: <cls>, and genes by falling count, equal ones by their row of the table.

    Parameters
    ----------
    counts
        [B, G].
    token_ids
        int64 [G]: token of each column, from 1; -1 where the vocabulary lacks it.
    standing
        int64 [G]: the column that stands for each one's gene.
    totals
        [B]: total counts of each cell.
    binning
        How counts become values.
    n_genes
        In the vocabulary.
    zero_genes
        Whether genes that the data measure and the cell lacks are tokens too, with value 0.
    cls_last
        Whether <cls> is the last token of a cell, or the first.
    max_tokens
        Longest cell, <cls> included; the smallest counts are cut off.
    """
    n_cells = counts.shape[0]
    cells = by_gene(counts, token_ids, n_genes)
    bins = binning.bins(cells, totals)
    cell = np.repeat(np.arange(n_cells), np.diff(cells.indptr))
    order = np.lexsort((cells.indices, -cells.data, cell))
    ids, bins = cells.indices[order].astype(np.int64), bins[order]
    if zero_genes:
        absent = np.zeros((n_cells, n_genes + 1), dtype=bool)
        absent[:, token_ids[token_ids >= 0]] = True
        absent[cell, ids] = False
        zero_cell, zero_ids = np.nonzero(absent)
        cell = np.concatenate([cell, zero_cell])
        behind = np.argsort(cell, kind="stable")  # zeros follow their cell's counts
        cell, ids = cell[behind], np.concatenate([ids, zero_ids])[behind]
        bins = np.concatenate([bins, np.zeros(len(zero_ids), bins.dtype)])[behind]
    there = np.bincount(cell, minlength=n_cells)
    rank = np.arange(len(cell)) - (np.cumsum(there) - there)[cell]
    kept = rank < max_tokens - 1
    cell, rank, ids, bins = cell[kept], rank[kept], ids[kept], bins[kept]
    n_kept = np.minimum(there, max_tokens - 1)

    lengths = n_kept + 1
    starts = np.cumsum(lengths) - lengths
    place = starts[cell] + rank + (not cls_last)
    column = np.full(n_genes + 1, -1, dtype=np.int64)
    column[token_ids[token_ids >= 0]] = standing[token_ids >= 0]

    def beside_cls(cls: float, of_genes: np.ndarray | int, dtype: Any) -> torch.Tensor:
        whole = np.full(int(lengths.sum()), cls, dtype=dtype)
        whole[place] = of_genes
        return torch.from_numpy(whole)

    stored = np.repeat(np.arange(n_cells), np.diff(counts.indptr))
    unknown = (token_ids < 0)[counts.indices] & (counts.data != 0)
    return Tokens(
        ids=beside_cls(CLS, ids, np.int64),
        positions=torch.from_numpy(np.arange(int(lengths.sum())) - np.repeat(starts, lengths)),
        packing=Packing.from_lengths(lengths.tolist()),
        gene_index=beside_cls(-1, column[ids], np.int64),
        kind=beside_cls(TokenKind.SPECIAL, int(TokenKind.GENE), np.uint8),
        lost_vocabulary=torch.from_numpy(np.bincount(stored[unknown], minlength=n_cells)),
        lost_truncation=torch.from_numpy(there - n_kept),
        values=beside_cls(0, bins, np.float32),
    )
