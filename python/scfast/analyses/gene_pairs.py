"""What chosen genes read from other genes: scores per pair of genes, in groups of cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from scfast.analyses._arrays import ArrayAccumulator, ratio
from scfast.analyses.base import Addition, Batch, Scatter
from scfast.analyses.strata import Strata


class GenePairsResult(NamedTuple):
    """Means of every group; float64 unless said otherwise, nan where no cell defines them.

    ``mean`` [steps, groups, targets, sources] is over the cells that hold both genes, whose number is ``cells`` int64
    [groups, targets, sources]; ``mass`` [steps, groups, targets] is the mean sum over all gene tokens of a cell, over
    the ``holding`` int64 [groups, targets] cells with the target; ``n_cells`` int64 [groups].
    """

    mean: np.ndarray
    cells: np.ndarray
    mass: np.ndarray
    holding: np.ndarray
    n_cells: np.ndarray

    @classmethod
    def concatenated(cls, parts: Sequence[GenePairsResult]) -> GenePairsResult:
        """Blocks of targets, one after another, over the same cells."""
        axis = {"mean": 2, "cells": 1, "mass": 2, "holding": 1}
        joined = {name: np.concatenate([getattr(x, name) for x in parts], at) for name, at in axis.items()}
        return cls(**joined, n_cells=parts[0].n_cells)


class GenePairs(ArrayAccumulator):
    """Scores of source genes for the readout of each target gene.

    Parameters
    ----------
    strata
        The groups (replicates are pooled).
    n_genes
        Columns of the counts matrix.
    targets
        int64 [R]: columns of the genes that are read out, one row of the observable each.
    sources
        int64 [G]: columns of the genes whose scores are kept.
    steps
        Blocks of R rows, such as one per layer.
    name
        The observable that holds the scores: steps x R rows [.., T], the targets varying fastest; zero in cells
        without the target.
    """

    config = ("n_genes", "targets", "sources", "steps", "name")

    def __init__(
        self,
        strata: Strata,
        n_genes: int,
        targets: np.ndarray,
        sources: np.ndarray,
        steps: int = 1,
        name: str = "rollout",
    ) -> None:
        self.strata, self.n_genes, self.steps, self.name = strata, n_genes, steps, name
        self.targets, self.sources = (np.asarray(x, dtype=np.int64) for x in (targets, sources))
        self._row = _places(self.targets, n_genes)
        self._column = _places(self.sources, n_genes)
        pairs, rows = (len(self.targets), strata.n_groups), steps * len(self.targets)
        self.sums = {
            "n_cells": np.zeros(strata.n_groups, dtype=np.int64),
            "holding": np.zeros(pairs, dtype=np.int64),
            "cells": np.zeros((*pairs, len(self.sources)), dtype=np.int64),
            "mass": np.zeros((rows, strata.n_groups)),
            "score": np.zeros((rows, strata.n_groups, len(self.sources))),
        }

    def additions(self, batch: Batch) -> list[Addition]:
        """What the cells of a batch add; nothing is changed."""
        group, member = self._group_of(batch)
        pairs = batch.genes
        holds = np.zeros((len(self.targets), len(member)), dtype=bool)
        wanted = self._row[pairs.gene] >= 0
        holds[self._row[pairs.gene[wanted]], pairs.cell[wanted]] = True

        in_group = member[pairs.cell]
        inside = in_group & (self._column[pairs.gene] >= 0)
        width, n_groups = len(self.sources), self.strata.n_groups
        places = Scatter(group[pairs.cell[inside]] * width + self._column[pairs.gene[inside]])
        cells, entries = Scatter(group[member]), Scatter(group[pairs.cell[in_group]])
        found = [cells.counts("n_cells")]
        for row, held in enumerate(holds):
            found.append(cells.counts("holding", held[member], row * n_groups))
            found.append(places.counts("cells", held[pairs.cell[inside]], row * n_groups * width))
        for row in range(self.steps * len(self.targets)):
            scores = batch.gene_scores(self.name, row)
            found.append(entries.sums("mass", scores[in_group], row * n_groups))
            found.append(places.sums("score", scores[inside], row * n_groups * width))
        return found

    def result(self) -> GenePairsResult:
        """Means of every group."""
        cells, holding = (self.sums[name].swapaxes(0, 1) for name in ("cells", "holding"))
        score, mass = (
            self.sums[name].reshape(self.steps, len(self.targets), *self.sums[name].shape[1:]).swapaxes(1, 2)
            for name in ("score", "mass")
        )
        return GenePairsResult(
            mean=ratio(score, np.broadcast_to(cells, score.shape)),
            cells=cells.copy(),
            mass=ratio(mass, np.broadcast_to(holding, mass.shape)),
            holding=holding.copy(),
            n_cells=self.sums["n_cells"].copy(),
        )


def _places(columns: np.ndarray, n_genes: int) -> np.ndarray:
    """int64 [n_genes]: the place of each gene among ``columns``, -1 for those that are not there."""
    places = np.full(n_genes, -1, dtype=np.int64)
    places[columns] = np.arange(len(columns))
    return places
