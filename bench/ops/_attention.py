"""The shapes that every attention op is timed on, and their inputs."""

from __future__ import annotations

from typing import Any

import torch

import scfast

HEAD_DIM = 64
#: Geneformer V1-10M, V2-sized, UCE- and scGPT-like, and the longest context: (heads, tokens) of one cell.
SHAPES = ((4, 2048), (20, 1024), (8, 1200), (12, 4096))
TINY = ((2, 130),)


def cases(dtypes: tuple[str, ...], shapes: tuple[tuple[int, int], ...] = SHAPES) -> list[dict[str, Any]]:
    """One case per dtype and shape."""
    return [{"heads": h, "tokens": n, "dtype": dtype} for dtype in dtypes for h, n in shapes]


def inputs(case: dict[str, Any]) -> dict[str, Any]:
    """q, k, v of one cell: packed [L, H, D] and, for torch, heads first [1, H, L, D]; row weights [L].

    The weights sum to 1. ``*32`` are the same rounded values in float32: the yardstick runs on them.
    """
    random = torch.Generator().manual_seed(0)
    shape = (case["tokens"], case["heads"], HEAD_DIM)
    dtype = getattr(torch, case["dtype"])
    data: dict[str, Any] = {"packing": scfast.Packing.from_lengths([case["tokens"]])}
    for name in "qkv":
        data[name] = torch.randn(shape, generator=random).to(dtype)
        data[name + "_heads"] = data[name].transpose(0, 1)[None].contiguous()
        data[name + "_heads32"] = data[name + "_heads"].float()
    weights = torch.rand(case["tokens"], generator=random) + 0.5
    data["row_weights"] = weights / weights.sum()
    return data
