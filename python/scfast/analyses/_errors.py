"""Standard errors of means over groups of cells."""

from __future__ import annotations

import numpy as np

from scfast.analyses._arrays import ratio
from scfast.analyses.strata import Strata


def standard_error(
    strata: Strata, sums: np.ndarray, squares: np.ndarray, n: np.ndarray, mean: np.ndarray
) -> np.ndarray:
    """Standard error of ``mean`` [groups, columns], between replicates where there are any, else between cells.

    Parameters
    ----------
    strata
        Groups, or groups and replicates.
    sums, squares
        float64 [S, columns]: sums over the cells of a stratum, of values and of their squares.
    n
        int64 [S, columns]: how many cells those are.
    mean
        Of the cells of each group.

    Notes
    -----
    Between cells the standard error is the sample deviation over the root of the number of cells. Between
    replicates it is that of a ratio of totals (Cochran 1977, eq. 6.13): sqrt(R / (R - 1) sum_r (S_r - n_r
    m)^2) / sum_r n_r, with S_r the sum and n_r the cells of replicate r and m the mean over all cells; for
    replicates of one size it is the deviation between replicate means over sqrt(R). One cell, or one
    replicate, has no error (nan).
    """
    total = strata.by_group(n)
    if not strata.replicated:
        spread = strata.by_group(squares) - total * np.nan_to_num(mean) ** 2
        return np.sqrt(ratio(np.maximum(spread, 0.0), total * (total - 1)))
    units = strata.by_group((n > 0).astype(np.int64))
    off = sums - n * np.nan_to_num(mean)[strata.group]
    return np.sqrt(ratio(units * strata.by_group(off**2), units - 1)) / np.where(total > 0, total, np.nan)
