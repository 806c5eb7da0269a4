"""scGPT's tokens: the expressed genes of a cell, drawn where they are too many, and the bins of their counts.

What is drawn depends on the seed and on the cell's own counts of known genes, not on its place in the data, the cells
beside it or the order of the columns: batches may be cut anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import sparse

from scfast import ops
from scfast.models.base import TokenKind, Tokens
from scfast.packing import Packing
from scfast.reference.bin_values import random, split_mix

#: In the vocabulary beside genes; what it lacks is appended in this order, as the authors' code does.
SPECIAL = ("<pad>", "<cls>", "<eoc>")


@dataclass(frozen=True)
class Rules:
    """How a cell becomes tokens.

    Attributes
    ----------
    cls
        Row of the gene table that stands for <cls>.
    cls_value
        Its value.
    n_bins
        Bins of counts, that of zero among them.
    max_tokens
        Longest cell, <cls> included; of more genes so many are drawn.
    seed
        Of ties between bins and of genes drawn.
    """

    cls: int
    cls_value: float
    n_bins: int
    max_tokens: int
    seed: int

    def __post_init__(self) -> None:
        for name, least in (("n_bins", 2), ("max_tokens", 2), ("seed", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ValueError(f"{name} must be a whole number, {least} or more; got {value!r}")


def check_vocabulary(table: Mapping[str, Any], origin: str) -> dict[str, int]:
    """The vocabulary with its special tokens: gene or token -> row of the gene table.

    Raises
    ------
    ValueError
        When the rows are not the numbers from 0, each once.
    """
    numbers = [n for n in table.values() if isinstance(n, int) and not isinstance(n, bool)]
    if len(numbers) < len(table) or sorted(numbers) != list(range(len(table))):
        raise ValueError(
            f"{origin} must number its {len(table)} genes and tokens from 0 to {len(table) - 1}, each once; it is not"
            " the vocab.json of an scGPT"
        )
    vocabulary = dict(table)
    for token in SPECIAL:
        vocabulary.setdefault(token, len(vocabulary))
    return vocabulary


def per_cell(flags: np.ndarray, indptr: np.ndarray) -> np.ndarray:
    """int64 [cells]: how many entries of each cell have their flag set."""
    return np.diff(np.concatenate([[0], np.cumsum(flags)])[indptr])


def by_token(
    counts: sparse.csr_matrix, token_ids: np.ndarray, n_tokens: int
) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Counts of the genes that have a token, those of one gene added up.

    Parameters
    ----------
    counts
        [cells, G].
    token_ids
        int64 [G]: token of each column, -1 where it has none.
    n_tokens
        Tokens of the vocabulary, V.

    Returns
    -------
    cells, lost
        float32 CSR [cells, V] without zeros, columns in order; int64 [cells]: expressed genes without a token.
    """
    tokens = token_ids[counts.indices]
    known, expressed = (tokens >= 0) & (counts.data != 0), counts.data != 0
    found = per_cell(known, counts.indptr)
    entries = (counts.data[known].astype(np.float32), tokens[known], np.concatenate([[0], np.cumsum(found)]))
    cells = sparse.csr_matrix(entries, shape=(counts.shape[0], n_tokens))
    cells.sum_duplicates()
    return cells, per_cell(expressed, counts.indptr) - found


def fingerprints(cells: sparse.csr_matrix) -> np.ndarray:
    """int64 [cells]: a number made of a cell's entries, whatever their order."""
    bits = cells.data.astype(np.float64).view(np.uint64)
    mixed = split_mix(bits, cells.indices.astype(np.uint64))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed, dtype=np.uint64)])[cells.indptr]
    return np.diff(sums).view(np.int64)  # modulo 2^64


def drawn(cells: sparse.csr_matrix, keys: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """Flags [entries]: at most ``limit`` of every cell, all equally likely, without replacement.

    Parameters
    ----------
    cells
        From :func:`by_token`.
    keys
        int64 [cells]: from :func:`fingerprints`.
    limit, seed
        How many, and which.
    """
    kept = np.ones(cells.nnz, dtype=bool)
    for cell in np.flatnonzero(np.diff(cells.indptr) > limit):
        row = slice(cells.indptr[cell], cells.indptr[cell + 1])
        # the complement of the key: numbers that no tie between bins is broken by
        order = np.argsort(random(seed, ~keys[cell], cells.indices[row]))
        kept[row][order[limit:]] = False
    return kept


def tokens_of(counts: sparse.csr_matrix, token_ids: np.ndarray, columns: np.ndarray, rules: Rules) -> Tokens:
    """Tokens of every cell: <cls>, then genes by falling count, equal ones by their row of the table.

    The model knows no positions, so the order changes nothing but the rank that tables report.

    Parameters
    ----------
    counts
        [cells, G].
    token_ids
        int64 [G]: token of each column, -1 where it has none.
    columns
        int64 [V]: the column that stands for each token.
    rules
        Limits and numbers of tokens.
    """
    cells, lost = by_token(counts, token_ids, len(columns))
    keys = fingerprints(cells)
    bins = ops.bin_values(
        cells.indptr, cells.indices, cells.data,
        mode="quantile", n_bins=rules.n_bins, seed=rules.seed, row_ids=keys,
    )  # fmt: skip
    kept = drawn(cells, keys, rules.max_tokens - 1, rules.seed)
    n_genes = per_cell(kept, cells.indptr)
    cell = np.repeat(np.arange(len(keys)), n_genes)
    ids = cells.indices[kept].astype(np.int64)
    order = np.lexsort((ids, -cells.data[kept], cell))
    ids, bins = ids[order], bins[kept][order]

    lengths = n_genes + 1
    starts = np.cumsum(lengths) - lengths
    is_gene = np.ones(int(lengths.sum()), dtype=bool)
    is_gene[starts] = False

    def with_cls(cls: float, genes: np.ndarray | int, dtype: type) -> torch.Tensor:
        """One number for every token."""
        numbers: np.ndarray = np.full(len(is_gene), cls, dtype=dtype)
        numbers[is_gene] = genes
        return torch.from_numpy(numbers)

    return Tokens(
        ids=with_cls(rules.cls, ids, np.int64),
        positions=torch.from_numpy(np.arange(len(is_gene)) - np.repeat(starts, lengths)),
        packing=Packing.from_lengths(lengths.tolist()),
        gene_index=with_cls(-1, columns[ids], np.int64),
        kind=with_cls(TokenKind.SPECIAL, TokenKind.GENE, np.uint8),
        lost_vocabulary=torch.from_numpy(lost),
        lost_truncation=torch.from_numpy(np.diff(cells.indptr) - n_genes).to(torch.int64),
        values=with_cls(rules.cls_value, bins, np.float32),
    )
