"""Blocks of layers that are alike: contiguous segments of a matrix of similarities."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Blocks(NamedTuple):
    """``of_layer`` int64 [K]: block of each layer, ascending; ``silhouette`` of that partition; nan for one block."""

    of_layer: np.ndarray
    silhouette: float


def find_blocks(similarity: np.ndarray, max_blocks: int | None = None) -> Blocks:
    """Partition layers into contiguous blocks: of each number of blocks the best, of those the clearest.

    For each number of blocks, dynamic programming finds the borders with the least sum over blocks of their pairwise
    distances 1 - s divided by their size; the number with the largest silhouette (Rousseeuw 1987) is taken.

    Parameters
    ----------
    similarity
        float64 [K, K], symmetric, such as mean cosines.
    max_blocks
        Default: K - 1.

    Examples
    --------
    >>> import numpy as np
    >>> alike = np.kron(np.eye(2), np.ones((3, 3))) * 0.9 + 0.1
    >>> find_blocks(alike).of_layer.tolist()
    [0, 0, 0, 1, 1, 1]
    """
    distance = 1.0 - similarity
    n = len(distance)
    most = min(n - 1, n - 1 if max_blocks is None else max_blocks)
    best = Blocks(np.zeros(n, dtype=np.int64), float("nan"))
    if n < 3:
        return best
    for borders in _segments(distance, most)[1:]:
        of_layer = np.repeat(np.arange(len(borders)), np.diff([*borders, n]))
        value = silhouette(distance, of_layer)
        if not value <= best.silhouette + 1e-12:  # of equal ones the fewest blocks
            best = Blocks(of_layer, value)
    return best


def _segments(distance: np.ndarray, most: int) -> list[list[int]]:
    """Starts of the blocks of the best partition into 1, 2, ... ``most`` blocks."""
    n = len(distance)
    prefix = np.zeros((n + 1, n + 1))
    prefix[1:, 1:] = distance.cumsum(0).cumsum(1)
    cost = np.full((n, n + 1), np.inf)  # of the block from i up to, not including, j
    for i in range(n):
        for j in range(i + 1, n + 1):
            cost[i, j] = (prefix[j, j] - prefix[i, j] - prefix[j, i] + prefix[i, i]) / (2 * (j - i))
    least, starts = cost[0].copy(), [[[0]] * (n + 1)]
    for _ in range(1, most):
        totals = least[:n, None] + cost  # the last block from i to j
        last = totals.argmin(0)
        starts.append([[*starts[-1][last[j]], int(last[j])] for j in range(n + 1)])
        least = totals.min(0)
    return [ends[n] for ends in starts]


def silhouette(distance: np.ndarray, of_item: np.ndarray) -> float:
    """Mean silhouette of a partition; an item alone in its block counts 0.

    Examples
    --------
    >>> import numpy as np
    >>> silhouette(np.array([[0, 1, 4.0], [1, 0, 4], [4, 4, 0]]), np.array([0, 0, 1]))
    0.5
    """
    member = of_item[:, None] == np.arange(of_item.max() + 1)  # [K, blocks]
    sums, sizes = distance @ member, member.sum(0)
    own_size = sizes[of_item]
    own = sums[member] / np.maximum(own_size - 1, 1)
    other = np.where(member, np.inf, sums / sizes).min(1)
    larger = np.maximum(own, other)
    values = np.divide(other - own, larger, out=np.zeros(len(own)), where=(larger > 0) & (own_size > 1))
    return float(values.mean())
