"""The shapes that the cosine ops are timed on, their inputs, and the yardsticks that they share."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from peers import Answer

#: Rows and columns: gene-mean states of a large atlas, and the hidden states of one long cell.
SHAPES = ((32_768, 512), (4096, 512))
TINY = ((300, 24),)
YARDSTICK = "torch: the full product alone"


def cases(shapes: tuple[tuple[int, int], ...] = SHAPES, **more: Any) -> list[dict[str, Any]]:
    """One case per shape."""
    return [{"dtype": "float32", "rows": n, "columns": d} | more for n, d in shapes]


def inputs(case: dict[str, Any]) -> dict[str, Any]:
    """x [N, D], normal, and the same rows at length 1, which the yardsticks need not compute."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(case["rows"], case["columns"], generator=random)
    return {"x": x, "unit": torch.nn.functional.normalize(x)} | case


def product(x: dict[str, Any]) -> Answer:
    """All similarities, held: N * N float32."""
    others = x.get("unit_others")
    _ = x["unit"] @ (x["unit"] if others is None else others).T
    return {}


def faiss() -> Any:
    """The package faiss-cpu, an optional peer; None where it is not installed."""
    try:
        return importlib.import_module("faiss")
    except ModuleNotFoundError:
        print("faiss-cpu is not installed: its rows are left out (pip install faiss-cpu)")
        return None
