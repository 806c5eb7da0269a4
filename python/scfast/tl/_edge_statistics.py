"""Means of edges and their errors from sums over blocks of cells, a few matrices however many blocks there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

#: Sources whose products are made together.
ROWS = 8


@dataclass(eq=False)
class EdgeStatistics:
    """Sums of a group of cells, from which the mean of every edge and its standard error are made.

    With S_b the sum and n_b the cells of block b, the mean is m = sum S_b / sum n_b, and its error that of a ratio of
    totals, var = U / (U - 1) sum_b (S_b - n_b m)^2 / (sum n_b)^2 over U blocks (Cochran 1977, eq. 6.13): the jackknife
    to first order.

    Attributes
    ----------
    score, cells
        float64 [S, G]: sums over all blocks.
    ss, sn, nn
        float64 [S, G]: sums over blocks of S_b^2, S_b n_b and n_b^2; once :meth:`close` was called, U / (U - 1) times
        their parts beyond the means over blocks, which add over groups.
    held
        int32 [S, G]: blocks in which a cell holds both genes.
    blocks
        How many there were.
    """

    score: np.ndarray
    cells: np.ndarray
    ss: np.ndarray
    sn: np.ndarray
    nn: np.ndarray
    held: np.ndarray
    blocks: int = 0

    @classmethod
    def empty(cls, shape: tuple[int, int]) -> Self:
        """Of no cells."""
        score, cells, ss, sn, nn = (np.zeros(shape) for _ in range(5))
        return cls(score, cells, ss, sn, nn, np.zeros(shape, dtype=np.int32))

    def add(self, score: np.ndarray, cells: np.ndarray) -> None:
        """Add a block."""
        self.score += score
        self.cells += cells
        for first in range(0, len(score), ROWS):  # so that products stay in the cache
            at = slice(first, first + ROWS)
            s, n = score[at], cells[at].astype(np.float64)
            self.ss[at] += s * s
            self.sn[at] += s * n
            self.nn[at] += n * n
            self.held[at] += n > 0
        self.blocks += 1

    def close(self) -> None:
        """All blocks of the group are in."""
        n = self.blocks
        factor = n / (n - 1) if n > 1 else np.nan
        for total, one, other in (
            (self.ss, self.score, self.score),
            (self.sn, self.score, self.cells),
            (self.nn, self.cells, self.cells),
        ):
            total -= one * other / n
            total *= factor

    def include(self, group: EdgeStatistics) -> None:
        """Add another group of cells, both closed: blocks then vary within groups."""
        for name in ("score", "cells", "ss", "sn", "nn", "held", "blocks"):
            setattr(self, name, getattr(self, name) + getattr(group, name))

    def mean(self, min_cells: int) -> np.ndarray:
        """float64 [S, G], nan where fewer cells hold both genes."""
        enough = self.cells >= max(min_cells, 1)
        return np.divide(self.score, self.cells, out=np.full(self.score.shape, np.nan), where=enough)

    def error(self, min_cells: int) -> np.ndarray:
        """float64 [S, G]: standard error of the mean; nan where one block holds the edge, which has no spread."""
        mean = self.mean(min_cells)
        spread = np.maximum(self.ss - 2 * mean * self.sn + mean**2 * self.nn, 0)
        return np.sqrt(spread) / np.where(self.held > 1, self.cells, np.nan)


#: Matrices of float64 that one group has.
MATRICES = 5.5


@dataclass(eq=False)
class Replicates:
    """Sums of every replicate, held: where groups share replicates, what they have in common varies with these.

    Attributes
    ----------
    score, cells
        float64 and int32 [U, S, G].
    there
        bool [U]: which replicates have been added.
    """

    score: np.ndarray
    cells: np.ndarray
    there: np.ndarray

    @classmethod
    def empty(cls, n: int, shape: tuple[int, int]) -> Self:
        """Of no cells."""
        return cls(np.zeros((n, *shape)), np.zeros((n, *shape), dtype=np.int32), np.zeros(n, dtype=bool))

    def add(self, number: int, score: np.ndarray, cells: np.ndarray) -> None:
        """Add cells of a replicate."""
        self.score[number] += score
        self.cells[number] += cells
        self.there[number] = True

    def statistics(self) -> EdgeStatistics:
        """Their mean and its error between replicates, whatever groups their cells are of."""
        found = EdgeStatistics.empty(self.score.shape[1:])
        for number in np.flatnonzero(self.there):
            found.add(self.score[number], self.cells[number])
        found.close()
        return found

    def covariance(self, other: Replicates) -> np.ndarray:
        """float64 [S, G]: of the means of two groups of cells, over the replicates that both have.

        The product of what each replicate adds to either mean, (S_b - n_b m) / sum n_b, with the factors U / (U - 1) of
        their variances.
        """
        total = np.zeros(self.score.shape[1:])
        parts = [(each, each.score.sum(0), each.cells.sum(0)) for each in (self, other)]
        for number in np.flatnonzero(self.there & other.there):
            product = np.ones_like(total)
            for each, score, cells in parts:
                n = np.maximum(cells, 1)
                product *= (each.score[number] - each.cells[number] * score / n) / n
            total += product
        one, two = (each.there.sum() for each in (self, other))
        return total * np.sqrt(one / (one - 1) * two / (two - 1))


#: Matrices of float64 that one replicate has.
MATRICES_PER_REPLICATE = 1.5
