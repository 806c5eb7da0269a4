"""Folds of cells, stratified by label or of whole replicates, and a sample of them that is kept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scfast.tl._labels import Labelled

#: A class has at least so many cells in the sample, as far as there are.
MIN_PER_CLASS = 20


def make_folds(
    codes: np.ndarray, replicates: np.ndarray | None, n_folds: int, draws: np.random.Generator
) -> np.ndarray:
    """int64 [n]: the fold of each cell, -1 for cells without any label.

    Parameters
    ----------
    codes
        int64 [labels, n]: class of each cell by each label, -1 for none.
    replicates
        int64 [n]: cells of one replicate share a fold; None: cells are dealt out class by class.
    n_folds
        Number of folds.
    draws
        Source of randomness.
    """
    folds = np.full(codes.shape[1], -1, dtype=np.int64)
    rows = np.flatnonzero((codes >= 0).any(0))
    if replicates is None:
        _, joint = np.unique(codes[:, rows], axis=1, return_inverse=True)
        order = np.lexsort((draws.random(len(rows)), joint.ravel()))
        folds[rows[order]] = np.arange(len(rows)) % n_folds  # neighbours are of one class and go apart
        return folds
    names, sizes = np.unique(replicates[rows], return_counts=True)
    filled, fold_of = np.zeros(n_folds), {}
    for place in np.lexsort((draws.random(len(names)), -sizes)):  # the largest first, into the emptiest fold
        fold = int(np.argmin(filled))
        fold_of[int(names[place])] = fold
        filled[fold] += sizes[place]
    folds[rows] = [fold_of[int(name)] for name in replicates[rows]]
    return folds


def check_folds(labelled: Labelled, label: str, folds: np.ndarray, n_folds: int, grouped: bool) -> None:
    """Refuse classes that would be missing from training or from the test."""
    counts = np.bincount(labelled.codes, minlength=len(labelled.classes))
    few = [f"{name!r} ({n})" for name, n in zip(labelled.classes, counts, strict=True) if n < n_folds]
    if few:
        raise ValueError(
            f"label {label!r}: fewer cells than folds={n_folds} in {', '.join(few)}: name fewer folds, or leave those"
            " cells' label empty"
        )
    if grouped:
        alone = [
            name
            for code, name in enumerate(labelled.classes)
            if len(np.unique(folds[labelled.rows[labelled.codes == code]])) < 2
        ]
        if alone:
            raise ValueError(
                f"label {label!r}: {alone} are in one fold of replicates only, so they are not there in training when"
                " they are tested: leave replicate_key out, or leave those cells' label empty"
            )


def take_sample(codes: np.ndarray, folds: np.ndarray, n: int, draws: np.random.Generator) -> np.ndarray:
    """Rows of about ``n`` labelled cells, ascending: every class and fold by its share, small classes more."""
    rows = np.flatnonzero(folds >= 0)
    if len(rows) <= n:
        return rows
    keys: Sequence[np.ndarray] = (draws.random(len(rows)), folds[rows], *codes[::-1, rows])
    order = rows[np.lexsort(keys)]
    taken = set(order[((np.arange(n) + 0.5) * len(order) / n).astype(np.int64)].tolist())
    for of_label in codes:
        for code in range(int(of_label.max()) + 1):
            cells = np.flatnonzero((of_label == code) & (folds >= 0))
            missing = min(MIN_PER_CLASS, len(cells)) - sum(int(cell) in taken for cell in cells)
            if missing > 0:
                rest = np.array([cell for cell in cells if int(cell) not in taken])
                taken.update(draws.permutation(rest)[:missing].tolist())
    return np.array(sorted(taken), dtype=np.int64)
