"""Shapes and inputs for attention_forward with every statistic."""

from ops._attention import TINY, cases, inputs

__all__ = ["CASES", "OP", "TINY_CASES", "inputs"]

OP = "attention_forward"
CASES = cases(("float32", "bfloat16"))
TINY_CASES = cases(("float32", "bfloat16"), TINY)
