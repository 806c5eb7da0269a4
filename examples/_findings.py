"""What the examples share: sentences made from measured numbers, with intervals over seeds, and a page of them."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

LEVEL = 0.95

#: A table, and the sentences that say what is in it.
Part = tuple[pd.DataFrame, list[str]]


def interval(values: np.ndarray | pd.Series) -> tuple[float, float, float]:
    """Mean over seeds, and the ends of its t interval; nan for one seed."""
    x = np.asarray(values, dtype=np.float64)
    half = stats.t.ppf((1 + LEVEL) / 2, len(x) - 1) * stats.sem(x) if len(x) > 1 else np.nan
    return float(x.mean()), float(x.mean() - half), float(x.mean() + half)


def told(values: np.ndarray | pd.Series, form: str = "+.3f") -> str:
    """Mean and interval, as text.

    Examples
    --------
    >>> told([0.1, 0.2, 0.3], ".2f"), told([0.1])
    ('0.20 [-0.05, 0.45]', '+0.100 [one seed]')
    """
    mean, low, high = interval(values)
    return f"{mean:{form}} [" + (f"{low:{form}}, {high:{form}}" if np.isfinite(low) else "one seed") + "]"


def verdict(values: np.ndarray | pd.Series, above: str, below: str) -> str:
    """What the interval of a difference says; ``above`` and ``below`` are the claims that it may support.

    Examples
    --------
    >>> verdict([0.1, 0.11, 0.12], "more", "less"), verdict([-0.1, 0.11, 0.12], "more", "less")
    ('more', 'the interval holds 0: nothing can be said')
    """
    _, low, high = interval(values)
    if not np.isfinite(low):
        return "one seed says nothing"
    if low > 0:
        return above
    return below if high < 0 else "the interval holds 0: nothing can be said"


def as_text(value: object) -> str:
    """A number with four digits; what is not known as a dash."""
    if isinstance(value, float | np.floating):
        return "–" if np.isnan(value) else f"{value:.4g}"
    return str(value)


def as_markdown(title: str, about: list[str], parts: dict[str, Part]) -> str:
    """One page: what it is about, and each part's table and findings."""
    lines = [f"# {title}", *(line for paragraph in about for line in ("", paragraph))]
    for name, (table, findings) in parts.items():
        rows = [list(table.columns), ["---"] * table.shape[1], *table.map(as_text).to_numpy().tolist()]
        lines += ["", f"## {name}", ""]
        lines += [f"| {' | '.join(map(str, row))} |" for row in rows] + [""] if len(table) else []
        lines += [f"- {finding}" for finding in findings]
    return "\n".join(lines) + "\n"
