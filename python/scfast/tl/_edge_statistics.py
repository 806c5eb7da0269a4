"""Means of edges and their errors from sums over blocks of cells, a few matrices however many blocks there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np


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
    blocks
        How many there were.
    """

    score: np.ndarray
    cells: np.ndarray
    ss: np.ndarray
    sn: np.ndarray
    nn: np.ndarray
    blocks: int = 0

    @classmethod
    def empty(cls, shape: tuple[int, int]) -> Self:
        """Of no cells."""
        score, cells, ss, sn, nn = (np.zeros(shape) for _ in range(5))
        return cls(score, cells, ss, sn, nn)

    def add(self, score: np.ndarray, cells: np.ndarray) -> None:
        """Add a block."""
        self.score += score
        self.cells += cells
        for total, one, other in ((self.ss, score, score), (self.sn, score, cells), (self.nn, cells, cells)):
            total += one * other.astype(np.float64)
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
        for name in ("score", "cells", "ss", "sn", "nn", "blocks"):
            setattr(self, name, getattr(self, name) + getattr(group, name))

    def mean(self, min_cells: int) -> np.ndarray:
        """float64 [S, G], nan where fewer cells hold both genes."""
        enough = self.cells >= max(min_cells, 1)
        return np.divide(self.score, self.cells, out=np.full(self.score.shape, np.nan), where=enough)

    def error(self, min_cells: int) -> np.ndarray:
        """float64 [S, G]: standard error of the mean; nan for one block."""
        mean = self.mean(min_cells)
        spread = np.maximum(self.ss - 2 * mean * self.sn + mean**2 * self.nn, 0)
        return np.sqrt(spread) / np.where(self.cells > 0, self.cells, np.nan)


#: Matrices of float64 that one group has.
MATRICES = 5
