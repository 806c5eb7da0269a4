"""Shapes, inputs and peers for attention_colsum of gradient-weighted attention, lse given: one readout."""

from __future__ import annotations

from typing import Any

import torch

import peers
from ops._attention import TINY, cases
from ops._attention import inputs as attention_inputs
from scfast import ops, reference

__all__ = ["CASES", "OP", "TINY_CASES", "contenders", "exact", "inputs"]

OP = "relevance_colsum"
CASES = cases(("float32",))[:3]
TINY_CASES = cases(("float32",), TINY)


def inputs(case: dict[str, Any]) -> dict[str, Any]:
    """Inputs of attention, a gradient of its output, and the log-sum-exp."""
    data = attention_inputs(case)
    d_out = torch.randn(data["v"].shape, generator=torch.Generator().manual_seed(1))
    lse = ops.attention_forward(data["q"], data["k"], data["v"], data["packing"]).lse
    data["map"] = ops.Relevance(data["v"], d_out, lse=lse)
    data["d_out_heads"] = d_out.transpose(0, 1)[None].contiguous()
    return data


def ours(x: dict[str, Any]) -> peers.Answer:
    return {"sums": ops.attention_colsum(x["q"], x["k"], x["packing"], x["row_weights"], map=x["map"])[0, 0]}


def ours_without_lse(x: dict[str, Any]) -> peers.Answer:
    return ours(x | {"map": ops.Relevance(x["map"].v, x["map"].d_out)})


def eager(x: dict[str, Any]) -> peers.Answer:
    """The maps and their gradients, held: [H, n, n] each."""
    gradient = x["d_out_heads"][0] @ x["v_heads"][0].mT
    return {"sums": x["row_weights"] @ (peers.maps(x)[1] * gradient).clamp(min=0).mean(0)}


def exact(x: dict[str, Any]) -> peers.Answer:
    sums, _ = reference.attention_colsum(
        x["q"], x["k"], x["packing"], x["row_weights"][None], map=x["map"], heads="mean"
    )
    return {"sums": sums[0, 0]}


def contenders(case: dict[str, Any]) -> dict[str, peers.Contender]:
    return {
        peers.OURS: ours,
        "scfast, lse computed": ours_without_lse,
        peers.YARDSTICK: peers.sdpa_time,
        peers.MATERIALISED: eager,
    }
