"""Numbers of each cell, such as one per layer and head, averaged over groups of cells."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from scfast.analyses._arrays import ArrayAccumulator, ratio
from scfast.analyses._errors import standard_error
from scfast.analyses.base import Addition, Batch, Scatter
from scfast.analyses.strata import Strata


class CellMeansResult(NamedTuple):
    """``mean`` and standard error ``se``, float64 [groups, values], and ``cells``, int64 [groups]."""

    mean: np.ndarray
    se: np.ndarray
    cells: np.ndarray


class CellMeans(ArrayAccumulator):
    """Means over the cells of each group, every cell weighing the same.

    Parameters
    ----------
    strata
        The groups, or groups and replicates; errors are between replicates in the latter case, else between
        cells (:func:`scfast.analyses._errors.standard_error`).
    n_values
        How many numbers a cell has; the observable's first so many, where it has more.
    name
        The observable: numbers per cell [B, ...], or with ``per_token`` per token [..., T], of which each cell's mean
        over all its tokens is taken.
    per_token
        1 or 0.
    """

    config = ("n_values", "name", "per_token")

    def __init__(self, strata: Strata, n_values: int, name: str, per_token: int = 0) -> None:
        self.strata, self.n_values, self.name, self.per_token = strata, n_values, name, per_token
        self.sums = {
            "cells": np.zeros(strata.n, dtype=np.int64),
            "sum": np.zeros((strata.n, n_values)),
            "square": np.zeros((strata.n, n_values)),
        }

    def additions(self, batch: Batch) -> list[Addition]:
        """What the cells of a batch add; nothing is changed."""
        stratum, member = self._strata_of(batch)
        values = self._values(batch)[member].reshape(-1)
        places = Scatter((stratum[member, None] * self.n_values + np.arange(self.n_values)).reshape(-1))
        cells = Scatter(stratum[member]).counts("cells")
        return [cells, places.sums("sum", values), places.sums("square", values * values)]

    def result(self) -> CellMeansResult:
        """Means of every group."""
        cells = np.broadcast_to(self.sums["cells"][:, None], self.sums["sum"].shape)
        mean = ratio(self.strata.by_group(self.sums["sum"]), self.strata.by_group(cells))
        se = standard_error(self.strata, self.sums["sum"], self.sums["square"], cells, mean)
        return CellMeansResult(mean, se, self.strata.by_group(self.sums["cells"]))

    def _values(self, batch: Batch) -> np.ndarray:
        """float64 [B, values]."""
        observed = batch.observed[self.name].to(torch.float64)
        n_cells = batch.tokens.n_cells
        if not self.per_token:
            return observed.flatten(1)[:, : self.n_values].numpy()
        rows = observed.flatten(0, -2)[: self.n_values].numpy()
        lengths = np.maximum(np.asarray(batch.tokens.lengths), 1)
        sums = [np.bincount(batch.cell_of_token, row, minlength=n_cells) for row in rows]
        return np.stack(sums, axis=1) / lengths[:, None]
