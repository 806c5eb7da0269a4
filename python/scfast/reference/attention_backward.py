"""Gradients of attention in float64: autograd through the materialised maps."""

from __future__ import annotations

from typing import Any

import torch

from scfast.packing import Packing
from scfast.reference.attention_forward import attention_forward


def attention_backward(
    d_out: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, packing: Packing, **score: Any
) -> dict[str, torch.Tensor]:
    """Everything that :func:`scfast.ops.attention_backward` returns, in float64."""
    q, k, v = leaves = [x.detach().double().requires_grad_() for x in (q, k, v)]
    with torch.enable_grad():
        out = attention_forward(q, k, v, packing, **score)["out"]
        # Without cells there is no graph.
        gradients = torch.autograd.grad(out, leaves, d_out.double()) if packing.n_cells else leaves
    return dict(zip(("dq", "dk", "dv"), gradients, strict=True))
