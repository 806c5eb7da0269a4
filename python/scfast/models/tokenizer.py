"""A user's own tokeniser as part of a model: which column of the counts each of its tokens stands for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from scfast.models.base import TokenKind, Tokens
from scfast.models.counts import as_csr, totals_of
from scfast.models.dictionaries import SPECIAL, Dictionaries
from scfast.models.gene_ids import GeneMatch, Matcher, match_genes
from scfast.packing import Packing

#: One sequence of numbers per cell.
Cells: TypeAlias = "Sequence[Sequence[int] | Sequence[float] | np.ndarray | torch.Tensor]"
#: What a tokeniser returns: ids of every cell, or several of the fields of :class:`~scfast.models.Tokens` by name.
Encoded: TypeAlias = "Cells | Mapping[str, Cells] | Tokens"

_FIELDS = {
    "ids": np.int64,
    "gene_index": np.int64,
    "kind": np.uint8,
    "values": np.float32,
    "external": np.int64,
}


def pack_cells(
    ids: Cells,
    *,
    gene_index: Cells | None = None,
    kind: Cells | None = None,
    values: Cells | None = None,
    external: Cells | None = None,
) -> Tokens:
    """Tokens of cells that are given one by one.

    Parameters
    ----------
    ids
        Rows of the model's token table, for every cell.
    gene_index
        Column of the counts that each token stands for, -1 for none. Default: none stands for a gene's column.
    kind
        :class:`~scfast.models.TokenKind` of each token. Default: special where ``gene_index`` is -1, if it is given,
        else a gene.
    values, external
        As :class:`~scfast.models.Tokens` describes them.

    Returns
    -------
    Tokens
        All cells, one after another; positions count from 0 in each.

    Raises
    ------
    ValueError
        When a cell has not as many of one as of another.

    Examples
    --------
    >>> tokens = pack_cells([[2, 7, 9], [2, 4]], gene_index=[[-1, 5, 0], [-1, 3]])
    >>> tokens.lengths, tokens.kind.tolist()
    ((3, 2), [1, 0, 0, 1, 0])
    """
    given = {"ids": ids, "gene_index": gene_index, "kind": kind, "values": values, "external": external}
    lengths = [len(cell) for cell in ids]
    parts: dict[str, Any] = {}
    for name, cells in given.items():
        if cells is None:
            continue
        if [len(cell) for cell in cells] != lengths:
            raise ValueError(
                f"{name} must have as many entries as ids in every cell; some cell has more or fewer"
            )
        flat = [np.asarray(cell).reshape(-1) for cell in cells]
        joined = np.concatenate([*flat, np.empty(0, dtype=_FIELDS[name])])
        if joined.size and joined.dtype.kind not in ("iu" if _FIELDS[name] != np.float32 else "iuf"):
            joined = _whole(name, joined)
        parts[name] = torch.from_numpy(joined.astype(_FIELDS[name]))
    total, none = sum(lengths), torch.zeros(len(lengths), dtype=torch.int64)
    if kind is None:
        special = torch.zeros(total, dtype=torch.bool) if gene_index is None else parts["gene_index"] < 0
        parts["kind"] = torch.where(special, int(TokenKind.SPECIAL), int(TokenKind.GENE)).to(torch.uint8)
    parts.setdefault("gene_index", torch.full((total,), -1))
    packing = Packing.from_lengths(lengths)
    return Tokens(
        packing=packing,
        positions=packing.position_of_query(),
        lost_vocabulary=none,
        lost_truncation=none,
        **parts,
    )


def _whole(name: str, values: np.ndarray) -> np.ndarray:
    if values.dtype.kind == "f" and np.array_equal(values, np.rint(values)):
        return values
    raise ValueError(f"{name} must be whole numbers, got {values.dtype}")


class Tokenizer:
    """Calls a user's tokeniser, and finds the genes of its tokens.

    Parameters
    ----------
    function
        ``function(counts, var)``, or with ``n_counts`` as third parameter: see :func:`scfast.models.wrap`.
    vocabulary
        Gene id or symbol -> token id; None where the function says itself which columns its tokens stand for.
    gene_names
        Symbol -> gene id of the vocabulary.
    n_ids
        Rows of the model's token table; None where that is not known.
    name
        Of the model, for reports.
    """

    def __init__(
        self,
        function: Callable[..., Encoded] | None,
        vocabulary: Mapping[str, int] | None,
        gene_names: Mapping[str, str] | None,
        n_ids: int | None,
        name: str,
    ) -> None:
        self.function, self.n_ids, self.name = function, n_ids, name
        self._takes_totals = function is not None and "n_counts" in inspect.signature(function).parameters
        self.tables = None
        if vocabulary is not None:
            tokens = {gene: int(token) for gene, token in vocabulary.items()}
            self._check_vocabulary(tokens)
            medians = dict.fromkeys(tokens, 1.0)
            self.tables = Dictionaries(tokens=tokens, medians=medians, gene_names=dict(gene_names or {}))
        elif gene_names is not None:
            raise ValueError(
                "gene_names translates symbols to genes of a vocabulary: give vocabulary= as well"
            )
        self._match: Matcher[GeneMatch] | None = (
            None if self.tables is None else Matcher(partial(match_genes, dictionaries=self.tables), name)
        )

    @property
    def genes(self) -> list[str]:
        """Of the vocabulary, in the order of their tokens."""
        return [] if self.tables is None else self.tables.genes

    def _check_vocabulary(self, tokens: dict[str, int]) -> None:
        genes = {gene: token for gene, token in tokens.items() if gene not in SPECIAL}
        if len(set(genes.values())) != len(genes):
            raise ValueError(f"{self.name}: vocabulary gives one token id to several genes")
        low, high = min(tokens.values(), default=0), max(tokens.values(), default=-1)
        if low < 0 or (self.n_ids is not None and high >= self.n_ids):
            raise ValueError(
                f"{self.name}: vocabulary has tokens from {low} to {high}, but the model's token table has "
                f"{self.n_ids} rows: they belong to different models"
            )

    def match(self, var: pd.DataFrame) -> GeneMatch:
        """Which columns of the data the vocabulary knows, and how their names were read."""
        assert self._match is not None
        return self._match(var)

    def __call__(self, counts: sparse.csr_matrix, var: pd.DataFrame, n_counts: np.ndarray | None) -> Tokens:
        """Tokens of every row of ``counts`` [cells, genes].

        Raises
        ------
        ValueError
            Without a tokeniser; where its tokens are not in the model's table; where no gene is in the vocabulary.
        """
        if self.function is None:
            raise ValueError(
                f"{self.name} has no tokeniser: give tokenize=, a function of counts and var that returns the ids of "
                "every cell, or hand over tokens that were made before, source.with_tokens(ids)"
            )
        counts = as_csr(counts, var)
        totals = {"n_counts": totals_of(counts, n_counts)} if self._takes_totals else {}
        match = None
        if self.tables is not None:
            match = self.match(var)
            counts = _added_up(counts, match.target)
            known = np.where(match.target == np.arange(len(var)), match.token_ids, -1)
            var = var.assign(token=known)
        encoded = self.function(counts, var, **totals)
        tokens = self.pack(encoded, match)
        if tokens.n_cells != counts.shape[0]:
            raise ValueError(
                f"{self.name}: the tokeniser was given {counts.shape[0]} cells and returned {tokens.n_cells}"
            )
        return tokens if match is None or tokens is encoded else _with_losses(tokens, counts, match)

    def pack(self, encoded: Encoded, match: GeneMatch | None) -> Tokens:
        """Tokens from what a tokeniser returned; their genes by ``match`` where it did not say."""
        if isinstance(encoded, Tokens):
            tokens = encoded
        else:
            fields: dict[str, Any] = dict(encoded) if isinstance(encoded, Mapping) else {"ids": encoded}
            if "ids" not in fields or fields.keys() - _FIELDS:
                raise ValueError(
                    f"{self.name}: the tokeniser must return ids per cell, or a mapping with 'ids' and any of "
                    f"{', '.join(sorted(_FIELDS.keys() - {'ids'}))}; got {', '.join(map(str, fields))}"
                )
            if "gene_index" not in fields and match is not None:
                fields["gene_index"], genes = self._genes_of(fields["ids"], match)
                fields.setdefault("kind", genes)
            tokens = pack_cells(**fields)
        if tokens.n_tokens:
            low, high = int(tokens.ids.min()), int(tokens.ids.max())
            if low < 0 or (self.n_ids is not None and high >= self.n_ids):
                raise ValueError(
                    f"{self.name}: the tokeniser returned ids from {low} to {high}, but the model's token table has "
                    f"{self.n_ids} rows"
                )
        return tokens

    def _genes_of(self, ids: Cells, match: GeneMatch) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Column of every token, -1 for none, and its kind: what the vocabulary lacks is special."""
        assert self.tables is not None
        known = np.array([self.tables.tokens[gene] for gene in self.genes], dtype=np.int64)
        cells = [np.asarray(cell, dtype=np.int64).reshape(-1) for cell in ids]
        size = 1 + max([int(known.max(initial=0)), *(int(cell.max(initial=0)) for cell in cells)])
        column, kind = np.full(size, -1), np.full(size, int(TokenKind.SPECIAL), dtype=np.uint8)
        kind[known] = int(TokenKind.GENE)
        own = np.flatnonzero((match.token_ids >= 0) & (match.target == np.arange(len(match.target))))
        column[match.token_ids[own]] = own
        return [column[cell] for cell in cells], [kind[cell] for cell in cells]


def _added_up(counts: sparse.csr_matrix, target: np.ndarray) -> sparse.csr_matrix:
    """Counts whose columns of one gene are added to the one that stands for it."""
    own = np.arange(len(target))
    if np.array_equal(target, own):
        return counts
    ones = np.ones(len(target), dtype=counts.dtype)
    return (counts @ sparse.csr_matrix((ones, (own, target)), shape=(len(target),) * 2)).tocsr()


def _with_losses(tokens: Tokens, counts: sparse.csr_matrix, match: GeneMatch) -> Tokens:
    """The tokens, and the expressed genes that the vocabulary or the tokeniser left out."""
    n_cells, n_genes = counts.shape
    cell = np.repeat(np.arange(n_cells), np.diff(counts.indptr))[counts.data != 0]
    column = counts.indices[counts.data != 0]
    known = match.token_ids[column] >= 0
    seen = np.repeat(np.arange(n_cells), tokens.lengths) * n_genes + tokens.gene_index.numpy()
    left = known & ~np.isin(cell * n_genes + column, seen[tokens.gene_index.numpy() >= 0])
    parts = {name: getattr(tokens, name) for name in ("ids", "positions", "packing", *list(_FIELDS)[1:])}
    return Tokens(
        **parts,
        lost_vocabulary=torch.from_numpy(np.bincount(cell[~known], minlength=n_cells)),
        lost_truncation=torch.from_numpy(np.bincount(cell[left], minlength=n_cells)),
    )
