"""How well the expression of perturbed cells is predicted: correlations, of all genes and of those that change most."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import scipy

#: Genes of the second pair of correlations.
TOP = 20
#: Of every prediction: correlations of expression, of change against control, and both for the TOP genes.
METRICS = ("pearson", "pearson_change", "pearson_top", "pearson_change_top")
LEVEL = 0.95
#: Columns of :func:`summarise`.
SUMMARY = (
    "method", "metric", "mean", "low", "high", "seed_low", "seed_high", "ahead", "ahead_low", "ahead_high",
    "perturbations", "seeds",
)  # fmt: skip


def most_changed(perturbed: np.ndarray, control: np.ndarray, n: int = TOP) -> np.ndarray:
    """The genes whose means differ most for their standard error (|t| of Welch), in falling order.

    Parameters
    ----------
    perturbed, control
        Expression [cells, G].
    n
        How many; equal ones by their column, and genes that are the same in all cells last.

    Examples
    --------
    >>> most_changed(np.array([[0.0, 5, 1], [1, 6, 1]]), np.array([[0.0, 1, 2], [1, 2, 5]]), 2).tolist()
    [1, 2]
    """
    difference = np.abs(perturbed.mean(0) - control.mean(0))
    variance = sum(_variance(cells) / len(cells) for cells in (perturbed, control))
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(difference > 0, difference / np.sqrt(variance), 0.0)
    return np.argsort(-t, kind="stable")[:n]


def _variance(cells: np.ndarray) -> np.ndarray:
    return cells.var(0, ddof=1) if len(cells) > 1 else np.zeros(cells.shape[1])


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    """Correlation; nan where one of them is constant.

    Examples
    --------
    >>> pearson(np.array([1.0, 2, 3]), np.array([2.0, 4, 7])), pearson(np.zeros(3), np.arange(3.0))
    (0.9933992677987828, nan)
    """
    x, y = x - x.mean(), y - y.mean()
    norm = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / norm if norm > 0 else float("nan")


def correlations(
    predicted: np.ndarray, measured: np.ndarray, control: np.ndarray, top: np.ndarray
) -> dict[str, float]:
    """The METRICS of one prediction, mean expression [G] each; nan where a change is constant, such as none.

    Examples
    --------
    >>> control, measured = np.array([0.0, 1, 2]), np.array([1.0, 1, 2])
    >>> found = correlations(np.array([2.0, 1, 2]), measured, control, np.array([0, 1]))
    >>> {name: round(value, 3) for name, value in found.items()}
    {'pearson': 0.5, 'pearson_change': 1.0, 'pearson_top': nan, 'pearson_change_top': 1.0}
    """
    change, wanted = predicted - control, measured - control
    values = (
        pearson(predicted, measured),
        pearson(change, wanted),
        pearson(predicted[top], measured[top]),
        pearson(change[top], wanted[top]),
    )
    return dict(zip(METRICS, values, strict=True))


def halves(
    perturbed: np.ndarray, control: np.ndarray, top: np.ndarray, draws: np.random.Generator, times: int = 20
) -> dict[str, dict[str, float]]:
    """What half of the cells says of the other half: how much of a change the data themselves repeat.

    Parameters
    ----------
    perturbed, control
        Expression [cells, G].
    top
        The TOP genes.
    draws
        Chooses the halves.
    times
        Random halves, whose correlations are averaged.

    Returns
    -------
    ``"half of the cells"``: changes against the same control mean, as predictions are scored, whose noise both halves
    share; ``"half of the cells, halved controls"``: against two halves of the controls, which share nothing.
    """
    found: dict[str, list[dict[str, float]]] = {
        "half of the cells": [],
        "half of the cells, halved controls": [],
    }
    same = control.mean(0)
    for _ in range(times):
        one, two = _two_halves(perturbed, draws)
        first, second = _two_halves(control, draws)
        found["half of the cells"].append(correlations(one, two, same, top))
        apart = correlations(one - first, two - second, np.zeros_like(same), top)
        # expression itself needs no control
        expression = {"pearson": pearson(one, two), "pearson_top": pearson(one[top], two[top])}
        found["half of the cells, halved controls"].append({**apart, **expression})
    return {name: {m: _mean([one[m] for one in rounds]) for m in METRICS} for name, rounds in found.items()}


def _two_halves(cells: np.ndarray, draws: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    if len(cells) < 2:
        nothing = np.full(cells.shape[1], np.nan)
        return nothing, nothing
    order = draws.permutation(len(cells))
    cut = len(cells) // 2
    return cells[order[:cut]].mean(0), cells[order[cut:]].mean(0)


def _mean(values: list[float]) -> float:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")


def interval(values: np.ndarray) -> tuple[float, float]:
    """Ends of the t interval of a mean; nan for fewer than two values.

    Examples
    --------
    >>> [round(end, 3) for end in interval(np.array([0.1, 0.2, 0.3]))]
    [-0.048, 0.448]
    """
    if len(values) < 2:
        return float("nan"), float("nan")
    half = scipy.stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * scipy.stats.sem(values)
    return float(np.mean(values) - half), float(np.mean(values) + half)


def summarise(scores: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds and perturbations, with intervals, and what the model is ahead by.

    Parameters
    ----------
    scores
        A row per ``seed``, ``perturbation``, ``context`` and ``method``, with the METRICS.

    Returns
    -------
    A row per method and metric: ``mean`` of the means of perturbations; ``low`` and ``high``, its 95 % t interval
    between perturbations (each the mean over seeds); ``seed_low``, ``seed_high``, that between seeds (each the mean
    over perturbations); ``ahead``, the model minus the method on the perturbations that both score, with
    ``ahead_low`` and ``ahead_high`` between perturbations; ``perturbations`` and ``seeds``. What is not defined is nan.
    """
    rows = []
    for metric in METRICS:
        wide = scores.pivot_table(
            index=["perturbation", "context"], columns=["method", "seed"], values=metric, dropna=False
        )
        means: Mapping[str, pd.Series] = {
            method: wide[method].mean(axis=1).dropna() for method in dict.fromkeys(scores["method"])
        }
        for method, of in means.items():
            seeds = wide[method].mean(axis=0).dropna().to_numpy()
            ahead = (means["model"] - of).dropna().to_numpy() if method != "model" else np.empty(0)
            low, high = interval(of.to_numpy())
            seed_low, seed_high = interval(seeds)
            ahead_low, ahead_high = interval(ahead)
            mean = of.mean() if len(of) else np.nan
            lead = ahead.mean() if ahead.size else np.nan
            ends = (low, high, seed_low, seed_high, lead, ahead_low, ahead_high)
            rows.append((method, metric, mean, *ends, len(of), len(seeds)))
    return pd.DataFrame(rows, columns=list(SUMMARY))


def table_of(scores: Mapping[tuple[str, str], Mapping[str, Mapping[str, float]]], seed: int) -> pd.DataFrame:
    """(perturbation, context) -> method -> metrics, as rows."""
    return pd.DataFrame(
        [
            {"seed": seed, "perturbation": name, "context": context, "method": method, **found}
            for (name, context), methods in scores.items()
            for method, found in methods.items()
        ]
    )
