"""Sums over cells of what is observed between genes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from scfast.analyses._arrays import ArrayAccumulator
from scfast.analyses.base import Addition, Batch
from scfast.analyses.strata import Strata

#: Dense additions have no places: they are of the whole array.
_ALL = np.empty(0, dtype=np.int64)


class _DenseSums(ArrayAccumulator):
    """Sums to which every batch adds everywhere."""

    def add(self, additions: Sequence[Addition]) -> None:
        """Add what :meth:`additions` returned, without allocating arrays."""
        for array, _, values in additions:
            np.add(self.sums[array], values, out=self.sums[array])

    def _check(self, batch: Batch, observed: np.ndarray, shape: tuple[int, ...]) -> None:
        _, member = self._strata_of(batch)
        if not member.all():
            raise ValueError(
                f"{int((~member).sum())} cells of a batch are in no group, and a batch is summed over all of them: run"
                " the cells of the group alone"
            )
        if observed.shape != shape:
            raise ValueError(f"observed are sums {list(observed.shape)}; expected {list(shape)}")


class GeneEdgesResult(NamedTuple):
    """``score`` float64 [S, G], sums over cells, and ``cells`` int64 [S, G], how many hold both genes."""

    score: np.ndarray
    cells: np.ndarray


class GeneEdges(_DenseSums):
    """Edges between genes, summed over cells, and the cells that hold both ends.

    Parameters
    ----------
    strata
        All cells in one group: an observation is a sum over the cells of a batch.
    genes, sources
        int64 [columns]: the place of each column among the targets, and among the sources; -1 for none.
    first, last
        The sources that are kept.
    name
        The observable, :class:`scfast.observables.GeneEdges` of the same.
    """

    config = ("genes", "sources", "first", "last", "name")

    def __init__(
        self, strata: Strata, genes: np.ndarray, sources: np.ndarray, first: int, last: int,
        name: str = "gene_edges",
    ) -> None:  # fmt: skip
        self.strata, self.first, self.last, self.name = strata, first, last, name
        self.genes, self.sources = (np.asarray(x, dtype=np.int64) for x in (genes, sources))
        shape = (last - first, int(self.genes.max(initial=-1)) + 1)
        self.sums = {"score": np.zeros(shape), "cells": np.zeros(shape, dtype=np.int64)}

    def additions(self, batch: Batch) -> list[Addition]:
        """What the cells of a batch add; nothing is changed."""
        score, (rows, columns) = batch.observed[self.name].numpy(), self.sums["score"].shape
        self._check(batch, score, (rows, columns))
        pairs = batch.genes
        source, target = self.sources[pairs.gene] - self.first, self.genes[pairs.gene]
        has = [torch.zeros(len(batch.rows), width) for width in (rows, columns)]
        for held, place in zip(has, (source, target), strict=True):
            inside = (place >= 0) & (place < held.shape[1])
            held.numpy()[pairs.cell[inside], place[inside]] = 1
        both = (has[0].T @ has[1]).to(torch.int64)  # exact: whole numbers far below 2**24
        return [Addition("score", _ALL, score), Addition("cells", _ALL, both.numpy())]

    def result(self) -> GeneEdgesResult:
        """Sums and numbers of cells."""
        return GeneEdgesResult(self.sums["score"].copy(), self.sums["cells"].copy())


class GeneStateTotals(_DenseSums):
    """Sums of the same shape from every batch, such as queries and keys of genes.

    Parameters
    ----------
    strata
        All cells in one group.
    layers, genes, width
        Of the observation, float64 [layers, genes, width].
    name
        The observable.
    """

    config = ("layers", "genes", "width", "name")

    def __init__(
        self, strata: Strata, layers: int, genes: int, width: int, name: str = "gene_queries_keys"
    ) -> None:
        self.strata, self.layers, self.genes, self.width, self.name = strata, layers, genes, width, name
        self.sums = {"sum": np.zeros((layers, genes, width))}

    def additions(self, batch: Batch) -> list[Addition]:
        """What the cells of a batch add; nothing is changed."""
        observed = batch.observed[self.name].numpy()
        self._check(batch, observed, (self.layers, self.genes, self.width))
        return [Addition("sum", _ALL, observed)]

    def result(self) -> np.ndarray:
        """float64 [layers, genes, width]."""
        return self.sums["sum"].copy()
