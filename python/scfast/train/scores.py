"""How well classes were predicted."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np


def confusion_matrix(truth: np.ndarray, predicted: np.ndarray, n_classes: int) -> np.ndarray:
    """int64 [K, K]: cells of class i that were taken for class j.

    Examples
    --------
    >>> confusion_matrix(np.array([0, 0, 1]), np.array([0, 1, 1]), 2).tolist()
    [[1, 1], [0, 1]]
    """
    cells = np.bincount(truth * n_classes + predicted, minlength=n_classes * n_classes)
    return cells.reshape(n_classes, n_classes).astype(np.int64)


def f1_scores(confusion: np.ndarray) -> np.ndarray:
    """float64 [K]: harmonic mean of precision and recall; nan for a class neither present nor predicted."""
    both = confusion.sum(0) + confusion.sum(1)
    with np.errstate(invalid="ignore"):
        return 2.0 * np.diag(confusion) / np.where(both > 0, both, np.nan)


def wilson_interval(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of a share (Wilson 1927), sound near 0 and 1 too.

    Examples
    --------
    >>> low, high = wilson_interval(90, 100)
    >>> round(low, 3), round(high, 3)
    (0.826, 0.945)
    """
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share, spread = successes / trials, z * z / trials
    centre = (share + spread / 2) / (1 + spread)
    half = z * np.sqrt(share * (1 - share) / trials + spread / (4 * trials)) / (1 + spread)
    return float(centre - half), float(centre + half)


def classification_scores(confusion: np.ndarray, classes: Sequence[str], majority: int) -> dict[str, Any]:
    """What a log holds of one part, as plain numbers.

    Parameters
    ----------
    confusion
        int64 [K, K]: true class x predicted class.
    classes
        Names.
    majority
        The class that is commonest in training: always guessing it is what a classifier must beat.

    Returns
    -------
    ``cells``, ``accuracy`` with its 95 % Wilson ``accuracy_interval`` (cells taken as independent),
    ``macro_f1``, ``f1`` by class, ``majority_accuracy`` and ``majority_macro_f1``, ``confusion``.
    """
    cells, right = int(confusion.sum()), int(np.trace(confusion))
    constant = np.zeros_like(confusion)
    constant[:, majority] = confusion.sum(1)
    f1 = f1_scores(confusion)
    return {
        "cells": cells,
        "accuracy": right / cells,
        "accuracy_interval": list(wilson_interval(right, cells)),
        "macro_f1": float(np.nanmean(f1)),
        "f1": {name: None if np.isnan(x) else float(x) for name, x in zip(classes, f1, strict=True)},
        "majority_accuracy": float(np.trace(constant)) / cells,
        "majority_macro_f1": float(np.nanmean(f1_scores(constant))),
        "confusion": confusion.tolist(),
    }
