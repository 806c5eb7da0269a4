"""Inputs and peers for bin_values: quantile bins of cells in the shape of blood, as counts and as logarithms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ops import bench_rank_values
from scfast import ops

__all__ = ["CASES", "OP", "TINY_CASES", "YARDSTICK", "contenders", "exact", "inputs"]

OP = "bin_values"
YARDSTICK = "NumPy, a cell at a time"
N_BINS = 51
CASES = [{**case, "values": values} for case in bench_rank_values.CASES for values in ("counts", "log1p")]
TINY_CASES = [{**case, "values": "log1p"} for case in bench_rank_values.TINY_CASES]

Answer = dict[str, torch.Tensor]


def inputs(case: dict[str, Any]) -> dict[str, Any]:
    """Cells of rank_values, raw or as log1p of counts in ten thousand, and a random number for every entry."""
    cells = bench_rank_values.inputs(case)
    data = cells["data"]
    if case["values"] == "log1p":
        data = np.log1p(data * np.repeat(1e4 / cells["n_counts"], np.diff(cells["indptr"])))
    uniforms = np.random.default_rng(1).random(len(data))
    return {
        "indptr": cells["indptr"],
        "indices": cells["indices"],
        "data": data.astype(np.float32),
        "uniforms": uniforms,
    }


def given(x: dict[str, Any]) -> Answer:
    return {"bins": torch.from_numpy(ops.bin_values(**x, mode="quantile", n_bins=N_BINS))}


def drawn(x: dict[str, Any]) -> Answer:
    """Random numbers of its own instead: their bins are others, so only the time is compared."""
    ops.bin_values(x["indptr"], x["indices"], x["data"], mode="quantile", n_bins=N_BINS)
    return {}


def segments(x: dict[str, Any]) -> Answer:
    ops.bin_values(x["indptr"], x["indices"], x["data"], mode="segment", n_bins=N_BINS)
    return {}


def loop(x: dict[str, Any]) -> Answer:
    """What scGPT's preprocessing does to the non-zeros of a cell."""
    bins = np.empty(len(x["data"]), np.int32)
    for begin, end in zip(x["indptr"][:-1], x["indptr"][1:], strict=True):
        values = x["data"][begin:end]
        edges = np.quantile(values, np.linspace(0, 1, N_BINS - 1))
        left, right = np.digitize(values, edges), np.digitize(values, edges, right=True)
        bins[begin:end] = np.ceil(x["uniforms"][begin:end] * (right - left) + left)
    return {"bins": torch.from_numpy(bins)}


def exact(x: dict[str, Any]) -> Answer:
    bins = ops.bin_values(**x, mode="quantile", n_bins=N_BINS, backend="reference")
    return {"bins": torch.from_numpy(bins)}


def contenders(case: dict[str, Any]) -> dict[str, Callable[[dict[str, Any]], Answer]]:
    """Ours first, with the random numbers of the loop; then with its own, and in equal-count bins."""
    return {
        "scfast": given,
        "scfast, own random numbers": drawn,
        "scfast, segments": segments,
        YARDSTICK: loop,
    }
