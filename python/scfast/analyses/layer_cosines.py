"""How alike the vectors of one cell are at different layers, averaged over groups of cells."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from scfast.analyses._arrays import ArrayAccumulator, ratio
from scfast.analyses._errors import standard_error
from scfast.analyses.base import Addition, Batch, Scatter
from scfast.analyses.strata import Strata


class LayerCosinesResult(NamedTuple):
    """Statistics of every group.

    ``mean`` cosine and standard error ``se``, float64 [groups, K, K]; ``cells`` int64 [groups]; ``zeros`` int64
    [groups, K]: cells whose vector is zero, which is like no other.
    """

    mean: np.ndarray
    se: np.ndarray
    cells: np.ndarray
    zeros: np.ndarray


class LayerCosines(ArrayAccumulator):
    """Mean cosine between layers of each cell's vector, every cell weighing the same.

    Parameters
    ----------
    strata
        The groups, or groups and replicates, between which errors then are.
    n_layers
        K, vectors of a cell.
    name
        The observable: [B, K, d].
    """

    config = ("n_layers", "name")

    def __init__(self, strata: Strata, n_layers: int, name: str = "hidden_states") -> None:
        self.strata, self.n_layers, self.name = strata, n_layers, name
        self.sums = {
            "cells": np.zeros(strata.n, dtype=np.int64),
            "zeros": np.zeros((strata.n, n_layers), dtype=np.int64),
            "cosine": np.zeros((strata.n, n_layers, n_layers)),
            "square": np.zeros((strata.n, n_layers, n_layers)),
        }

    def additions(self, batch: Batch) -> list[Addition]:
        """What the cells of a batch add; nothing is changed."""
        stratum, member = self._strata_of(batch)
        states = batch.observed[self.name].double().numpy()[member]  # [B, K, d]
        if not np.isfinite(states).all():
            layers = np.flatnonzero(~np.isfinite(states).all(axis=(0, 2))).tolist()
            raise ValueError(
                f"{self.name} is nan or infinite at layers {layers}: the model's weights are damaged"
            )
        norm = np.linalg.norm(states, axis=2, keepdims=True)
        unit = np.divide(states, norm, out=np.zeros_like(states), where=norm > 0)
        cosine = np.clip(unit @ unit.swapaxes(1, 2), -1.0, 1.0)  # [B, K, K]
        of_cell = stratum[member]
        size = self.n_layers * self.n_layers
        pairs = Scatter((of_cell[:, None] * size + np.arange(size)).ravel())
        cell, layer = np.nonzero(norm[:, :, 0] == 0)
        return [
            Scatter(of_cell).counts("cells"),
            Scatter(of_cell[cell] * self.n_layers + layer).counts("zeros"),
            pairs.sums("cosine", cosine.ravel()),
            pairs.sums("square", (cosine**2).ravel()),
        ]

    def result(self) -> LayerCosinesResult:
        """Means of every group."""
        size, shape = self.n_layers**2, (self.strata.n_groups, self.n_layers, self.n_layers)
        cells = self.sums["cells"]
        sums, squares = (self.sums[name].reshape(-1, size) for name in ("cosine", "square"))
        total = self.strata.by_group(cells)
        n = np.broadcast_to(cells[:, None], sums.shape)
        mean = ratio(self.strata.by_group(sums), np.broadcast_to(total[:, None], (len(total), size)))
        se = standard_error(self.strata, sums, squares, n, mean)
        zeros = self.strata.by_group(self.sums["zeros"])
        return LayerCosinesResult(mean.reshape(shape), se.reshape(shape), total, zeros)
