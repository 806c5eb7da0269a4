"""Mean expression and detection per group: the baselines that a ranking of genes must beat."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from scfast.analyses._arrays import ArrayAccumulator
from scfast.analyses.base import Addition, Batch, Scatter
from scfast.analyses.strata import Strata

#: Counts are scaled to this many per cell before the logarithm, as is usual for droplet data.
TARGET_SUM = 1e4


class GroupExpressionResult(NamedTuple):
    """``expression``, mean of log1p(counts per ten thousand), and ``detection``, share of cells with a count.

    Both are float64 [groups, genes], nan for a group without cells.
    """

    expression: np.ndarray
    detection: np.ndarray


class GroupExpression(ArrayAccumulator):
    """Expression of genes in groups of cells, from the counts of the batches.

    Parameters
    ----------
    strata
        The groups (replicates are pooled).
    n_genes
        Columns of the counts matrix.
    """

    config = ("n_genes",)

    def __init__(self, strata: Strata, n_genes: int) -> None:
        self.strata, self.n_genes = strata, n_genes
        shape = (strata.n_groups, n_genes)
        self.sums = {
            "cells": np.zeros(strata.n_groups, dtype=np.int64),
            "detected": np.zeros(shape, dtype=np.int64),
            "expression": np.zeros(shape),
        }

    def additions(self, batch: Batch) -> list[Addition]:
        """What the cells of a batch, which must carry its counts, add; nothing is changed."""
        if batch.counts is None:
            raise ValueError("GroupExpression needs batches with counts; this one has none")
        group, member = self._group_of(batch)
        counts = batch.counts
        cell = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))
        value = counts.data.astype(np.float64)
        total = np.bincount(cell, value, minlength=counts.shape[0])
        keep = (value > 0) & member[cell]
        cell, value = cell[keep], value[keep]
        places = Scatter(group[cell] * self.n_genes + counts.indices[keep])
        return [
            Scatter(group[member]).counts("cells"),
            places.counts("detected"),
            places.sums("expression", np.log1p(value * (TARGET_SUM / total[cell]))),
        ]

    def result(self) -> GroupExpressionResult:
        """Means of every group."""
        cells = np.where(self.sums["cells"] > 0, self.sums["cells"], np.nan)[:, None]
        return GroupExpressionResult(self.sums["expression"] / cells, self.sums["detected"] / cells)
