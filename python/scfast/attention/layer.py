"""What a model says of one layer's attention: q, k, v, where the cells lie, and how scores come about."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from scfast.packing import Packing


@dataclass(frozen=True)
class ScoreOptions:
    """How scores come from q and k: the options that all ops share (:func:`scfast.ops.attention_forward`)."""

    scale: float | None = None
    softcap: float | None = None
    key_bias: torch.Tensor | None = None
    causal: bool = False

    def kwargs(self) -> dict[str, Any]:
        """The same as keyword arguments of an op."""
        return {
            "scale": self.scale,
            "softcap": self.softcap,
            "key_bias": self.key_bias,
            "causal": self.causal,
        }


@dataclass(frozen=True)
class LayerAttention:
    """The attention of one layer, packed.

    Attributes
    ----------
    layer
        Number of the layer, from 0.
    q, k, v
        [Tq, H, D], [Tk, Hkv, D], [Tk, Hkv, Dv]; v is None when no output is wanted. Not to be changed
        in place before :meth:`Recorder.finish`: they are kept without a copy.
    packing
        Where the cells lie.
    options
        Score options of the layer.
    """

    layer: int
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor | None
    packing: Packing
    options: ScoreOptions = field(default_factory=ScoreOptions)
