"""What linear regression on the most correlated genes says of a gene's bin: a baseline that sees the cell."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch

#: Of the mean variance of a predictor: genes that no training cell has, and copies of a gene, stay solvable.
RIDGE = 1e-3


class LinearGuesses(NamedTuple):
    """A regression for every gene.

    Attributes
    ----------
    mean
        float64 [G]: of each gene's bins in training, which stands in for hidden ones.
    weights
        float64 [G + 1, G]: column g predicts gene g; the last row is the intercept.
    """

    mean: torch.Tensor
    weights: torch.Tensor

    def predict(self, bins: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Expected bins float64 [B, G] of all genes, from bins [B, G]; those in ``hidden`` are not looked at."""
        return design(bins, hidden, self.mean) @ self.weights


def design(bins: torch.Tensor, hidden: torch.Tensor | None, mean: torch.Tensor) -> torch.Tensor:
    """Centred bins float64 [B, G + 1], 0 where ``hidden``; the last column is 1."""
    centred = bins.double() - mean
    if hidden is not None:
        centred = centred.masked_fill(hidden, 0.0)
    return torch.nn.functional.pad(centred, (0, 1), value=1.0)


def most_correlated(bins: torch.Tensor, n: int) -> torch.Tensor:
    """int64 [G, n]: for each gene the others whose bins [B, G] have the largest absolute Pearson correlation.

    Raises
    ------
    ValueError
        When there are fewer than ``n`` other genes.

    Examples
    --------
    >>> most_correlated(torch.tensor([[0, 0, 1], [1, 2, 0], [2, 4, 1]]), 1).tolist()
    [[1], [0], [0]]
    """
    if not 0 < n < bins.shape[1]:
        raise ValueError(
            f"correlated={n} genes are asked for beside each of {bins.shape[1]}: give 1 to {bins.shape[1] - 1}"
        )
    centred = bins.double() - bins.double().mean(0)
    norms = centred.norm(dim=0)
    unit = centred / torch.where(norms > 0, norms, 1.0)
    strength = (unit.T @ unit).abs().fill_diagonal_(-1.0)
    return strength.argsort(dim=1, descending=True, stable=True)[:, :n]


def fit_complete(bins: torch.Tensor, neighbours: torch.Tensor) -> LinearGuesses:
    """Least squares over all cells [B, G], nothing hidden: every gene's system is cut out of one product.

    Parameters
    ----------
    bins
        [B, G].
    neighbours
        int64 [G, k]: predictors of each gene.
    """
    mean = bins.double().mean(0)
    x = design(bins, None, mean)
    products = x.T @ x  # [G + 1, G + 1]
    with_one = _with_one(neighbours)
    grams = products[with_one[:, :, None], with_one[:, None, :]]
    sides = products[with_one, torch.arange(len(neighbours))[:, None]]
    return _solve(mean, grams, sides, with_one)


def fit_masked(
    mean: torch.Tensor, passes: Iterable[tuple[torch.Tensor, torch.Tensor]], neighbours: torch.Tensor
) -> LinearGuesses:
    """Least squares over hidden values alone, from what their masks leave to be seen: what a trained model is given.

    Parameters
    ----------
    mean
        [G]: of the bins, which stands in for hidden ones.
    passes
        Bins [B, G], and bool [B, G] which are hidden, of each pass over the cells.
    neighbours
        int64 [G, k]: predictors of each gene.
    """
    n_genes, k = neighbours.shape
    with_one = _with_one(neighbours)
    grams = torch.zeros(n_genes, k + 1, k + 1, dtype=torch.float64)
    sides = torch.zeros(n_genes, k + 1, dtype=torch.float64)
    for bins, hidden in passes:
        x = design(bins, hidden, mean)
        for gene in range(n_genes):
            rows = hidden[:, gene]
            own = x[rows][:, with_one[gene]]  # [n, k + 1]
            grams[gene] += own.T @ own
            sides[gene] += own.T @ (bins[rows, gene].double() - mean[gene])
    return _solve(mean, grams, sides, with_one)


def _with_one(neighbours: torch.Tensor) -> torch.Tensor:
    """Rows of the weights that a gene uses: its predictors', and the intercept's."""
    return torch.nn.functional.pad(neighbours, (0, 1), value=len(neighbours))


def _solve(
    mean: torch.Tensor, grams: torch.Tensor, sides: torch.Tensor, with_one: torch.Tensor
) -> LinearGuesses:
    """All systems [G, k + 1, k + 1] at once, with a ridge on all but the intercept."""
    n_genes, k = with_one.shape[0], with_one.shape[1] - 1
    diagonal = grams.diagonal(dim1=1, dim2=2)  # a view
    ridge = RIDGE * diagonal[:, :k].mean(1, keepdim=True)
    diagonal[:, :k] += torch.where(ridge > 0, ridge, 1.0)
    never = diagonal[:, k] == 0  # a gene that was never hidden
    diagonal[never, k] = 1.0
    solved = torch.linalg.solve(grams, sides)  # [G, k + 1]
    weights = torch.zeros(n_genes + 1, n_genes, dtype=torch.float64)
    weights[with_one, torch.arange(n_genes)[:, None]] = solved
    weights[-1] += mean
    return LinearGuesses(mean, weights)
