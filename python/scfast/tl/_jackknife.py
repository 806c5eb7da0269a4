"""Intervals by leaving out one block after another."""

from __future__ import annotations

import numpy as np
import scipy

#: Of the intervals.
LEVEL = 0.95


def blocks_of(n: int, n_blocks: int, draws: np.random.Generator) -> np.ndarray:
    """int64 [n]: a random block for each of n, all of one size or one apart.

    Examples
    --------
    >>> import numpy as np
    >>> np.bincount(blocks_of(7, 3, np.random.default_rng(0))).tolist()
    [3, 2, 2]
    """
    return draws.permutation(np.arange(n) % n_blocks)


def jackknife_error(left_out: np.ndarray) -> np.ndarray:
    """Standard error sqrt((B - 1) / B sum_b (x_b - mean x)^2) of values [B, ...], each with one block left out.

    nan for fewer than two blocks.

    Examples
    --------
    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=50)
    >>> means = (x.sum() - x) / 49
    >>> bool(np.isclose(jackknife_error(means), x.std(ddof=1) / np.sqrt(50)))
    True
    """
    n = len(left_out)
    if n < 2:
        return np.full(left_out.shape[1:], np.nan)
    return np.asarray(np.sqrt((n - 1) * left_out.var(0)))


def interval(value: np.ndarray, error: np.ndarray, blocks: int | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The two ends of the 95 % interval, by Student's t with one degree of freedom fewer than there are blocks.

    nan for fewer than two blocks.

    Examples
    --------
    >>> import numpy as np
    >>> [round(float(end), 3) for end in interval(np.float64(1.0), np.float64(0.1), 10)]
    [0.774, 1.226]
    """
    wide = scipy.stats.t.ppf((1 + LEVEL) / 2, np.asarray(blocks) - 1) * error
    return value - wide, value + wide
