"""References of the same degrees: what a ranking reaches by knowing only which genes are in many edges."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

#: Trades of a row before the first sample, and between one sample and the next. With degrees spread as in references,
#: the share of the first edges that are still there falls to what it stays at within 20 to 30 trades.
BURN_IN, TRADES = 40, 5


def rewired(
    edges: np.ndarray, own: np.ndarray, samples: int, draws: np.random.Generator
) -> Iterator[np.ndarray]:
    """Random edges with the same number at every regulator and at every target.

    Pairs of regulators trade the targets that only one of them has (the curveball algorithm, Strona et al., Nat.
    Commun. 5, 4114, 2014).

    Parameters
    ----------
    edges
        bool [R, T]: which of the T genes are targets of each of the R regulators.
    own
        int64 [R]: the regulator's own place among the T genes, -1 where it is none of them; an edge to itself is not
        made.
    samples
        How many.
    draws
        Source of randomness.

    Yields
    ------
    numpy.ndarray
        bool [R, T], to be read before the next.

    Examples
    --------
    >>> import numpy as np
    >>> draws = np.random.default_rng(0)
    >>> edges = draws.random((6, 9)) < 0.4
    >>> sample, = rewired(edges, np.full(6, -1), 1, draws)
    >>> bool((sample.sum(0) == edges.sum(0)).all() and (sample.sum(1) == edges.sum(1)).all())
    True
    """
    held = edges.copy()
    pairs = -(-len(held) // 2) if len(held) > 1 else 0
    for sample in range(samples):
        for _ in range((TRADES if sample else BURN_IN) * pairs):
            _trade(held, own, draws)
        yield held


def _trade(held: np.ndarray, own: np.ndarray, draws: np.random.Generator) -> None:
    one = draws.integers(len(held))
    other = (one + draws.integers(1, len(held))) % len(held)
    differs = held[one] ^ held[other]
    for gene in (own[one], own[other]):
        if gene >= 0:
            differs[gene] = False
    place = np.flatnonzero(differs)
    mixed, n = draws.permutation(place), int(held[one, place].sum())
    held[one, place], held[other, place] = False, False
    held[one, mixed[:n]], held[other, mixed[n:]] = True, True
