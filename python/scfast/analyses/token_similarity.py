"""How alike the tokens of a cell are at every layer, in groups of cells: distributions of cosines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import numpy as np

from scfast.analyses._arrays import ArrayAccumulator, ratio
from scfast.analyses._errors import standard_error
from scfast.analyses.base import Addition, Batch, Scatter
from scfast.analyses.strata import Strata
from scfast.observables.token_cosines import PAIRS, STATISTICS


class TokenSimilarityResult(NamedTuple):
    """Statistics of every group, state and kind of pairs, [groups, K, 3]; float64, nan where nothing is defined.

    ``counts`` int64 [groups, K, 3, bins] and ``pairs`` int64 are exact. ``mean``, ``sd``, ``min`` and ``max`` are over
    all pairs of the group's cells; ``cells`` int64 have such pairs, and ``cell_mean`` is the mean over them of the mean
    of their pairs, every cell weighing the same, ``cell_se`` its standard error. ``zeros`` int64 are tokens whose state
    is 0.
    """

    counts: np.ndarray
    pairs: np.ndarray
    mean: np.ndarray
    sd: np.ndarray
    min: np.ndarray
    max: np.ndarray
    cells: np.ndarray
    cell_mean: np.ndarray
    cell_se: np.ndarray
    zeros: np.ndarray


class TokenSimilarity(ArrayAccumulator):
    """Adds up the histograms of :class:`scfast.observables.TokenCosines`.

    Parameters
    ----------
    strata
        The groups, or groups and replicates, between which errors of the cells' means then are.
    n_states
        K, states of the model: its layers and the embeddings.
    bins
        Of the histograms.
    name
        The observable: float64 [B, K, 3, bins + 6].
    """

    config = ("n_states", "bins", "name")
    joined_by: ClassVar[Mapping[str, np.ufunc]] = {"min": np.minimum, "max": np.maximum}

    def __init__(self, strata: Strata, n_states: int, bins: int = 200, name: str = "token_cosines") -> None:
        self.strata, self.n_states, self.bins, self.name = strata, n_states, bins, name
        kinds = (n_states, len(PAIRS))
        of_group, of_stratum = (strata.n_groups, *kinds), (strata.n, *kinds)
        self.sums = {
            "counts": np.zeros((*of_group, bins), dtype=np.int64),
            "zeros": np.zeros(of_group, dtype=np.int64),
            "min": np.full(of_group, np.inf),
            "max": np.full(of_group, -np.inf),
            "sum": np.zeros(of_group),
            "sum_of_squares": np.zeros(of_group),
            "cells": np.zeros(of_stratum, dtype=np.int64),
            "cell_mean": np.zeros(of_stratum),
            "cell_square": np.zeros(of_stratum),
        }

    def additions(self, batch: Batch) -> list[Addition]:
        """What the cells of a batch add; nothing is changed."""
        group, member = self._group_of(batch)
        stratum, _ = self._strata_of(batch)
        observed = batch.observed[self.name].numpy()[member]  # [B, K, 3, bins + 6]
        counts = observed[..., : self.bins]
        numbers = dict(zip(STATISTICS, np.moveaxis(observed[..., self.bins :], -1, 0), strict=True))
        found = [*self._of_groups("counts", group[member], counts)]
        for name in ("zeros", "min", "max", "sum", "sum_of_squares"):
            found += self._of_groups(name, group[member], numbers[name])

        pairs = counts.sum(-1)
        held = pairs > 0
        size = self.n_states * len(PAIRS)
        places = stratum[member][:, None] * size + np.arange(size)
        scatter = Scatter(places[held.reshape(len(places), size)])
        mean = numbers["sum"][held] / pairs[held]
        return [
            *found,
            scatter.counts("cells"),
            scatter.sums("cell_mean", mean),
            scatter.sums("cell_square", mean**2),
        ]

    def _of_groups(self, name: str, group: np.ndarray, values: np.ndarray) -> list[Addition]:
        """Values [B, ...] of cells, joined within each group."""
        join, dtype = self.joined_by.get(name, np.add), self.sums[name].dtype
        size = int(np.prod(values.shape[1:]))
        return [
            Addition(
                name,
                each * size + np.arange(size),
                join.reduce(values[group == each], 0).ravel().astype(dtype),
            )
            for each in np.unique(group)
        ]

    def result(self) -> TokenSimilarityResult:
        """Distributions of every group."""
        sums, strata = self.sums, self.strata
        pairs = sums["counts"].sum(-1)
        mean = ratio(sums["sum"], pairs)
        variance = ratio(sums["sum_of_squares"], pairs) - mean**2
        flat = {name: sums[name].reshape(strata.n, -1) for name in ("cells", "cell_mean", "cell_square")}
        cells = strata.by_group(flat["cells"])
        cell_mean = ratio(strata.by_group(flat["cell_mean"]), cells)
        error = standard_error(strata, flat["cell_mean"], flat["cell_square"], flat["cells"], cell_mean)
        low, high = (np.where(pairs > 0, sums[name], np.nan) for name in ("min", "max"))
        return TokenSimilarityResult(
            counts=sums["counts"].copy(), pairs=pairs, mean=mean, sd=np.sqrt(np.maximum(variance, 0.0)),
            min=low, max=high, cells=cells.reshape(pairs.shape), cell_mean=cell_mean.reshape(pairs.shape),
            cell_se=error.reshape(pairs.shape), zeros=sums["zeros"].copy(),
        )  # fmt: skip
