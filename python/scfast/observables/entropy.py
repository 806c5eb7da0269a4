"""Entropy of attention: how widely each query looks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from scfast.observables.base import BatchInfo, Observable

if TYPE_CHECKING:
    from scfast.attention.layer import LayerAttention
    from scfast.ops import AttentionOutput


class Entropy(Observable):
    """Entropy -sum_j P_ij log P_ij of every row of attention, in nats, between 0 and log n.

    float32 [N, T, H] per batch; [N, n, H] per cell.

    Parameters
    ----------
    name
        Key of the result.

    Examples
    --------
    >>> import torch, scfast
    >>> from scfast.observables import Entropy
    >>> layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    >>> model = torch.nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).eval()
    >>> with torch.no_grad(), scfast.record(model, Entropy()) as rec:
    ...     _ = model(torch.randn(1, 5, 8))
    >>> rec["entropy"][0].shape
    torch.Size([3, 5, 2])
    """

    sinks = frozenset({"entropy"})
    takes_blocks = True
    token_dim = 1

    def __init__(self, *, name: str = "entropy") -> None:
        self.name = name

    def begin(self, batch: BatchInfo) -> None:
        """Forget the last batch."""
        self._layers: list[torch.Tensor] = []

    def on_layer(self, attention: LayerAttention, output: AttentionOutput | None) -> None:
        """Take the layer's entropies [T, H]."""
        assert output is not None
        assert output.entropy is not None
        self._layers.append(output.entropy)

    def finish(self) -> torch.Tensor:
        """[N, T, H], float32."""
        return torch.stack(self._layers)
