"""Shapes and inputs for attention_rowstats of every head."""

from ops._attention import TINY, cases, inputs

__all__ = ["CASES", "OP", "TINY_CASES", "inputs"]

OP = "attention_rowstats"
CASES = cases(("float32",))
TINY_CASES = cases(("float32",), TINY)
