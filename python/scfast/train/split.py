"""Cells for training, for stopping in time, and for the test: stratified by class, or by whole groups."""

from __future__ import annotations

import numpy as np

TRAIN, VALIDATION, TEST = range(3)
#: Names of the parts, by number.
PARTS = ("train", "validation", "test")


def take_cells(labels: np.ndarray, share: float, draws: np.random.Generator) -> np.ndarray:
    """Bool [n]: a share of the cells of every class of ``labels`` [n]; at least one, and never all.

    Raises
    ------
    ValueError
        When a class has one cell only.
    """
    taken = np.zeros(labels.size, dtype=bool)
    for code in np.unique(labels):
        rows = draws.permutation(np.flatnonzero(labels == code))
        if rows.size < 2:
            raise ValueError(f"class {code} has one cell: it cannot be on both sides of a split")
        taken[rows[: min(max(1, round(share * rows.size)), rows.size - 1)]] = True
    return taken


def take_groups(groups: np.ndarray, share: float, draws: np.random.Generator) -> np.ndarray:
    """Bool [n]: the cells of whole groups, about a share of the cells; at least one group, and never all.

    Groups are taken in random order, as long as that brings the number of cells nearer to the share.

    Raises
    ------
    ValueError
        When there is one group only.
    """
    names, sizes = np.unique(groups, return_counts=True)
    if names.size < 2:
        raise ValueError("there is one group only: it cannot be on both sides of a split")
    wanted, taken = share * groups.size, np.zeros(groups.size, dtype=bool)
    for group in draws.permutation(names.size)[:-1]:
        so_far = int(taken.sum())
        if so_far and abs(so_far + sizes[group] - wanted) >= abs(so_far - wanted):
            break
        taken |= groups == names[group]
    return taken
