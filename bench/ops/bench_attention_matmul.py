"""Shapes and inputs for attention_matmul: 64 columns, heads fused by their mean."""

from __future__ import annotations

from typing import Any

import torch

from ops._attention import TINY, cases
from ops._attention import inputs as attention_inputs

__all__ = ["CASES", "OP", "TINY_CASES", "inputs"]

OP = "attention_matmul"
WIDTH = 64
CASES = cases(("float32", "bfloat16"))
TINY_CASES = cases(("float32", "bfloat16"), TINY)


def inputs(case: dict[str, Any]) -> dict[str, Any]:
    """Those of every attention op, and x [L, 64] in float32."""
    random = torch.Generator().manual_seed(2)
    return attention_inputs(case) | {"x": torch.randn(case["tokens"], WIDTH, generator=random)}
