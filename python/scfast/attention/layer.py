"""What a model says of one layer: q, k, v, how scores come about, and what surrounds the attention."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from scfast.packing import Packing


@dataclass(frozen=True)
class ScoreOptions:
    """How scores come from q and k: the options that all ops share (:func:`scfast.ops.attention_forward`).

    Attributes
    ----------
    scale
        Factor of q k^T. Default: 1 / sqrt(head dim).
    softcap
        c of c tanh(score / c), applied after the scale. Default: none.
    key_bias
        float32 [Tk]: added to the scores of each key. Default: none.
    causal
        Whether a query sees only the keys up to its own place.
    """

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
class LayerNorm:
    """A layer norm: (x - mean) / sqrt(variance + eps) * weight + bias, over the last axis.

    Attributes
    ----------
    weight, bias
        [d] each, or None.
    eps
        Added to the variance.
    """

    weight: torch.Tensor | None
    bias: torch.Tensor | None
    eps: float

    def sigma(self, x: torch.Tensor) -> torch.Tensor:
        """sqrt(variance + eps) of every row of x [T, d], float32 [T]."""
        wide = x.float()
        return ((wide - wide.mean(-1, keepdim=True)).square().mean(-1) + self.eps).sqrt()

    def part(self, x: torch.Tensor) -> torch.Tensor:
        """(x - mean) * weight of rows [..., d], in x's dtype: what the norm makes of one term of its input.

        The norm of a sum u is the sum of its terms' parts, divided by sigma(u), plus the bias (Kobayashi et al.
        2021, eq. 8).
        """
        centred = x - x.mean(-1, keepdim=True)
        return centred if self.weight is None else centred * self.weight.to(x.dtype)


@dataclass(frozen=True)
class LayerParts:
    """What surrounds the attention of a layer; its adapter declares it.

    Attributes
    ----------
    projection
        [d, H * Dv]: weight of the output projection, head h in columns h * Dv to (h + 1) * Dv. Its bias takes no
        part in any analysis.
    attention_norm, output_norm
        The layer norms that go with the attention and with the feed-forward part.
    post_norm
        True: the norms are applied to the sums of residual stream and attention (feed-forward) output, as in BERT.
        False: before attention and feed-forward part.
    """

    projection: torch.Tensor
    attention_norm: LayerNorm
    output_norm: LayerNorm
    post_norm: bool = True


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
    hidden_in
        [T, d]: the residual stream that enters the layer; None where the model does not say.
    parts
        Projection and norms of the layer; None where the model does not say.
    out, lse
        [Tq, H, Dv] and float32 [Tq, H], which the recorder adds once the attention is computed.
    d_out
        [Tq, H, Dv]: gradient of the recorder's target with respect to ``out``, which the recorder adds after a
        differentiated forward.
    """

    layer: int
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor | None
    packing: Packing
    options: ScoreOptions = field(default_factory=ScoreOptions)
    hidden_in: torch.Tensor | None = None
    parts: LayerParts | None = None
    out: torch.Tensor | None = None
    lse: torch.Tensor | None = None
    d_out: torch.Tensor | None = None
