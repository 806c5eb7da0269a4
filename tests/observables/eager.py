"""Gradients of attention maps by autograd, on eager models that hold their maps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers


def maps_and_gradients(
    model: transformers.PreTrainedModel,
    target: Callable[[Any], torch.Tensor],
    dtype: torch.dtype = torch.float64,
    **inputs: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Maps and the target's gradients with respect to them, [N, B, H, L, L]; in float32 the yardstick of the rule."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    output = model.to(dtype)(**inputs, output_attentions=True)
    gradients = torch.autograd.grad(target(output).sum(), output.attentions)
    model.float().set_attn_implementation(before)
    return torch.stack([p.detach() for p in output.attentions]), torch.stack(gradients)


def weighted(maps: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """C of every layer: mean over heads of (dP * P)^+, [N, ..., n, n] of [N, ..., H, n, n]."""
    return (maps * gradients).clamp(min=0).mean(-3)


def chefer_mm(cams: torch.Tensor) -> torch.Tensor:
    """R <- R + C R from the identity, [..., n, n] of [N, ..., n, n]."""
    joint = torch.eye(cams.shape[-1], dtype=cams.dtype).expand_as(cams[0])
    for cam in cams:
        joint = joint + cam @ joint
    return joint


def row_normalised(cams: torch.Tensor) -> torch.Tensor:
    """Product of (C + I) / (1 + row sums of C)."""
    identity = torch.eye(cams.shape[-1], dtype=cams.dtype)
    joint = identity.expand_as(cams[0])
    for cam in cams:
        step = cam + identity
        joint = step / step.sum(-1, keepdim=True) @ joint
    return joint
