"""The two contracts of a result over many cells, and the batch that both are fed with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol, Self, runtime_checkable

import numpy as np
import torch
from scipy import sparse

from scfast.models.base import TokenKind, Tokens


class GeneTokens(NamedTuple):
    """The genes of a batch's cells, one entry per (cell, gene) pair, by cell and then by gene column.

    ``cell`` and ``gene`` are int64 [n]; ``rank`` int64 [n] is the gene's place among its cell's gene tokens,
    from 1 (the first place, where a gene has several tokens); ``entry`` int64 [m] says which pair each of the
    batch's m gene tokens belongs to, ``token`` int64 [m] which token of the batch that is, and ``place`` int64 [m]
    its place among the gene tokens of its cell, from 1.
    """

    cell: np.ndarray
    gene: np.ndarray
    rank: np.ndarray
    entry: np.ndarray
    token: np.ndarray
    place: np.ndarray


@dataclass(frozen=True)
class Batch:
    """What one packed batch of cells gave; all tensors are on the host.

    Attributes
    ----------
    rows
        int64 [B]: row number of each cell in the data.
    tokens
        The cells' tokens.
    observed
        Observable name -> packed result of this batch, such as rollout scores [T] or [R, T].
    counts
        The cells' counts [B, genes], for analyses that need them.
    """

    rows: np.ndarray
    tokens: Tokens
    observed: Mapping[str, torch.Tensor]
    counts: sparse.csr_matrix | None = None

    @cached_property
    def cell_of_token(self) -> np.ndarray:
        """int64 [T]: cell of the batch that each token belongs to."""
        return np.repeat(np.arange(self.tokens.n_cells), self.tokens.lengths)

    @cached_property
    def genes(self) -> GeneTokens:
        """The (cell, gene) pairs; computed once and shared by all analyses of the batch."""
        gene = self.tokens.gene_index.numpy()
        token = np.flatnonzero((self.tokens.kind.numpy() == TokenKind.GENE) & (gene >= 0))
        cell, gene = self.cell_of_token[token], gene[token]
        before = np.searchsorted(cell, np.arange(self.tokens.n_cells))  # gene tokens of earlier cells
        place = np.arange(len(token)) - before[cell] + 1
        width = int(gene.max(initial=0)) + 1
        pairs, first, entry = np.unique(cell * width + gene, return_index=True, return_inverse=True)
        return GeneTokens(pairs // width, pairs % width, place[first], entry, token, place)

    def scores(self, name: str, row: int) -> np.ndarray:
        """Token scores of one row of an observable [T], [R, T] or [N, H, T] (N x H rows), as float64 [T]."""
        packed = self.observed[name]
        packed = packed[None] if packed.dim() == 1 else packed.flatten(0, -2)
        return packed[row].to(torch.float64).numpy()

    def gene_scores(self, name: str, row: int) -> np.ndarray:
        """float64 [n]: scores of the pairs of :attr:`genes`, summed over the tokens of a gene in a cell."""
        pairs = self.genes
        return np.bincount(pairs.entry, self.scores(name, row)[pairs.token], minlength=len(pairs.gene))


class Addition(NamedTuple):
    """What a batch adds to one array: ``flat[places] += values``, each place at most once.

    Attributes
    ----------
    array
        Name of the array.
    places
        int64 [n], in the flattened array.
    values
        [n], in the array's dtype.
    """

    array: str
    places: np.ndarray
    values: np.ndarray


@runtime_checkable
class Accumulator(Protocol):
    """A result over any number of cells, which can be computed in parts.

    Updating with batches in any order and any split, and merging the parts in any order, gives the same
    result: exactly for counts (int64), to rounding for sums (float64). An accumulator that saw nothing has a
    result.

    An update has two steps, so that a batch for which memory runs out leaves no half of itself behind:
    :meth:`additions` does all the work and changes nothing, :meth:`add` allocates nothing.
    """

    def additions(self, batch: Batch) -> Sequence[Addition]:
        """What the cells of a batch add; nothing is changed."""

    def add(self, additions: Sequence[Addition]) -> None:
        """Add what :meth:`additions` returned, without allocating arrays."""

    def update(self, batch: Batch) -> None:
        """Add the cells of a batch: both steps."""

    def merge(self, other: Self) -> None:
        """Add what ``other`` has seen; ``other`` is left unchanged."""

    def result(self) -> Any:
        """What the cells seen so far say."""

    def state(self) -> dict[str, np.ndarray]:
        """All that is needed to continue elsewhere, as named arrays that ``np.savez`` takes."""

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> Self:
        """The accumulator that had this state."""

    @property
    def nbytes(self) -> int:
        """Bytes of the state."""


class RowBlock(NamedTuple):
    """Results of some cells.

    Attributes
    ----------
    rows
        int64 [B]: the cells.
    values
        CSR or dense [B, columns].
    """

    rows: np.ndarray
    values: sparse.csr_matrix | np.ndarray


@runtime_checkable
class RowWriter(Protocol):
    """A result with one row per cell; the runner puts the blocks in the order of the data."""

    #: Columns of the result.
    n_columns: int
    #: What rows without a result hold: None for sparse results (nothing), a number for dense ones.
    fill: float | None

    def rows(self, batch: Batch) -> RowBlock:
        """The rows of a batch's cells."""


#: Places among so many times as many are told apart by a table.
_DENSE = 8


class Scatter:
    """Sums values by place, so that adding them costs what the values are and not what the array is.

    Parameters
    ----------
    places
        int64 [n]: flat place of each value; a place may occur more than once.
    """

    def __init__(self, places: np.ndarray) -> None:
        top = int(places.max(initial=-1)) + 1
        if top > _DENSE * len(places):
            self._unique, self._inverse = np.unique(places, return_inverse=True)
            return
        seen = np.zeros(
            top, dtype=bool
        )  # where places are dense, a table is four times as fast as sorting them
        seen[places] = True
        self._unique = np.flatnonzero(seen)
        number = np.cumsum(seen) - 1
        self._inverse = number[places]

    def counts(self, array: str, values: np.ndarray | None = None, start: int = 0) -> Addition:
        """The addition of whole numbers ``values`` [n], ones by default, to an int64 array; as :meth:`sums`."""
        sums = np.bincount(self._inverse, values, minlength=len(self._unique))
        places = self._unique + start if start else self._unique
        return Addition(array, places, sums.astype(np.int64, copy=False))

    def sums(self, array: str, values: np.ndarray, start: int = 0) -> Addition:
        """The addition of ``values`` [n] to a float64 array, whose places count from ``start``."""
        sums = np.bincount(self._inverse, values, minlength=len(self._unique))
        places = self._unique + start if start else self._unique
        return Addition(array, places, sums.astype(np.float64, copy=False))
