"""Cosine between the attention maps of two models, per layer and head, in groups of cells."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from scfast.analyses._arrays import ArrayAccumulator, ratio
from scfast.analyses._errors import standard_error
from scfast.analyses.base import Addition, Batch, Scatter
from scfast.analyses.strata import Strata

#: Sums of the accumulator: of the cells' cosines and their squares, and the inner products of all maps together.
SUMS = ("cosine", "square", "dot", "square1", "square2")


class MapCosinesResult(NamedTuple):
    """Cosines of every group; float64 [groups, N, H], nan for a group without cells.

    ``mean`` and ``se`` (between cells or replicates, nan for one) are over the cells' cosines; ``concatenated`` is one
    cosine of the maps of all cells, one after another, so that larger maps count for more. ``cells`` is int64 [groups].
    """

    mean: np.ndarray
    se: np.ndarray
    concatenated: np.ndarray
    cells: np.ndarray


class MapCosines(ArrayAccumulator):
    """<P1, P2> / (|P1| |P2|) of each layer and head (Falkenstein 2024), from inner products of the maps.

    Parameters
    ----------
    strata
        The groups, or groups and replicates; errors are between replicates in the latter case, else between
        cells.
    n_layers, n_heads
        N and H of each model.
    name
        The observable that holds the inner products [B, N, H, 3].
    """

    config = ("n_layers", "n_heads", "name")

    def __init__(self, strata: Strata, n_layers: int, n_heads: int, name: str = "map_shift") -> None:
        self.strata, self.n_layers, self.n_heads, self.name = strata, n_layers, n_heads, name
        self.sums = {"cells": np.zeros(strata.n, dtype=np.int64)}
        self.sums |= {array: np.zeros((strata.n, n_layers, n_heads)) for array in SUMS}

    def additions(self, batch: Batch) -> list[Addition]:
        """What the cells of a batch add; nothing is changed."""
        stratum, member = self._strata_of(batch)
        stratum = stratum[member]
        products = batch.observed[self.name].numpy()[member]  # [cells, N, H, 3]
        dot, square1, square2 = np.moveaxis(products, -1, 0)
        cosine = dot / np.sqrt(square1 * square2)
        maps = self.n_layers * self.n_heads
        places = Scatter((stratum[:, None] * maps + np.arange(maps)).reshape(-1))
        values = (cosine, cosine * cosine, dot, square1, square2)
        return [
            Scatter(stratum).counts("cells"),
            *(places.sums(array, x.reshape(-1)) for array, x in zip(SUMS, values, strict=True)),
        ]

    def result(self) -> MapCosinesResult:
        """Cosines of every group."""
        cells = self.strata.by_group(self.sums["cells"])
        cosine, _, dot, square1, square2 = (self.strata.by_group(self.sums[array]) for array in SUMS)
        mean = ratio(cosine, np.broadcast_to(cells[:, None, None], cosine.shape))
        n = np.broadcast_to(self.sums["cells"][:, None, None], self.sums["cosine"].shape)
        norm = np.sqrt(square1) * np.sqrt(square2)
        return MapCosinesResult(
            mean=mean,
            se=standard_error(self.strata, self.sums["cosine"], self.sums["square"], n, mean),
            concatenated=dot / np.where(norm > 0, norm, np.nan),
            cells=cells,
        )
