"""Mean states of genes over cells, at every layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from scfast.analyses._arrays import ArrayAccumulator
from scfast.analyses.base import Addition, Batch, Scatter
from scfast.analyses.strata import Strata


class GeneStatesResult(NamedTuple):
    """``mean`` float64 [G, K, d], nan for genes that no cell has, and ``cells`` int64 [G]."""

    mean: np.ndarray
    cells: np.ndarray


class GeneStates(ArrayAccumulator):
    """Means of genes' states over the cells that have them, every cell weighing the same.

    Parameters
    ----------
    strata
        All cells in one group: an observation is a sum over the cells of a batch.
    columns
        int64 [G]: columns of the genes in the counts matrix, ascending.
    n_states, width
        States of each gene, and numbers of each.
    name
        The observable, :class:`scfast.observables.GeneStateSums` of the same columns: float64 [U, K, d].
    """

    config = ("columns", "n_states", "width", "name")

    def __init__(
        self, strata: Strata, columns: np.ndarray, n_states: int, width: int, name: str = "gene_state_sums"
    ) -> None:
        self.strata, self.n_states, self.width, self.name = strata, n_states, width, name
        self.columns = np.asarray(columns, dtype=np.int64)
        if np.any(np.diff(self.columns) <= 0):
            raise ValueError("columns must ascend, each once: results would be those of other genes")
        self.sums = {
            "cells": np.zeros(len(self.columns), dtype=np.int64),
            "sum": np.zeros((len(self.columns), n_states, width)),
        }

    def additions(self, batch: Batch) -> list[Addition]:
        """What the cells of a batch add: ``places`` of the sums are genes, ``values`` float64 [U, K, d]."""
        _, member = self._strata_of(batch)
        if not member.all():
            raise ValueError(
                f"{int((~member).sum())} cells of a batch are in no group, and {self.name} is summed over all of them:"
                " run the cells of the group alone"
            )
        gene = batch.genes.gene
        place = np.searchsorted(self.columns, gene)
        inside = place < len(self.columns)
        inside[inside] = self.columns[place[inside]] == gene[inside]
        cells = Scatter(place[inside]).counts("cells")
        sums = batch.observed[self.name].numpy()
        if sums.shape != (len(cells.places), self.n_states, self.width):
            raise ValueError(
                f"{self.name} gave {list(sums.shape)}; expected [{len(cells.places)}, {self.n_states}, {self.width}]:"
                " the genes of the batch, states and width"
            )
        return [cells, Addition("sum", cells.places, sums)]

    def add(self, additions: Sequence[Addition]) -> None:
        """Add what :meth:`additions` returned, gene by gene, in place."""
        for name, places, values in additions:
            if name != "sum":
                super().add([Addition(name, places, values)])
                continue
            for place, value in zip(places, values, strict=True):
                np.add(self.sums[name][place], value, out=self.sums[name][place])

    def result(self) -> GeneStatesResult:
        """Means of every gene."""
        cells = self.sums["cells"]
        return GeneStatesResult(
            self.sums["sum"] / np.where(cells > 0, cells, np.nan)[:, None, None], cells.copy()
        )
