"""Mean gene scores per group at every layer, or at every head of every layer."""

from __future__ import annotations

import numpy as np

from scfast.analyses._arrays import ArrayAccumulator
from scfast.analyses.base import Addition, Batch, Scatter
from scfast.analyses.strata import Strata


class LayerScores(ArrayAccumulator):
    """Mean over all cells of a group, for each of the R rows of an observable.

    Parameters
    ----------
    strata
        The groups (replicates are pooled).
    n_genes
        Columns of the counts matrix.
    n_rows
        R, one row per layer or head.
    name
        The observable that holds the scores [R, T] or [N, H, T], R = N H.
    """

    config = ("n_genes", "n_rows", "name")

    def __init__(self, strata: Strata, n_genes: int, n_rows: int, name: str = "rollout") -> None:
        self.strata, self.n_genes, self.n_rows, self.name = strata, n_genes, n_rows, name
        self.sums = {
            "cells": np.zeros(strata.n_groups, dtype=np.int64),
            "score": np.zeros((n_rows, strata.n_groups, n_genes)),
        }

    def additions(self, batch: Batch) -> list[Addition]:
        """What the cells of a batch add; nothing is changed."""
        group, member = self._group_of(batch)
        found = [Scatter(group[member]).counts("cells")]
        pairs = batch.genes
        inside = member[pairs.cell]
        places = Scatter(group[pairs.cell[inside]] * self.n_genes + pairs.gene[inside])
        for row in range(self.n_rows):
            start = row * self.strata.n_groups * self.n_genes
            found.append(places.sums("score", batch.gene_scores(self.name, row)[inside], start))
        return found

    def result(self) -> np.ndarray:
        """float64 [R, groups, genes]: mean scores; nan for a group without cells."""
        cells = self.sums["cells"]
        return self.sums["score"] / np.where(cells > 0, cells, np.nan)[:, None]
