"""Regressions on correlated genes, solved together, beside NumPy's least squares gene by gene."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scfast.train.linear_guesses import RIDGE, fit_complete, fit_masked, most_correlated

N_CELLS, N_GENES, K = 60, 7, 4


@pytest.fixture
def bins() -> torch.Tensor:
    """Counts of genes that follow two hidden rates; the last gene is never there."""
    random = np.random.default_rng(0)
    rates = random.gamma(2.0, 1.0, (N_CELLS, 2)) @ random.random((2, N_GENES))
    counts = random.poisson(rates)
    counts[:, -1] = 0
    return torch.from_numpy(counts).float()


def ridge(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Least squares of y on x and an intercept; rows of the penalty below those of the data."""
    penalty = np.sqrt(RIDGE * np.square(x).sum(0).mean() or 1.0) * np.eye(x.shape[1], x.shape[1] + 1)
    rows = np.vstack([np.column_stack([x, np.ones(len(x))]), penalty])
    return np.linalg.lstsq(rows, np.concatenate([y, np.zeros(x.shape[1])]), rcond=None)[0]


def test_neighbours_have_the_largest_correlations(bins: torch.Tensor) -> None:
    with np.errstate(invalid="ignore", divide="ignore"):
        strength = np.nan_to_num(np.abs(np.corrcoef(bins.numpy().T)))
    np.fill_diagonal(strength, -1)
    found = most_correlated(bins, K)
    for gene in range(N_GENES):
        best = np.sort(strength[gene])[::-1][:K]
        assert strength[gene, found[gene]] == pytest.approx(best)
        assert gene not in found[gene].tolist()
    for n in (0, N_GENES):
        with pytest.raises(
            ValueError, match=f"correlated={n} genes are asked for beside each of 7: give 1 to 6"
        ):
            most_correlated(bins, n)


def test_complete_cells(bins: torch.Tensor) -> None:
    near = most_correlated(bins, K)
    hidden = torch.rand(N_CELLS, N_GENES, generator=torch.Generator().manual_seed(0)) < 0.3
    found = fit_complete(bins, near).predict(bins, hidden)
    x = bins.double().numpy() - bins.double().numpy().mean(0)
    seen = np.where(hidden, 0.0, x)
    for gene in range(N_GENES):
        weights = ridge(x[:, near[gene]], x[:, gene])
        expected = seen[:, near[gene]] @ weights[:-1] + weights[-1] + float(bins[:, gene].double().mean())
        np.testing.assert_allclose(found[:, gene], expected, rtol=1e-9, atol=1e-9)


def test_hidden_values_alone(bins: torch.Tensor) -> None:
    """Of two passes; the first gene is never hidden, and is guessed at its mean."""
    near, mean = most_correlated(bins, K), bins.double().mean(0)
    masks = [torch.rand(N_CELLS, N_GENES, generator=torch.Generator().manual_seed(s)) < 0.4 for s in (1, 2)]
    for hidden in masks:
        hidden[:, 0] = False
    found = fit_masked(mean, [(bins, hidden) for hidden in masks], near).predict(bins, masks[0])
    centred = bins.double().numpy() - mean.numpy()
    seen = [np.where(hidden, 0.0, centred) for hidden in masks]
    np.testing.assert_allclose(found[:, 0], mean[0])
    for gene in range(1, N_GENES):
        x = np.vstack([one[hidden[:, gene]][:, near[gene]] for one, hidden in zip(seen, masks, strict=True)])
        y = np.concatenate([centred[hidden[:, gene], gene] for hidden in masks])
        weights = ridge(x, y)
        expected = seen[0][:, near[gene]] @ weights[:-1] + weights[-1] + float(mean[gene])
        np.testing.assert_allclose(found[:, gene], expected, rtol=1e-9, atol=1e-9)
