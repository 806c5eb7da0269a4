"""Scores by place in the encoding, rather than by gene."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from scfast.analyses._arrays import ArrayAccumulator, ratio
from scfast.analyses._errors import standard_error
from scfast.analyses.base import Addition, Batch, Scatter
from scfast.analyses.strata import Strata


class RankProfileResult(NamedTuple):
    """Statistics of every group and rank, [groups, ranks].

    ``cells`` int64 is the number of cells with a token of that rank; ``sum``, ``mean`` and ``se`` (the standard
    error between those cells, or between their replicates) of their scores are float64, nan where nothing is defined.
    """

    cells: np.ndarray
    sum: np.ndarray
    mean: np.ndarray
    se: np.ndarray


class RankProfile(ArrayAccumulator):
    """Scores of the gene tokens at each rank, from the highest ranked.

    Parameters
    ----------
    strata
        The groups, or groups and replicates; errors are between replicates in the latter case, else between
        cells.
    n_ranks
        Most gene tokens of a cell.
    name
        The observable that holds the scores [T] or [R, T].
    row
        Which of the R rows.
    """

    config = ("n_ranks", "name", "row")

    def __init__(self, strata: Strata, n_ranks: int, name: str = "received", row: int = -1) -> None:
        self.strata, self.n_ranks, self.name, self.row = strata, n_ranks, name, row
        shape = (strata.n, n_ranks)
        self.sums = {
            "cells": np.zeros(shape, dtype=np.int64),
            "score": np.zeros(shape),
            "square": np.zeros(shape),
        }

    def additions(self, batch: Batch) -> list[Addition]:
        """What the cells of a batch add; nothing is changed."""
        stratum, member = self._strata_of(batch)
        cell, rank = batch.cell_of_token[batch.genes.token], batch.genes.place
        if rank.max(initial=0) > self.n_ranks:
            raise ValueError(f"a cell has {rank.max()} gene tokens; this profile has {self.n_ranks} ranks")
        inside = member[cell]
        scores = batch.scores(self.name, self.row)[batch.genes.token[inside]]
        places = Scatter(stratum[cell[inside]] * self.n_ranks + rank[inside] - 1)
        return [
            places.counts("cells"),
            places.sums("score", scores),
            places.sums("square", scores * scores),
        ]

    def result(self) -> RankProfileResult:
        """Statistics of every group and rank."""
        cells, score = self.strata.by_group(self.sums["cells"]), self.strata.by_group(self.sums["score"])
        mean = ratio(score, cells)
        error = standard_error(self.strata, self.sums["score"], self.sums["square"], self.sums["cells"], mean)
        return RankProfileResult(cells, score, mean, error)
