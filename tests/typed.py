"""A program that uses scfast, for mypy alone: what is wrong in it must be an error there, and nothing else."""

from __future__ import annotations

import torch

import scfast
from scfast import _kernels, ops

packing: scfast.Packing = scfast.Packing.from_lengths([3, 2])
packing_of_text = scfast.Packing.from_lengths("3, 2")  # type: ignore[arg-type]
q = torch.randn(packing.total_q, 2, 8)

forward: ops.AttentionOutput = ops.attention_forward(q, q, q, packing, scale=0.5)
swapped = ops.attention_forward(packing, q, q, q)  # type: ignore[arg-type]
misspelt = ops.attention_forward(q, q, q, packing, scales=0.5)  # type: ignore[call-arg]

instruction_sets: list[str] = _kernels.instruction_sets()
_kernels.use_instruction_set(1)  # type: ignore[arg-type]
_kernels.Map(kind="norm")  # type: ignore[arg-type]
