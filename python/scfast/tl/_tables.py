"""Tables of gene scores: one row per gene and group, one row per group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import scipy

from scfast.analyses.group_expression import GroupExpressionResult
from scfast.analyses.group_scores import GroupScoresResult
from scfast.models.base import TokenKind


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Rank correlation, ties at their mean rank; nan for fewer than three pairs or a constant.

    Examples
    --------
    >>> import numpy as np
    >>> spearman(np.array([1.0, 2.0, 9.0]), np.array([0.1, 0.2, 0.3]))
    1.0
    """
    if len(x) < 3:
        return float("nan")
    a, b = (ranks - ranks.mean() for ranks in (scipy.stats.rankdata(x), scipy.stats.rankdata(y)))
    norm = np.sqrt((a @ a) * (b @ b))
    return float(np.clip(a @ b / norm, -1.0, 1.0)) if norm > 0 else float("nan")


def partial_spearman(x: np.ndarray, y: np.ndarray, held: np.ndarray) -> float:
    """Rank correlation of ``x`` and ``y`` [n] where ``held`` [n, c] is held constant.

    Pearson correlation of what is left of the ranks of ``x`` and ``y`` after linear regression on the ranks of
    ``held``; nan for fewer than c + 3 rows, or where nothing is left.

    Examples
    --------
    >>> import numpy as np
    >>> depth, one, another = np.random.default_rng(0).normal(size=(3, 500))
    >>> x, y = depth + one, depth + another
    >>> round(spearman(x, y), 1), abs(partial_spearman(x, y, depth[:, None])) < 0.1
    (0.5, True)
    """
    if len(x) < held.shape[1] + 3:
        return float("nan")
    fixed = np.column_stack([np.ones(len(x)), *(scipy.stats.rankdata(column) for column in held.T)])
    ranks = np.column_stack([scipy.stats.rankdata(x), scipy.stats.rankdata(y)])
    a, b = (ranks - fixed @ np.linalg.lstsq(fixed, ranks, rcond=None)[0]).T
    norm = np.sqrt((a @ a) * (b @ b))
    return float(np.clip(a @ b / norm, -1.0, 1.0)) if norm > 1e-9 * len(x) else float("nan")


def categorical(table: pd.DataFrame, *names: str) -> pd.DataFrame:
    """Names as categories, in order of appearance."""
    for name in names:
        table[name] = pd.Categorical(table[name], categories=list(dict.fromkeys(table[name])))
    return table


def auroc(values: np.ndarray, marked: np.ndarray) -> float:
    """Probability that a marked value is larger than one that is not (ties count half); nan where one kind lacks.

    Examples
    --------
    >>> import numpy as np
    >>> auroc(np.array([3.0, 1.0, 2.0]), np.array([True, False, True]))
    1.0
    """
    inside, outside = int(marked.sum()), int((~marked).sum())
    if not inside or not outside:
        return float("nan")
    ranks = scipy.stats.rankdata(values)[marked].sum()
    return float((ranks - inside * (inside + 1) / 2) / (inside * outside))


def gene_table(
    genes: pd.Index,
    groups: list[str],
    scores: GroupScoresResult,
    baseline: GroupExpressionResult,
    null: GroupScoresResult | None,
) -> pd.DataFrame:
    """A row per group and gene that any cell of the group has a token of; best first within each group."""
    parts = []
    for number, name in enumerate(groups):
        kept = np.flatnonzero(scores.detecting[number] > 0)
        kept = kept[np.argsort(-scores.mean[number][kept], kind="stable")]
        columns = {
            "gene": genes[kept].astype(str),
            "group": name,
            **{field: getattr(scores, field)[number][kept] for field in ("mean", "se")},
            **{field: getattr(scores, field)[number][kept] for field in ("mean_detecting", "se_detecting")},
            "cells": scores.detecting[number][kept],
            "rank": scores.rank[number][kept],
            "rank_sd": scores.rank_sd[number][kept],
            "expression": baseline.expression[number][kept],
            "detection": baseline.detection[number][kept],
        }
        if null is not None:
            columns |= {"null": null.mean[number][kept], "null_se": null.se[number][kept]}
        parts.append(pd.DataFrame(columns))
    table = pd.concat(parts, ignore_index=True)
    table["gene"] = pd.Categorical(table["gene"])
    table["group"] = pd.Categorical(table["group"], categories=groups)
    return table


def group_table(groups: list[str], scores: GroupScoresResult, table: pd.DataFrame) -> pd.DataFrame:
    """A row per group: its cells, where the score goes, what was lost, and how the ranking correlates."""
    columns: dict[str, np.ndarray | list[float]] = {"cells": scores.cells, "replicates": scores.replicates}
    columns |= {f"mass_{kind.name.lower()}": scores.mass[:, kind] for kind in TokenKind}
    columns |= {"lost_vocabulary": scores.lost_vocabulary, "lost_truncation": scores.lost_truncation}
    rows = [table[(table["group"] == name).to_numpy()] for name in groups]
    for against in ("expression", "detection", "rank", "null"):
        if against in table:
            columns[f"spearman_{against}"] = [
                spearman(part["mean"].to_numpy(), part[against].to_numpy()) for part in rows
            ]
    return pd.DataFrame(columns, index=pd.Index(groups, name="group"))


def numbers_table(
    groups: list[str], levels: Mapping[str, int], columns: Sequence[str], mean: np.ndarray, se: np.ndarray
) -> pd.DataFrame:
    """A row per group and combination of levels, such as layer and head: each number and its standard error.

    Parameters
    ----------
    groups
        Their names.
    levels
        Name and size of each level, slowest first.
    columns
        Names of the numbers, which vary fastest.
    mean, se
        float64 [groups, levels x columns].
    """
    sizes = (len(groups), *levels.values())
    index = np.indices(sizes).reshape(len(sizes), -1)
    table = pd.DataFrame({"group": pd.Categorical.from_codes(index[0], categories=groups)})
    for name, place in zip(levels, index[1:], strict=True):
        table[name] = place
    for number, column in enumerate(columns):
        for suffix, values in (("", mean), ("_se", se)):
            table[f"{column}{suffix}"] = values.reshape(-1, len(columns))[:, number]
    return table
