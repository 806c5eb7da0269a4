"""Sums of states over cells: by class, of single cells, and second moments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy

from scfast.analyses._arrays import ArrayAccumulator
from scfast.analyses.base import Addition, Batch, Scatter
from scfast.analyses.strata import Strata


class StateTotals(NamedTuple):
    """``sum`` float64 [S, units, d] and ``cells`` int64 [S, units] of every stratum: not copies, for their size."""

    sum: np.ndarray
    cells: np.ndarray


class StateSums(ArrayAccumulator):
    """Sums of states in strata of cells; with one cell in each, a sample of the states themselves.

    Parameters
    ----------
    strata
        Which cells are summed together.
    n_units, width
        Vectors of each cell, such as one per layer and readout, and numbers of each.
    name
        The observable: [B, ..., d], n_units x d numbers a cell, nan where a cell lacks a vector.
    """

    config = ("n_units", "width", "name")

    def __init__(self, strata: Strata, n_units: int, width: int, name: str = "token_states") -> None:
        self.strata, self.n_units, self.width, self.name = strata, n_units, width, name
        self.sums = {
            "cells": np.zeros((strata.n, n_units), dtype=np.int64),
            "sum": np.zeros((strata.n, n_units, width)),
        }

    def additions(self, batch: Batch) -> list[Addition]:
        """What the cells of a batch add; nothing is changed."""
        stratum, member = self._strata_of(batch)
        states, held = states_of(batch, self.name, self.n_units, self.width)
        there, which = np.unique(stratum[member], return_inverse=True)
        sums = np.zeros((len(there), self.n_units, self.width))
        np.add.at(sums, which, states[member])
        pairs = np.broadcast_to(held[member], (len(which), self.n_units)).nonzero()
        size = self.n_units * self.width
        places = there[:, None] * size + np.arange(size)
        return [
            Scatter(there[which[pairs[0]]] * self.n_units + pairs[1]).counts("cells"),
            Addition("sum", places.ravel(), sums.ravel()),
        ]

    def result(self) -> StateTotals:
        """Sums of every stratum."""
        return StateTotals(self.sums["sum"], self.sums["cells"])


class StateGram(ArrayAccumulator):
    """Second moments of states: sum over cells of x x^T, for every stratum and unit, in float64.

    Parameters
    ----------
    strata
        Which cells are summed together.
    n_units, width, name
        As for :class:`StateSums`.

    Notes
    -----
    The sums hold the lower triangle; see :func:`symmetric`.
    """

    config = ("n_units", "width", "name")

    def __init__(self, strata: Strata, n_units: int, width: int, name: str = "token_states") -> None:
        self.strata, self.n_units, self.width, self.name = strata, n_units, width, name
        self.sums = {"gram": np.zeros((strata.n, n_units, width, width))}

    def additions(self, batch: Batch) -> list[Addition]:
        """The states of a batch by stratum: ``places`` [1] is the stratum, ``values`` float64 [units, n, d]."""
        stratum, member = self._strata_of(batch)
        states, _ = states_of(
            batch, self.name, self.n_units, self.width
        )  # one that a cell lacks is 0 and adds 0
        return [
            Addition("gram", np.array([each]), np.ascontiguousarray(states[stratum == each].swapaxes(0, 1)))
            for each in np.unique(stratum[member])
        ]

    def add(self, additions: Sequence[Addition]) -> None:
        """Add what :meth:`additions` returned, in place."""
        for name, places, values in additions:
            grams = self.sums[name][places[0]]
            for gram, states in zip(grams, values, strict=True):
                # Transposed, both are in the order of BLAS, which then adds to the matrix itself.
                scipy.linalg.blas.dsyrk(1.0, states.T, beta=1.0, c=gram.T, overwrite_c=1)

    def result(self) -> np.ndarray:
        """float64 [S, units, d, d], lower triangles of every stratum: not a copy, for its size."""
        return self.sums["gram"]


def symmetric(triangles: np.ndarray) -> np.ndarray:
    """Symmetric matrices [..., d, d] of those that :class:`StateGram` sums, which hold their lower triangle."""
    lower = np.tril(triangles)
    return lower + np.swapaxes(np.tril(triangles, -1), -1, -2)


def states_of(batch: Batch, name: str, n_units: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """States of a batch's cells, float64 [B, units, d] with 0 for those that a cell lacks, and which it has."""
    found = batch.observed[name].numpy().astype(np.float64)
    if found.size != found.shape[0] * n_units * width:
        raise ValueError(
            f"{name} gave {list(found.shape)}; expected {n_units} x {width} numbers for each cell"
        )
    states = found.reshape(len(found), n_units, width)
    held = np.asarray(~np.isnan(states).any(-1))
    return np.where(held[..., None], states, 0.0), held
