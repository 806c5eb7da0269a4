"""Intervals by the bootstrap, and labels permuted among genes that are alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import scipy


def bootstrap(
    blocks: Iterable[tuple[np.ndarray, np.ndarray]], sizes: Sequence[int], n: int, draws: np.random.Generator
) -> np.ndarray:
    """Means of resampled units, float64 [n, K]: each sample draws as many units as there are, with replacement.

    Units come in blocks, so that no more of them are held at once: how many a sample draws from each block is
    multinomial, and so is which of a block's units they are.

    Parameters
    ----------
    blocks
        For some units each, their sums float64 [m, K] and how many cells those are [m].
    sizes
        How many units each block has.
    n
        Samples.
    draws
        Source of randomness.

    Examples
    --------
    >>> import numpy as np
    >>> cells = np.random.default_rng(0).normal(5, 2, size=(400, 1))
    >>> means = bootstrap([(cells, np.ones(400))], [400], 2000, np.random.default_rng(1))
    >>> means.shape, bool(abs(means.std() - cells.std() / 20) < 0.01)
    ((2000, 1), True)
    """
    units = sum(sizes)
    of_block = draws.multinomial(units, np.array(sizes) / units, size=n)  # [n, blocks]
    total, weight = 0.0, np.zeros((n, 1))
    for number, (sums, cells) in enumerate(blocks):
        times = draws.multinomial(of_block[:, number], np.full(len(sums), 1 / len(sums))).astype(np.float64)
        total = total + times @ sums
        weight += (times @ cells)[:, None]
    return total / weight


def bins_of(values: Sequence[np.ndarray], n: int) -> np.ndarray:
    """int64 [genes]: bins of equal size in each of several values [genes], and their combinations.

    Examples
    --------
    >>> import numpy as np
    >>> bins_of([np.array([1.0, 2.0, 3.0, 4.0]), np.array([9.0, 0.0, 9.0, 0.0])], 2).tolist()
    [1, 0, 3, 2]
    """
    bins = np.zeros(len(values[0]), dtype=np.int64)
    for each in values:
        places = (scipy.stats.rankdata(each) - 0.5) * n / max(len(each), 1)
        bins = bins * n + np.floor(places).astype(np.int64)
    return bins


def permuted(labels: np.ndarray, bins: np.ndarray, draws: np.random.Generator) -> np.ndarray:
    """Labels [genes] in random order within each bin."""
    places = np.argsort(bins, kind="stable")
    mixed = np.lexsort((draws.random(len(bins)), bins))
    result = np.empty_like(labels)
    result[places] = labels[mixed]
    return result
