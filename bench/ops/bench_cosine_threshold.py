"""Shapes and inputs for cosine_threshold: about one pair of 4,000 is found, 3.5 standard deviations out."""

from __future__ import annotations

from typing import Any

import torch

import peers
from ops._cosine import TINY, YARDSTICK, cases, inputs, product
from scfast import ops

__all__ = ["CASES", "OP", "TINY_CASES", "contenders", "exact", "inputs"]

OP = "cosine_threshold"
CASES = cases()
TINY_CASES = cases(TINY)
_BLOCK = 1024


def _threshold(x: dict[str, Any]) -> float:
    return 3.5 * x["columns"] ** -0.5


def ours(x: dict[str, Any]) -> peers.Answer:
    found = ops.cosine_threshold(x["x"], _threshold(x))
    return {"pairs": torch.tensor([len(found.values)]), "sum": found.values.double().sum()[None]}


def blocks(x: dict[str, Any], unit: torch.Tensor | None = None) -> peers.Answer:
    """torch, a block of rows at a time against the rows after it."""
    unit = x["unit"] if unit is None else unit
    found = []
    for first in range(0, len(unit), _BLOCK):
        s = (unit[first : first + _BLOCK] @ unit[first:].T).triu_(1)
        found.append(s[(s >= _threshold(x)).nonzero(as_tuple=True)])
    values = torch.cat(found)
    return {"pairs": torch.tensor([len(values)]), "sum": values.double().sum()[None]}


def exact(x: dict[str, Any]) -> peers.Answer:
    return blocks(x, torch.nn.functional.normalize(x["x"].double()))


def contenders(case: dict[str, Any]) -> dict[str, peers.Contender]:
    return {peers.OURS: ours, YARDSTICK: product, "torch, block by block": blocks}
