"""Shapes and inputs for cosine_histogram: the distribution of all pairs of rows."""

from __future__ import annotations

from typing import Any

import torch

import peers
from ops._cosine import TINY, YARDSTICK, cases, inputs, product
from scfast import ops

__all__ = ["CASES", "OP", "TINY_CASES", "contenders", "exact", "inputs"]

OP = "cosine_histogram"
CASES = cases(bins=200)
TINY_CASES = cases(TINY, bins=200)
_BLOCK = 1024


def _statistics(counts: torch.Tensor, total: torch.Tensor, squares: torch.Tensor) -> peers.Answer:
    return {"cumulative": counts.cumsum(0), "moments": torch.stack([total, squares]) / counts.sum()}


def ours(x: dict[str, Any]) -> peers.Answer:
    found = ops.cosine_histogram(x["x"], bins=x["bins"])
    return _statistics(found.counts, found.sum, found.sum_of_squares)


def blocks(x: dict[str, Any], unit: torch.Tensor | None = None) -> peers.Answer:
    """torch, a block of rows at a time against the rows after it."""
    unit = x["unit"] if unit is None else unit
    counts, total, squares = (
        torch.zeros(x["bins"], dtype=torch.int64),
        torch.zeros(()).double(),
        torch.zeros(()).double(),
    )
    for first in range(0, len(unit), _BLOCK):
        s = unit[first : first + _BLOCK] @ unit[first:].T
        s = s[torch.ones(s.shape, dtype=torch.bool).triu(1)]
        counts += torch.histc(s.float(), x["bins"], -1, 1).long()
        total, squares = total + s.double().sum(), squares + s.double().square().sum()
    return _statistics(counts, total, squares)


def exact(x: dict[str, Any]) -> peers.Answer:
    return blocks(x, torch.nn.functional.normalize(x["x"].double()))


def contenders(case: dict[str, Any]) -> dict[str, peers.Contender]:
    return {peers.OURS: ours, YARDSTICK: product, "torch, block by block": blocks}
