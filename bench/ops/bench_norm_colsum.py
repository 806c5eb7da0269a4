"""Shapes, inputs and peers for attention_colsum of the map of norms, lse given: one readout."""

from __future__ import annotations

from typing import Any

import torch

import peers
from ops._attention import HEAD_DIM
from ops._attention import inputs as attention_inputs
from scfast import Packing, ops, reference

__all__ = ["CASES", "OP", "TINY_CASES", "contenders", "exact", "inputs"]

OP = "norm_colsum"
AS_PUBLISHED, GRAM = "materialised, as published", "materialised maps, Gram form"
#: Tokens up to which the vectors of all pairs (n * n * width numbers) are held, or maps turned to [keys, queries, H].
MOST_VECTORS, MOST_MAPS = 512, 2048  # the second for four heads
CASES = [
    {"heads": h, "tokens": n, "dtype": "float32"} for h, n in ((4, 512), (4, 2048), (12, 2048), (18, 4096))
]
TINY_CASES = [{"heads": 3, "tokens": 60, "dtype": "float32"}]


def inputs(case: dict[str, Any]) -> dict[str, Any]:
    """Inputs of attention, vectors f_h(x_j) as wide as the model, their Gram matrices, and the log-sum-exp."""
    data = attention_inputs(case)
    random = torch.Generator().manual_seed(2)
    width = case["heads"] * HEAD_DIM
    gram = []
    keep = case["tokens"] <= MOST_VECTORS
    vectors = []
    for start in range(0, case["tokens"], 64):
        f = torch.randn(min(64, case["tokens"] - start), case["heads"], width, generator=random)
        gram.append(torch.einsum("jhd,jgd->jhg", f, f))
        vectors.append(f if keep else f[:0])
    lse = ops.attention_forward(data["q"], data["k"], data["v"], data["packing"]).lse
    data["map"] = ops.Norm(torch.cat(gram), lse=lse)
    data["f_heads"] = torch.cat(vectors).transpose(0, 1).contiguous()  # [H, n, width]
    return data


def ours(x: dict[str, Any]) -> peers.Answer:
    return {"sums": ops.attention_colsum(x["q"], x["k"], x["packing"], x["row_weights"], map=x["map"])[0, 0]}


def ours_without_lse(x: dict[str, Any]) -> peers.Answer:
    return ours(x | {"map": ops.Norm(x["map"].gram)})


def as_published(x: dict[str, Any]) -> peers.Answer:
    """Kobayashi et al.: the weighted vectors of every head and pair, summed over heads, their lengths."""
    p = peers.maps(x)[1]
    vectors = torch.einsum("hij,hjd->hijd", p, x["f_heads"]).sum(0)
    return {"sums": x["row_weights"] @ vectors.norm(dim=-1)}


def vectors_alone(x: dict[str, Any]) -> peers.Answer:
    """One product a key sums the heads at once: n * n * width numbers, not H times as many."""
    p = peers.maps(x)[1]
    vectors = p.permute(2, 1, 0) @ x["f_heads"].transpose(0, 1)  # [keys, queries, width]
    return {"sums": vectors.norm(dim=-1) @ x["row_weights"]}


def gram_form(x: dict[str, Any]) -> peers.Answer:
    """The same formula as ours on maps that are held: [keys, queries, H]."""
    p = peers.maps(x)[1].permute(2, 1, 0).contiguous()
    square = ((p @ x["map"].gram) * p).sum(-1)
    return {"sums": square.clamp(min=0).sqrt() @ x["row_weights"]}


def exact(x: dict[str, Any]) -> peers.Answer:
    """float64, a block of queries at a time: one-cell problems of some queries and all keys."""
    n, total = x["q"].shape[0], 0.0
    for start in range(0, n, 256):
        rows = slice(start, min(start + 256, n))
        packing = Packing.from_lengths([rows.stop - start], [n])
        sums, _ = reference.attention_colsum(
            x["q"][rows], x["k"], packing, x["row_weights"][None, rows], map=x["map"], heads="sum"
        )
        total = total + sums[0, 0]
    return {"sums": total}


def contenders(case: dict[str, Any]) -> dict[str, peers.Contender]:
    found = {peers.OURS: ours, "scfast, lse computed": ours_without_lse, peers.YARDSTICK: peers.sdpa_time}
    if case["tokens"] <= MOST_MAPS and case["heads"] <= 4:
        found[GRAM] = gram_form
    if case["tokens"] <= MOST_VECTORS:
        found |= {peers.MATERIALISED: vectors_alone, AS_PUBLISHED: as_published}
    return found
