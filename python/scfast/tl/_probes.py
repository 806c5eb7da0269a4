"""Probes fitted and tested from what one pass left: sums by class and fold, second moments, a sample of cells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from scfast.analyses import StateGram, StateSums, Strata
from scfast.analyses.discriminant import Discriminant, fit_discriminant
from scfast.analyses.state_sums import symmetric
from scfast.tl._logistic import fit_logistic, standardise
from scfast.train.scores import confusion_matrix, f1_scores

Sums = StateSums | StateGram

#: Inverse penalty of the confirming regression, on standardised states.
CONFIRM_C = 1.0


@dataclass(frozen=True, eq=False)
class Design:
    """Which cells train and test which probes.

    Attributes
    ----------
    classes
        Label -> names of its classes.
    codes, shuffled
        int64 [labels, cells]: class of each cell, -1 for none; the same, shuffled within folds.
    folds
        int64 [cells], -1 for cells without any label.
    sample
        int64 [R]: rows that are kept and tested on.
    n_folds
        Number of folds.
    """

    classes: dict[str, tuple[str, ...]]
    codes: np.ndarray
    shuffled: np.ndarray
    folds: np.ndarray
    sample: np.ndarray
    n_folds: int

    @property
    def patterns(self) -> tuple[np.ndarray, np.ndarray]:
        """Which labels cells have: bool [patterns, labels], and the pattern of each cell [cells]."""
        known, of_cell = np.unique((self.codes >= 0).T, axis=0, return_inverse=True)
        return known, of_cell.ravel()

    def analyses(self, n_units: int, width: int) -> dict[str, Sums]:
        """What a pass fills: second moments by labels and fold, sums by class and fold, and the sample."""

        def strata(codes: np.ndarray, n: int) -> Strata:
            held = (codes >= 0) & (self.folds >= 0)
            return Strata.from_codes(np.where(held, codes * self.n_folds + self.folds, -1), n * self.n_folds)

        known, of_cell = self.patterns
        slots = np.full(len(self.folds), -1, dtype=np.int64)
        slots[self.sample] = np.arange(len(self.sample))
        found: dict[str, Sums] = {
            "gram": StateGram(strata(of_cell, len(known)), n_units, width),
            "sample": StateSums(Strata.from_codes(slots, len(self.sample)), n_units, width),
        }
        for number, names in enumerate(self.classes.values()):
            for kind, codes in (("label", self.codes), ("control", self.shuffled)):
                found[f"{kind} {number}"] = StateSums(strata(codes[number], len(names)), n_units, width)
        return found


@dataclass(frozen=True, eq=False)
class Tested:
    """How the probe of one label, layer and readout did.

    ``confusion`` int64 [P, C, C]: on the held-out states of every readout of the layer, true class x predicted;
    ``folds`` float64 [folds]: macro-F1 on its own readout; ``control`` int64 [C, C]: of shuffled labels, against
    shuffled labels; ``cells`` that it was trained on, over all folds; ``shrinkage`` mean over folds.
    """

    confusion: np.ndarray
    folds: np.ndarray
    control: np.ndarray
    cells: int
    shrinkage: float


def macro_f1(confusion: np.ndarray) -> float:
    """Mean F1 over the classes that are there or predicted; nan without cells."""
    return float(np.nanmean(f1_scores(confusion))) if confusion.sum() else float("nan")


class Probes:
    """Fits the probes of every unit, and tests them on the sample.

    Parameters
    ----------
    design
        Which cells.
    analyses
        After the pass.
    n_readouts
        P; unit k P + p is readout p of the k-th layer.
    shrinkage
        Of the discriminants.
    """

    def __init__(
        self, design: Design, analyses: Mapping[str, Sums], n_readouts: int,
        shrinkage: float | Literal["oas"],
    ) -> None:  # fmt: skip
        self.design, self._analyses = design, analyses
        self.n_readouts, self._shrinkage = n_readouts, shrinkage
        sample = analyses["sample"].sums
        self._states, self._held = sample["sum"], sample["cells"] > 0  # [R, U, d], [R, U]
        self._folds = design.folds[design.sample]

    def of_unit(self, unit: int) -> Iterator[tuple[int, Tested]]:
        """Each label's probe of one unit."""
        design, n_folds = self.design, self.design.n_folds
        known, _ = design.patterns
        triangles = self._analyses["gram"].sums["gram"][:, unit]
        by_fold = triangles.reshape(len(known), n_folds, *triangles.shape[1:])
        for label in range(len(design.classes)):
            grams = symmetric(by_fold[known[:, label]].sum(0))  # [F, d, d]
            yield label, self._test(unit, label, grams, grams.sum(0))

    def _test(self, unit: int, label: int, grams: np.ndarray, total: np.ndarray) -> Tested:
        design = self.design
        n_classes = len(list(design.classes.values())[label])
        sums, counts = self._training(f"label {label}", unit)
        mixed_sums, mixed_counts = self._training(f"control {label}", unit)
        truth, shuffled = design.codes[label, design.sample], design.shuffled[label, design.sample]
        confusion = np.zeros((self.n_readouts, n_classes, n_classes), dtype=np.int64)
        control, by_fold = np.zeros_like(confusion[0]), np.full(design.n_folds, np.nan)
        cells, used, own = 0, [], unit % self.n_readouts
        for fold in range(design.n_folds):
            gram = total - grams[fold]
            fitted = fit_discriminant(gram, sums[:, fold], counts[:, fold], self._shrinkage)
            mixed = fit_discriminant(gram, mixed_sums[:, fold], mixed_counts[:, fold], self._shrinkage)
            if fitted is None or mixed is None:
                continue
            cells += int(counts[:, fold].sum())
            used.append(fitted.shrinkage)
            for readout in range(self.n_readouts):
                other = unit - own + readout
                mine = self._confusion(fitted, other, fold, truth, n_classes)
                confusion[readout] += mine
                if other == unit:
                    by_fold[fold] = macro_f1(mine)
                    control += self._confusion(mixed, unit, fold, shuffled, n_classes)
        return Tested(confusion, by_fold, control, cells, float(np.mean(used)) if used else float("nan"))

    def _training(self, name: str, unit: int) -> tuple[np.ndarray, np.ndarray]:
        """Sums [C, F, d] and cells [C, F] of the cells outside each fold."""
        n_folds = self.design.n_folds
        sums = self._analyses[name].sums["sum"][:, unit]
        cells = self._analyses[name].sums["cells"][:, unit]
        sums, cells = sums.reshape(-1, n_folds, sums.shape[-1]), cells.reshape(-1, n_folds)
        return sums.sum(1, keepdims=True) - sums, cells.sum(1, keepdims=True) - cells

    def _confusion(
        self, fitted: Discriminant, unit: int, fold: int, truth: np.ndarray, n_classes: int
    ) -> np.ndarray:
        rows = np.flatnonzero((self._folds == fold) & (truth >= 0) & self._held[:, unit])
        return confusion_matrix(truth[rows], fitted.predict(self._states[rows, unit]), n_classes)

    def confirm(self, unit: int, label: int) -> float:
        """Macro-F1 of logistic regression, trained on the sample outside a fold and tested on the fold."""
        n_classes = len(list(self.design.classes.values())[label])
        truth = self.design.codes[label, self.design.sample]
        confusion = np.zeros((n_classes, n_classes), dtype=np.int64)
        usable = (truth >= 0) & self._held[:, unit]
        for fold in range(self.design.n_folds):
            train = np.flatnonzero(usable & (self._folds != fold))
            test = np.flatnonzero(usable & (self._folds == fold))
            if len(np.unique(truth[train])) < 2 or not len(test):
                continue
            x, y = standardise(self._states[train, unit], self._states[test, unit])
            coef, intercept = fit_logistic(x, truth[train], n_classes, inverse_penalty=CONFIRM_C)
            confusion += confusion_matrix(truth[test], np.argmax(y @ coef.T + intercept, axis=1), n_classes)
        return macro_f1(confusion)
