"""Shapes and inputs for cosine_matrix: all similarities of rows with themselves."""

from __future__ import annotations

from typing import Any

import torch

import peers
from ops._cosine import SHAPES, TINY, cases, inputs
from scfast import ops, reference

__all__ = ["CASES", "OP", "TINY_CASES", "contenders", "exact", "inputs"]

OP = "cosine_matrix"
CASES = cases(SHAPES[1:])
TINY_CASES = cases(TINY)


def ours(x: dict[str, Any]) -> peers.Answer:
    return {"similarity": ops.cosine_matrix(x["x"])}


def plain(x: dict[str, Any]) -> peers.Answer:
    unit = torch.nn.functional.normalize(x["x"])
    return {"similarity": unit @ unit.T}


def exact(x: dict[str, Any]) -> peers.Answer:
    return {"similarity": reference.cosine_matrix(x["x"])}


def contenders(case: dict[str, Any]) -> dict[str, peers.Contender]:
    return {peers.OURS: ours, "torch: normalize and product": plain}
