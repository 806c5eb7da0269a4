"""How well scores of edges find the edges of a reference: area under precision-recall, and early precision."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np

Convention = Literal["expected", "beeline"]
CONVENTIONS = ("expected", "beeline")


class Ranking:
    """Edges ranked by the size of their score.

    Parameters
    ----------
    scores
        float [n]: of every edge of the universe, 0 for those that were not found; signs do not count.
    """

    def __init__(self, scores: np.ndarray) -> None:
        size = np.abs(np.asarray(scores, dtype=np.float64))
        self.order = np.argsort(-size, kind="stable")
        self.sizes = size[self.order]
        #: First edge after each group of equal scores, ascending.
        self.ends = np.flatnonzero(np.append(np.diff(self.sizes) != 0, True)) + 1

    def found(self, positive: np.ndarray) -> np.ndarray:
        """int64 [groups]: edges of the reference up to the end of each group of ties."""
        return np.cumsum(positive[self.order])[self.ends - 1]

    def auprc(self, positive: np.ndarray, convention: Convention = "expected") -> float:
        """Area under the precision-recall curve; edges of equal score are found together.

        ``"expected"`` is average precision, sum of (R_t - R_(t-1)) P_t over the distinct scores t: 1 for a perfect
        ranking, the density for a constant one. ``"beeline"`` joins the points, and the start at precision 1, by
        lines, as BEELINE does: a constant score then has (1 + density) / 2.
        """
        if not positive.any():
            return float("nan")
        hits = self.found(positive)
        recall, precision = np.append(0, hits) / hits[-1], np.append(1.0, hits / self.ends)
        if convention == "beeline":
            return float(np.diff(recall) @ (precision[1:] + precision[:-1]) / 2)
        return float(np.diff(recall) @ precision[1:])

    def early_precision(self, positive: np.ndarray, convention: Convention = "expected") -> float:
        """Share of the reference among the k strongest edges, k being the size of the reference.

        ``"expected"``: of edges that share the score at the cut, the expected number under a random order counts.
        ``"beeline"``: all of them are taken, and the share is of those taken; edges of score 0 never are.
        """
        k = int(positive.sum())
        if not k:
            return float("nan")
        hits = self.found(positive)
        group = int(np.searchsorted(self.ends, k))
        if convention == "beeline":
            while group > 0 and self.sizes[self.ends[group] - 1] == 0:
                group -= 1
            return float(hits[group] / self.ends[group]) if self.sizes[0] > 0 else 0.0
        before, hits_before = (self.ends[group - 1], hits[group - 1]) if group else (0, 0)
        share = (hits[group] - hits_before) / (self.ends[group] - before)
        return float((hits_before + (k - before) * share) / k)

    def curve(self, positive: np.ndarray, points: int = 200) -> tuple[np.ndarray, np.ndarray]:
        """Recall and precision, float64 [points or fewer], evenly spread over recall."""
        hits = self.found(positive)
        recall, precision = hits / max(hits[-1], 1), hits / self.ends
        kept = np.unique(np.searchsorted(recall, np.linspace(0, 1, points)).clip(max=len(recall) - 1))
        return recall[kept], precision[kept]


class EdgeScore(NamedTuple):
    """``auprc`` and ``early_precision``, and their ratios to the ``density`` of the reference, which chance has."""

    auprc: float
    auprc_ratio: float
    early_precision: float
    epr: float
    density: float


def score_edges(scores: np.ndarray, positive: np.ndarray, convention: Convention = "expected") -> EdgeScore:
    """How well scores [n] of the edges of a universe find those that are ``positive`` [n].

    Examples
    --------
    >>> import numpy as np
    >>> positive = np.array([True, False, True, False])
    >>> score_edges(np.array([3.0, 2.0, 2.0, 0.0]), positive).early_precision  # first, and half of two that tie
    0.75
    """
    ranking, density = Ranking(scores), float(positive.mean())
    auprc, early = ranking.auprc(positive, convention), ranking.early_precision(positive, convention)
    return EdgeScore(auprc, auprc / density, early, early / density, density)
