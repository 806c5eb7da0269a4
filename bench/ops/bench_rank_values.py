"""Inputs and peers for rank_values: the shape of blood cells, columns in order, counts mostly 1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from scfast import ops

__all__ = ["CASES", "OP", "TINY_CASES", "YARDSTICK", "contenders", "exact", "inputs"]

OP = "rank_values"
YARDSTICK = "NumPy, a cell at a time"
MAX_TOKENS = 2048
#: The size of 3,874 bead-sorted blood cells (Zheng et al. 2017), and of deeper cells that truncation cuts.
CASES = [{"cells": 3874, "columns": 16_791, "genes": 714}, {"cells": 500, "columns": 16_791, "genes": 4000}]
TINY_CASES = [{"cells": 20, "columns": 300, "genes": 60}]

Answer = dict[str, torch.Tensor]


def inputs(case: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the op: random cells, 4 of 5 columns with a token, medians that follow the level."""
    random = np.random.default_rng(0)
    level = random.lognormal(0, 1.5, case["columns"])
    detection = 1 - np.exp(-level)
    detection *= case["genes"] / detection.sum()
    rows, counts = [], []
    for depth in random.lognormal(0, 0.4, case["cells"]):
        rows.append(np.flatnonzero(random.random(case["columns"]) < np.minimum(detection * depth, 1)))
        counts.append(1 + random.poisson(level[rows[-1]] * 0.3))
    lengths = [len(row) for row in rows]
    medians = np.maximum(level, 0.3) * random.lognormal(0, 0.5, case["columns"])
    return {
        "indptr": np.cumsum([0, *lengths]),
        "indices": np.concatenate(rows).astype(np.int32),
        "data": np.concatenate(counts).astype(np.float32),
        "n_counts": np.array([total.sum() for total in counts], dtype=np.float32),
        "token_ids": np.where(
            random.random(case["columns"]) < 0.8, random.permutation(case["columns"]) + 2, -1
        ),
        "factors": medians,
    }


def ours(x: dict[str, Any]) -> Answer:
    return {"token_ids": torch.from_numpy(ops.rank_values(**x, max_tokens=MAX_TOKENS).token_ids)}


def loop(x: dict[str, Any], kind: str | None = None) -> Answer:
    """What tokenisers written in NumPy do; without ``kind`` its fastest sort, in which ties have no order."""
    known, found = x["token_ids"] >= 0, []
    for cell, n_counts in enumerate(x["n_counts"]):
        row = slice(x["indptr"][cell], x["indptr"][cell + 1])
        columns, counts = x["indices"][row], x["data"][row]
        inside = known[columns]
        columns = columns[inside]
        values = counts[inside] / n_counts * 1e4 / x["factors"][columns]
        found.append(x["token_ids"][columns[np.argsort(-values, kind=kind)[:MAX_TOKENS]]])
    return {"token_ids": torch.from_numpy(np.concatenate(found))}


def exact(x: dict[str, Any]) -> Answer:
    ranked = ops.rank_values(**x, max_tokens=MAX_TOKENS, backend="reference")
    return {"token_ids": torch.from_numpy(ranked.token_ids)}


def contenders(case: dict[str, Any]) -> dict[str, Callable[[dict[str, Any]], Answer]]:
    """Ours first. An error of the loops is a tie or a near-tie that their sort or rounding swaps."""
    return {
        "scfast": ours,
        YARDSTICK: loop,
        "NumPy, a cell at a time, stable sort": lambda x: loop(x, "stable"),
    }
