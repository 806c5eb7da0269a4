"""Shapes and inputs for attention_backward, after the forward pass; torch's graph is built beforehand."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

import peers
from ops._attention import HEAD_DIM, TINY, cases
from ops._attention import inputs as forward_inputs
from scfast import ops, reference

__all__ = ["CASES", "OP", "TINY_CASES", "contenders", "exact", "inputs"]

OP = "attention_backward"
CASES = cases(("float32", "bfloat16"))
TINY_CASES = cases(("float32", "bfloat16"), TINY)


def inputs(case: dict[str, Any]) -> dict[str, Any]:
    """Inputs of the forward pass, its results, and d_out: packed [L, H, D], for torch [1, H, L, D]."""
    data = forward_inputs(case)
    random = torch.Generator().manual_seed(1)
    shape = (case["tokens"], case["heads"], HEAD_DIM)
    data["d_out"] = torch.randn(shape, generator=random).to(data["q"].dtype)
    forward = ops.attention_forward(data["q"], data["k"], data["v"], data["packing"])
    data |= {"out": forward.out, "lse": forward.lse}
    with torch.enable_grad():
        data["leaves"] = [data[f"{name}_heads"].clone().requires_grad_() for name in "qkv"]
        data["graph"] = scaled_dot_product_attention(*data["leaves"])
    data["d_out_heads"] = data["d_out"].transpose(0, 1)[None].contiguous()
    return data


def ours(x: dict[str, Any]) -> peers.Answer:
    given = (x[name] for name in ("d_out", "q", "k", "v", "out", "lse", "packing"))
    return ops.attention_backward(*given)._asdict()


def sdpa(x: dict[str, Any]) -> peers.Answer:
    gradients = torch.autograd.grad(x["graph"], x["leaves"], x["d_out_heads"], retain_graph=True)
    return {name: g[0].transpose(0, 1) for name, g in zip(("dq", "dk", "dv"), gradients, strict=True)}


def exact(x: dict[str, Any]) -> peers.Answer:
    return reference.attention_backward(*(x[name] for name in ("d_out", "q", "k", "v", "packing")))


def contenders(case: dict[str, Any]) -> dict[str, peers.Contender]:
    return {peers.OURS: ours, peers.BACKWARD: sdpa, peers.YARDSTICK: peers.sdpa_time}
