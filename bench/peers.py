"""What each op is timed against, and the exact answer.

A contender maps inputs to named tensors, which are compared with the exact ones.

An empty answer means that the contender does less than the op: it is a yardstick of time only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from scfast import ops, reference

Answer = dict[str, torch.Tensor]
Contender = Callable[[dict[str, Any]], Answer]

OURS = "scfast"
YARDSTICK = "torch SDPA forward, float32"
MATERIALISED = "materialised"
BACKWARD = "SDPA backward"


# scfast
def colsum(x: dict[str, Any]) -> Answer:
    return {"sums": ops.attention_colsum(x["q"], x["k"], x["packing"], x["row_weights"])[0, 0]}


def forward(x: dict[str, Any]) -> Answer:
    full = ops.attention_forward(x["q"], x["k"], x["v"], x["packing"], received=True, entropy=True, max=True)
    return full._asdict()


def forward_alone(x: dict[str, Any]) -> Answer:
    plain = ops.attention_forward(x["q"], x["k"], x["v"], x["packing"])
    return {"out": plain.out, "lse": plain.lse}


def matmul(x: dict[str, Any]) -> Answer:
    return {"product": ops.attention_matmul(x["q"], x["k"], x["packing"], x["x"])}


def rowstats(x: dict[str, Any]) -> Answer:
    return ops.attention_rowstats(x["q"], x["k"], x["packing"])._asdict()


# torch's fused attention: the yardstick, which yields no statistic of the map
def sdpa(x: dict[str, Any], suffix: str = "32") -> torch.Tensor:
    return scaled_dot_product_attention(*(x[f"{name}_heads{suffix}"] for name in "qkv"))


def sdpa_time(x: dict[str, Any]) -> Answer:
    sdpa(x)
    return {}


def sdpa_out(x: dict[str, Any]) -> Answer:
    return {"out": sdpa(x)[0].transpose(0, 1)}


def sdpa_low(x: dict[str, Any]) -> Answer:
    return {"out": sdpa(x, "")[0].transpose(0, 1)}


# the maps, held
def maps(x: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    q, k = x["q_heads"][0], x["k_heads"][0]
    scores = (q @ k.mT) * q.shape[-1] ** -0.5
    return scores, scores.softmax(-1)


def eager_colsum(x: dict[str, Any]) -> Answer:
    return {"sums": x["row_weights"].to(x["q"].dtype) @ maps(x)[1].mean(0)}


def eager_forward(x: dict[str, Any]) -> Answer:
    scores, p = maps(x)
    return {
        "out": (p @ x["v_heads"][0]).transpose(0, 1),
        "lse": scores.float().logsumexp(-1).T,
        "received": p.sum(1),
        "entropy": torch.special.entr(p).sum(-1).T,
        "max": p.amax(-1).T,
    }


def eager_matmul(x: dict[str, Any]) -> Answer:
    return {"product": maps(x)[1].mean(0) @ x["x"].to(x["q"].dtype)}


def eager_rowstats(x: dict[str, Any]) -> Answer:
    _, p = maps(x)
    row_sum = p.sum(-1).T
    return {
        "entropy": torch.special.entr(p).sum(-1).T,
        "max": p.amax(-1).T,
        "self_weight": p.diagonal(dim1=1, dim2=2).T,
        "row_sum": row_sum,
        "total": row_sum.sum(0, keepdim=True),
    }


# A x by attention itself: x as the values of every head, whose outputs are averaged
def sdpa_matmul(x: dict[str, Any]) -> Answer:
    q, k = x["q_heads"], x["k_heads"]
    values = x["x"].to(q.dtype).expand(*k.shape[:2], -1, -1)
    return {"product": scaled_dot_product_attention(q, k, values)[0].float().mean(0)}


# r^T P is the gradient of SDPA with respect to v, when the gradient of its output is r
def through_backward(x: dict[str, Any], rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    q, k, v = (x[f"{name}_heads"] for name in "qkv")
    v = v.detach().requires_grad_()
    with torch.enable_grad():
        out = scaled_dot_product_attention(q, k, v)
    d_out = torch.zeros_like(out)  # the fused kernel wants v as wide as q: one column holds r
    d_out[..., 0] = rows
    (d_v,) = torch.autograd.grad(out, v, d_out)
    return out.detach()[0].transpose(0, 1), d_v[0, :, :, 0]


def backward_colsum(x: dict[str, Any]) -> Answer:
    n_heads = x["q"].shape[1]
    return {"sums": through_backward(x, x["row_weights"] / n_heads)[1].sum(0)}


def backward_forward(x: dict[str, Any]) -> Answer:
    out, received = through_backward(x, torch.ones(x["q"].shape[0]))
    return {"out": out, "received": received}


# the exact answer, in float64, on the same rounded inputs
def exact_colsum(x: dict[str, Any]) -> Answer:
    sums, _ = reference.attention_colsum(x["q"], x["k"], x["packing"], x["row_weights"][None])
    return {"sums": sums[0, 0]}


def exact_forward(x: dict[str, Any]) -> Answer:
    return reference.attention_forward(x["q"], x["k"], x["v"], x["packing"])


def exact_matmul(x: dict[str, Any]) -> Answer:
    return {"product": reference.attention_matmul(x["q"], x["k"], x["packing"], x["x"])}


def exact_rowstats(x: dict[str, Any]) -> Answer:
    return reference.attention_rowstats(x["q"], x["k"], x["packing"])


def contenders(op: str, case: dict[str, Any]) -> dict[str, Contender]:
    """Everything that runs on a case, ours first."""
    low = case["dtype"] != "float32"
    if op == "attention_colsum":
        return {
            OURS: colsum,
            YARDSTICK: sdpa_time,
            MATERIALISED: eager_colsum,
            BACKWARD: backward_colsum,
        }
    if op == "attention_matmul":
        return {
            OURS: matmul,
            YARDSTICK: sdpa_time,
            "torch SDPA of x as values": sdpa_matmul,
            MATERIALISED: eager_matmul,
        }
    if op == "attention_forward":
        extra = {f"torch SDPA forward, {case['dtype']}": sdpa_low} if low else {}
        return {
            OURS: forward,
            "scfast, out and lse alone": forward_alone,
            YARDSTICK: sdpa_out,
            **extra,
            MATERIALISED: eager_forward,
            BACKWARD: backward_forward,
        }
    return {OURS: rowstats, YARDSTICK: sdpa_time, MATERIALISED: eager_rowstats}


EXACT: dict[str, Contender] = {
    "attention_colsum": exact_colsum,
    "attention_forward": exact_forward,
    "attention_matmul": exact_matmul,
    "attention_rowstats": exact_rowstats,
}
