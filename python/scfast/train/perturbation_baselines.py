"""What a model of perturbations must beat: sums and means of changes that were seen, nothing, and a perceptron."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.functional import mse_loss

from scfast.train.fit import BASELINE, rng
from scfast.train.perturbed_cells import Design, PerturbedCells
from scfast.train.split import TEST, TRAIN, VALIDATION

#: Width of the two hidden layers, cells per step, learning rate, epochs at most, and epochs of patience.
WIDTH, BATCH, RATE, EPOCHS, PATIENCE = 128, 64, 1e-3, 200, 10


def means(cells: PerturbedCells) -> np.ndarray:
    """Mean expression float64 [perturbations, contexts, G] of the cells that may be learned from; nan without cells."""
    design = cells.design
    found = np.full((len(design.names), len(design.contexts), cells.levels.shape[1]), np.nan)
    for number, context in np.argwhere(design.present()):
        rows = design.rows(int(number), int(context))
        rows = rows[cells.part[rows] != TEST]
        if rows.size:
            found[number, context] = cells.levels[rows].toarray().mean(0)
    return found


def linear(design: Design, of: np.ndarray, number: int) -> dict[str, np.ndarray]:
    """Predictions [G] that need no training.

    Parameters
    ----------
    design
        What perturbations are made of.
    of
        :func:`means` in the context, [perturbations, G].
    number
        The perturbation.

    Returns
    -------
    ``"sum of single effects"``: the control's mean and the change of every part applied alone in the context; left out
    where one was not. ``"mean of training perturbations"``: the control's mean and the mean change of the context's
    perturbations, each counted once. ``"no change"``: the control's mean.
    """
    control, changes = of[0], of - of[0]
    alone = {parts[0]: n for n, parts in enumerate(design.parts) if len(parts) == 1}
    singles = np.array([changes[alone[part]] for part in design.parts[number] if part in alone])
    found = {}
    if len(singles) == len(design.parts[number]) and np.isfinite(singles).all():
        found["sum of single effects"] = control + singles.sum(0)
    trained = changes[1:][np.isfinite(changes[1:]).all(1)]
    if len(trained):
        found["mean of training perturbations"] = control + trained.mean(0)
    return found | {"no change": control}


class Perceptron:
    """Expression of a control cell and its perturbations -> expression of a perturbed cell; two hidden layers.

    It is given what the transformer is: the same pairs, perturbations by name and by the genes they mark, and the
    same stopping by the cells of the validation part. Columns of perturbations start at 0: one never trained on
    changes nothing.
    """

    def __init__(self, cells: PerturbedCells, seed: int, forget: float) -> None:
        self.cells, self.seed, self.forget = cells, seed, forget
        n_genes, design = cells.levels.shape[1], cells.design
        self.hot = np.zeros((len(design.names), cells.mark + n_genes + 1), dtype=np.float32)
        for number, (rows, marked) in enumerate(zip(cells.rows, cells.marked, strict=True)):
            self.hot[number, list(rows)] = 1
            self.hot[number, [cells.mark + gene for gene in marked]] = 1
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng(seed, BASELINE).integers(2**62)))
            into = n_genes + self.hot.shape[1]
            self.network = torch.nn.Sequential(
                torch.nn.Linear(into, WIDTH), torch.nn.ReLU(), torch.nn.Linear(WIDTH, WIDTH), torch.nn.ReLU(),
                torch.nn.Linear(WIDTH, n_genes),
            )  # fmt: skip
        with torch.no_grad():
            next(self.network.parameters())[:, n_genes:] = 0

    def fit(self) -> Perceptron:
        """Train until the squared error of validation cells stops falling; the weights of the lowest are kept."""
        optimiser = torch.optim.AdamW(self.network.parameters(), lr=RATE)
        train, validation = (np.flatnonzero(self.cells.part == part) for part in (TRAIN, VALIDATION))
        held = self._pairs(validation, rng(self.seed, BASELINE, 1))
        best, waited, kept = np.inf, 0, self._weights()
        for epoch in range(EPOCHS):
            draws = rng(self.seed, BASELINE, epoch + 2)
            inputs, targets = self._pairs(train, draws)
            for rows in np.array_split(draws.permutation(len(train)), max(1, len(train) // BATCH)):
                optimiser.zero_grad()
                mse_loss(self.network(inputs[rows]), targets[rows]).backward()
                optimiser.step()
            with torch.no_grad():
                loss = float(mse_loss(self.network(held[0]), held[1]))
            if loss < best:
                best, waited, kept = loss, 0, self._weights()
            else:
                waited += 1
            if waited >= PATIENCE:
                break
        self.network.load_state_dict(kept)
        return self

    @torch.no_grad()
    def predict(self, number: int, controls: np.ndarray) -> np.ndarray:
        """Mean expression float64 [G] of control cells under a perturbation."""
        predicted = self.network(self._inputs(controls, np.repeat(self.hot[[number]], len(controls), 0)))
        return predicted.double().mean(0).numpy()

    def _pairs(self, rows: np.ndarray, draws: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        controls, dropped = self.cells.pair(rows, draws), self.cells.forgotten(rows, self.forget, draws)
        hot = self.hot[self.cells.design.perturbation[rows]]
        hot[dropped, : self.cells.mark] = 0
        targets = torch.from_numpy(self.cells.levels[rows].toarray().astype(np.float32))
        return self._inputs(controls, hot), targets

    def _inputs(self, controls: np.ndarray, hot: np.ndarray) -> torch.Tensor:
        levels = self.cells.levels[controls].toarray().astype(np.float32)
        return torch.from_numpy(np.concatenate([levels, hot], 1))

    def _weights(self) -> dict[str, torch.Tensor]:
        return {name: weight.clone() for name, weight in self.network.state_dict().items()}


def predictions(
    cells: PerturbedCells, scored: Sequence[tuple[int, int]], seed: int, forget: float
) -> dict[tuple[int, int], dict[str, np.ndarray]]:
    """Every baseline's mean expression [G] for every (perturbation, context)."""
    perceptron, of = Perceptron(cells, seed, forget).fit(), means(cells)
    return {
        (number, context): {"MLP": perceptron.predict(number, cells.controls(context))}
        | linear(cells.design, of[:, context], number)
        for number, context in scored
    }
