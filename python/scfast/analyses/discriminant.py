"""Linear discriminant analysis from sums over cells: nothing of the cells themselves is needed."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import scipy

#: Variance below this share of the mean square is rounding of float32 states: all cells are alike.
CONSTANT = 1e-11


class Discriminant(NamedTuple):
    """A classifier: the class with the largest x . coef + intercept.

    ``coef`` float64 [C, d]; ``intercept`` float64 [C], -inf for classes that were not there in training;
    ``shrinkage`` as it was used.
    """

    coef: np.ndarray
    intercept: np.ndarray
    shrinkage: float

    def predict(self, states: np.ndarray) -> np.ndarray:
        """int64 [n]: the class of each of the states [n, d]."""
        return np.argmax(states @ self.coef.T + self.intercept, axis=1)


def fit_discriminant(
    gram: np.ndarray, sums: np.ndarray, cells: np.ndarray, shrinkage: float | Literal["oas"]
) -> Discriminant | None:
    """Fit to the cells that the sums are over.

    The within-class covariance is pooled, S = (sum x x^T - sum_c n_c m_c m_c^T) / n, and shrunk to
    (1 - s) S + s tr(S) / d I; priors are the shares of the classes. It equals scikit-learn's
    ``LinearDiscriminantAnalysis(solver="lsqr", shrinkage=s)``.

    Parameters
    ----------
    gram
        float64 [d, d]: sum of x x^T.
    sums, cells
        float64 [C, d] and int64 [C]: sum of the states of each class, and how many those are.
    shrinkage
        s, or ``"oas"``: the oracle approximating shrinkage of S (Chen et al. 2010).

    Returns
    -------
    Discriminant or None
        None for fewer than two classes.

    Examples
    --------
    >>> import numpy as np
    >>> x, label = np.array([[0.0, 0.1], [0.2, -0.1], [3.0, 0.2], [3.2, 0.0]]), np.array([0, 0, 1, 1])
    >>> sums = np.stack([x[label == c].sum(0) for c in (0, 1)])
    >>> fit_discriminant(x.T @ x, sums, np.array([2, 2]), 0.1).predict(np.array([[0.5, 0.0], [2.9, 0.0]]))
    array([0, 1])
    """
    seen = cells > 0
    if seen.sum() < 2:
        return None
    n, width = int(cells.sum()), gram.shape[0]
    means = sums[seen] / cells[seen, None]
    within = (gram - (means * cells[seen, None]).T @ means) / n
    coef, intercept = np.zeros((len(cells), width)), np.full(len(cells), -np.inf)
    intercept[seen] = np.log(cells[seen] / n)
    used = _oas(within, n) if shrinkage == "oas" else float(shrinkage)
    scale = np.trace(within) / width
    if scale <= CONSTANT * np.trace(gram) / (n * width):
        return Discriminant(coef, intercept, used)  # all cells are alike: the commonest class
    shrunk = (1.0 - used) * within
    shrunk.flat[:: width + 1] += used * scale
    coef[seen] = scipy.linalg.cho_solve(scipy.linalg.cho_factor(shrunk, overwrite_a=True), means.T).T
    intercept[seen] -= 0.5 * np.sum(means * coef[seen], axis=1)
    return Discriminant(coef, intercept, used)


def _oas(covariance: np.ndarray, n: int) -> float:
    """Shrinkage of a covariance of n samples."""
    width = len(covariance)
    square, mean = float(np.mean(covariance**2)), float(np.trace(covariance)) / width
    bottom = (n + 1) * (square - mean**2 / width)
    return 1.0 if bottom <= 0 else min((square + mean**2) / bottom, 1.0)
