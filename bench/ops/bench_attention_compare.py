"""Shapes and inputs for attention_compare, beside one attention_colsum: two models' maps against one pass over one."""

from __future__ import annotations

from typing import Any

import torch

import peers
from ops._attention import TINY, cases
from ops._attention import inputs as model_inputs
from scfast import ops, reference

__all__ = ["CASES", "OP", "TINY_CASES", "contenders", "exact", "inputs"]

OP = "attention_compare"
CASES = cases(("float32", "bfloat16"))
TINY_CASES = cases(("float32", "bfloat16"), TINY)
COLSUM = "one attention_colsum"


def inputs(case: dict[str, Any]) -> dict[str, Any]:
    """Those of one model, and q and k of another: the same weights, moved by as much as fine-tuning may."""
    data = model_inputs(case)
    random = torch.Generator().manual_seed(1)
    for name in "qk":
        moved = data[name].float() + 0.5 * torch.randn(data[name].shape, generator=random)
        data[name + "2"] = moved.to(data[name].dtype)
        data[name + "2_heads"] = data[name + "2"].transpose(0, 1)[None].contiguous()
    return data


def arguments(x: dict[str, Any]) -> list[Any]:
    return [x[name] for name in ("q", "k", "q2", "k2", "packing")]


def ours(x: dict[str, Any]) -> peers.Answer:
    return ops.attention_compare(*arguments(x))._asdict()


def colsum(x: dict[str, Any]) -> peers.Answer:
    peers.colsum(x)
    return {}


def materialised(x: dict[str, Any]) -> peers.Answer:
    p1 = peers.maps(x)[1]
    p2 = peers.maps({name: x[name.replace("_", "2_")] for name in ("q_heads", "k_heads")})[1]
    sums = {"dot": p1 * p2, "square1": p1 * p1, "square2": p2 * p2}
    return {name: product.sum((1, 2))[None] for name, product in sums.items()}


def exact(x: dict[str, Any]) -> peers.Answer:
    sums = reference.attention_compare(*arguments(x))
    return dict(zip(ops.MapProducts._fields, sums, strict=True))


def contenders(case: dict[str, Any]) -> dict[str, peers.Contender]:
    return {
        peers.OURS: ours,
        COLSUM: colsum,
        peers.YARDSTICK: peers.sdpa_time,
        peers.MATERIALISED: materialised,
    }
