"""Shapes and inputs for attention_colsum: one readout, heads fused by their mean."""

from ops._attention import TINY, cases, inputs

__all__ = ["CASES", "OP", "TINY_CASES", "inputs"]

OP = "attention_colsum"
CASES = cases(("float32", "bfloat16"))
TINY_CASES = cases(("float32", "bfloat16"), TINY)
