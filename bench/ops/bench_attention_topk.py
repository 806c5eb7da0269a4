"""Shapes and inputs for attention_topk: the 16 strongest keys of every query, heads fused by their mean or apart."""

from __future__ import annotations

from typing import Any

import torch

import peers
from ops._attention import TINY, cases
from ops._attention import inputs as model_inputs
from scfast import ops, reference

__all__ = ["CASES", "OP", "TINY_CASES", "contenders", "exact", "inputs"]

OP = "attention_topk"
N = 16
CASES = [case | {"fusion": fusion} for case in cases(("float32",)) for fusion in ("mean", "none")]
TINY_CASES = [case | {"fusion": fusion} for case in cases(("float32",), TINY) for fusion in ("mean", "none")]


def inputs(case: dict[str, Any]) -> dict[str, Any]:
    return model_inputs(case) | {"fusion": case["fusion"]}


def ours(x: dict[str, Any]) -> peers.Answer:
    values, _ = ops.attention_topk(x["q"], x["k"], x["packing"], N, heads=x["fusion"])
    return {"values": values.reshape(len(values), -1, N)}


def materialised(x: dict[str, Any]) -> peers.Answer:
    p = peers.maps(x)[1]
    p = p.mean(0, keepdim=True) if x["fusion"] == "mean" else p
    return {"values": torch.topk(p, N).values.transpose(0, 1)}


def colsum(x: dict[str, Any]) -> peers.Answer:
    ops.attention_colsum(x["q"], x["k"], x["packing"], x["row_weights"], heads=x["fusion"])
    return {}


def exact(x: dict[str, Any]) -> peers.Answer:
    values, _ = reference.attention_topk(x["q"], x["k"], x["packing"], N, heads=x["fusion"])
    return {"values": values}


def contenders(case: dict[str, Any]) -> dict[str, peers.Contender]:
    return {
        peers.OURS: ours,
        "one attention_colsum": colsum,
        peers.YARDSTICK: peers.sdpa_time,
        peers.MATERIALISED: materialised,
    }
