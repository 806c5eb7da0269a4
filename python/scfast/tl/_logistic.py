"""Multinomial logistic regression by L-BFGS, on cells that are in memory."""

from __future__ import annotations

import numpy as np
import scipy

#: Largest derivative at the end, as a share of C: as scikit-learn has it.
TOLERANCE = 1e-4


def fit_logistic(
    states: np.ndarray, labels: np.ndarray, n_classes: int, *, inverse_penalty: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Minimise C x the summed log loss + |coef|^2 / 2; the intercept is free. Equal to scikit-learn's.

    Parameters
    ----------
    states, labels
        float64 [n, d] and int64 [n].
    n_classes
        Classes that no cell has are never predicted.
    inverse_penalty
        C.

    Returns
    -------
    ``coef`` float64 [C, d] and ``intercept`` float64 [C].

    Examples
    --------
    >>> import numpy as np
    >>> coef, intercept = fit_logistic(np.array([[0.0], [1.0], [4.0], [5.0]]), np.array([0, 0, 1, 1]), 2)
    >>> np.argmax(np.array([[0.5], [4.5]]) @ coef.T + intercept, axis=1)
    array([0, 1])
    """
    there, target = np.unique(labels, return_inverse=True)
    (n, width), k = states.shape, len(there)
    truth = np.zeros((n, k))
    truth[np.arange(n), target] = 1.0

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(k, width + 1)
        scores = states @ weights[:, :width].T + weights[:, width]
        norm = scipy.special.logsumexp(scores, axis=1, keepdims=True)
        off = inverse_penalty * (np.exp(scores - norm) - truth)  # [n, k]
        value = inverse_penalty * float((norm[:, 0] - scores[np.arange(n), target]).sum())
        gradient = np.column_stack([off.T @ states + weights[:, :width], off.sum(0)])
        return value + 0.5 * float((weights[:, :width] ** 2).sum()), gradient.ravel()

    options = {"maxiter": 1000, "gtol": TOLERANCE * inverse_penalty}
    start = np.zeros(k * (width + 1))
    least = scipy.optimize.minimize(loss, start, jac=True, method="L-BFGS-B", options=options)
    found = least.x.reshape(k, width + 1)
    coef, intercept = np.zeros((n_classes, width)), np.full(n_classes, -np.inf)
    coef[there], intercept[there] = found[:, :width], found[:, width]
    return coef, intercept


def standardise(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both with the mean and deviation of ``train`` [n, d]; columns that do not vary become 0."""
    mean, deviation = train.mean(0), train.std(0)
    scale = np.where(deviation > 1e-6 * np.abs(mean), deviation, np.inf)
    return (train - mean) / scale, (test - mean) / scale
