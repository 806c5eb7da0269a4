"""Rank-value encoding, a cell at a time in NumPy."""

from __future__ import annotations

from itertools import pairwise

import numpy as np


def rank_values(
    indptr: np.ndarray,
    indices: np.ndarray,
    data: np.ndarray,
    *,
    n_counts: np.ndarray,
    token_ids: np.ndarray,
    factors: np.ndarray,
    groups: np.ndarray,
    max_tokens: int,
    target: float,
) -> tuple[np.ndarray, ...]:
    """The fields of :class:`scfast.ops.RankedCells`."""
    tokens, columns, lengths, expressed, in_vocabulary = [], [], [], [], []
    for cell, (begin, end) in enumerate(pairwise(indptr)):
        found, counts = collapse(indices[begin:end], data[begin:end], groups)
        known = token_ids[found] >= 0
        expressed.append(len(found))
        in_vocabulary.append(known.sum())
        found, counts = found[known], counts[known]
        values = scaled_values(counts, n_counts[cell], factors[found], target)
        order = np.argsort(-values, kind="stable")[:max_tokens]  # found rises: ties by column
        columns.append(found[order])
        tokens.append(token_ids[found[order]])
        lengths.append(len(order))
    fields = [np.concatenate([*parts, np.zeros(0, np.int64)]) for parts in (tokens, columns)]
    fields += [np.cumsum([0, *lengths]), np.array(expressed), np.array(in_vocabulary)]
    return tuple(field.astype(np.int32 if i < 2 else np.int64) for i, field in enumerate(fields))


def collapse(columns: np.ndarray, counts: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rising columns of the genes that have a count, and their counts in float64."""
    genes, which = np.unique(groups[columns], return_inverse=True)
    total = np.zeros(len(genes))
    np.add.at(total, which, counts.astype(np.float64))
    return genes[total > 0], total[total > 0]


def scaled_values(counts: np.ndarray, n_counts: float, factors: np.ndarray, target: float) -> np.ndarray:
    """Count / n_counts * target in float32, / factor in float64, quotients as products with reciprocals."""
    with np.errstate(over="ignore", under="ignore", divide="ignore"):
        scaled = counts.astype(np.float32) * (np.float32(1) / np.float32(n_counts)) * np.float32(target)
        return scaled.astype(np.float64) * (1 / factors)
