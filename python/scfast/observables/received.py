"""Attention received: how much of all queries' attention each token gets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from scfast.observables.base import BatchInfo, Observable

if TYPE_CHECKING:
    from scfast.attention.layer import LayerAttention
    from scfast.ops import AttentionOutput


class Received(Observable):
    """Attention that each token receives (Falkenstein 2024): received_j = sum of P_ij over queries i.

    Parameters
    ----------
    per_layer
        False: summed over layers and heads too, float32 [T] per batch, [n] per cell; a cell's sum is
        layers x heads x n. True: float32 [N, H, T], [N, H, n] per cell.
    heads
        With ``per_layer``: ``"none"``, each head for itself, or ``"sum"``, float32 [N, T], [N, n] per cell.
    name
        Key of the result.

    Examples
    --------
    >>> import torch, scfast
    >>> from scfast.observables import Received
    >>> layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    >>> model = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    >>> with torch.no_grad(), scfast.record(model, Received()) as rec:
    ...     _ = model(torch.randn(1, 5, 8))
    >>> rec["received"][0].shape, round(rec["received"][0].sum().item())
    (torch.Size([5]), 20)
    """

    sinks = frozenset({"received"})
    takes_blocks = True

    def __init__(self, *, per_layer: bool = False, heads: str = "none", name: str = "received") -> None:
        if heads not in ("none", "sum"):
            raise ValueError(f"heads={heads!r} is unknown; use 'none' or 'sum'")
        self.per_layer, self.heads = per_layer, heads
        self.name = name

    def begin(self, batch: BatchInfo) -> None:
        """Forget the last batch."""
        self._layers: list[torch.Tensor] = []
        self._sum = torch.zeros(batch.packing.total_k, dtype=torch.float64, device=batch.packing.device)

    def on_layer(self, attention: LayerAttention, output: AttentionOutput | None) -> None:
        """Take the layer's column sums [H, T]."""
        assert output is not None
        assert output.received is not None
        received = output.received
        if not self.per_layer:
            self._sum += received.sum(0, dtype=torch.float64)
        else:
            self._layers.append(received if self.heads == "none" else received.sum(0))

    def finish(self) -> torch.Tensor:
        """[T], [N, T] or [N, H, T], float32."""
        return torch.stack(self._layers) if self.per_layer else self._sum.float()
