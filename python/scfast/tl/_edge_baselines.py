"""What a network must beat: co-expression, and the product of detection rates."""

from __future__ import annotations

import numpy as np
from scipy import sparse

from scfast.analyses.group_expression import TARGET_SUM


class PairMoments:
    """Sums over cells from which correlations of pairs of genes are made, which add and subtract.

    Parameters
    ----------
    counts
        CSR [cells, genes], raw.
    sources, targets
        int64 [R], [T]: columns.
    """

    def __init__(self, counts: sparse.csr_matrix, sources: np.ndarray, targets: np.ndarray) -> None:
        values = counts.astype(np.float64)
        total = np.asarray(values.sum(1)).ravel()
        values.data *= np.repeat(TARGET_SUM / np.where(total > 0, total, 1), np.diff(values.indptr))
        np.log1p(values.data, out=values.data)
        one, other = values[:, sources], values[:, targets]
        self.n = counts.shape[0]
        self.sums = [np.asarray(x.sum(0)).ravel() for x in (one, other)]
        self.squares = [np.asarray(x.multiply(x).sum(0)).ravel() for x in (one, other)]
        self.detected = [np.asarray((x > 0).sum(0)).ravel() for x in (one, other)]
        self.products = (one.T @ other).toarray()

    def __sub__(self, other: PairMoments) -> PairMoments:
        """Of the cells of ``self`` that are not those of ``other``."""
        new = object.__new__(PairMoments)
        new.n, new.products = self.n - other.n, self.products - other.products
        for name in ("sums", "squares", "detected"):
            pairs = zip(getattr(self, name), getattr(other, name), strict=True)
            setattr(new, name, [mine - theirs for mine, theirs in pairs])
        return new

    def coexpression(self) -> np.ndarray:
        """|Pearson correlation| of log1p(counts per ten thousand), float64 [R, T]; 0 for a gene that is constant."""
        n = max(self.n, 1)
        mean = [x / n for x in self.sums]
        spread = [np.sqrt(np.maximum(s / n - m**2, 0)) for s, m in zip(self.squares, mean, strict=True)]
        bottom = np.outer(*spread)
        covariance = self.products / n - np.outer(*mean)
        return np.abs(np.divide(covariance, bottom, out=np.zeros_like(bottom), where=bottom > 1e-12))

    def detection(self) -> np.ndarray:
        """Product of the shares of cells that have the genes, float64 [R, T]."""
        return np.outer(*(x / max(self.n, 1) for x in self.detected))
