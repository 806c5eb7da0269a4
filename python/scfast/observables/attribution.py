"""Self-attention attribution: gradients integrated while one layer's attention is faded in."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from scfast.observables.base import BatchInfo
from scfast.observables.readout import check_readout, readout_weights
from scfast.observables.relevance import GradientObservable
from scfast.observables.target import TargetLike, parse_target

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scfast.attention.layer import LayerAttention


class AttentionAttribution(GradientObservable):
    """Integrated gradients of a target along one layer's attention (Hao et al. 2021, AttAttr).

    Layer l's probabilities P are scaled by alpha = k / m, k = 1..m, the other layers left intact; with dO_alpha the
    gradient at the layer's attention output, its attribution is P^h * (mean over alpha of dO_alpha)^h V^hT, signed. Its
    sum over the map approaches what the layer's attention adds to the target.

    Parameters
    ----------
    target
        As in :class:`~scfast.observables.Relevance`.
    readout
        Weights of the queries: None for 1 at every query; or as in :class:`~scfast.observables.Rollout`.
    layers
        Which layers, from 0 (negative: from the end). Default: all.
    steps
        m. Each layer costs m forwards, each with a backward down to it.
    per_head
        Each head by itself; else summed.
    name
        Key of the result.

    Notes
    -----
    Column sums over queries, float32 [L + 1, T] per batch, [L + 1, n] per cell: L layers in the order given, then their
    sum; ``per_head`` puts H before T, R > 1 readouts R before T. The model runs L * m times over each batch (calls
    under :func:`scfast.record` are repeated), so this observable is recorded alone.

    Examples
    --------
    >>> import torch, scfast
    >>> from scfast.observables import AttentionAttribution
    >>> layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    >>> model = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    >>> last = AttentionAttribution(lambda states: states[:, 0, 3], layers=[-1], steps=5)
    >>> with scfast.record(model, last) as rec:
    ...     _ = model(torch.randn(1, 5, 8))
    >>> rec["attribution"][0].shape
    torch.Size([2, 5])
    """

    def __init__(
        self,
        target: str | TargetLike,
        readout: str | torch.Tensor | None = None,
        *,
        layers: Sequence[int] | None = None,
        steps: int = 20,
        per_head: bool = False,
        name: str = "attribution",
    ) -> None:
        if readout is not None:
            check_readout(readout)
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        if layers is not None and (not layers or len(set(layers)) < len(layers)):
            raise ValueError(f"layers={list(layers)} must name at least one layer, and none twice")
        self.target = parse_target(target)
        self.readout, self.steps, self.per_head, self.name = readout, steps, per_head, name
        self.layers = None if layers is None else tuple(layers)

    def passes(self, n_layers: int) -> int:
        """Steps times layers."""
        return self.steps * len(self._chosen(n_layers))

    def begin(self, batch: BatchInfo) -> None:
        """Lay down the weights."""
        super().begin(batch)
        self._wanted = self._chosen(batch.n_layers)
        if self.readout is None:
            self._weights = torch.ones((1, batch.packing.total_q), device=batch.packing.device)
        else:
            self._weights = readout_weights(self.readout, batch)
        self._pass = 0
        self._gradient: torch.Tensor | None = None
        self._sums: list[torch.Tensor] = []

    def keeps(self, layer: int) -> bool:
        """Whether this pass is the layer's."""
        return layer == self._wanted[self._pass // self.steps]

    def scale(self, layer: int) -> float | None:
        """Alpha of this pass, at its layer."""
        return (self._pass % self.steps + 1) / self.steps if self.keeps(layer) else None

    def on_sweep(self, attention: LayerAttention) -> None:
        """Add the gradient of this pass; after the last of a layer, take its sums."""
        assert attention.d_out is not None
        share = attention.d_out.double() / self.steps
        self._gradient = share if self._gradient is None else self._gradient + share
        self._pass += 1
        if self._pass % self.steps:
            return
        mean = replace(attention, d_out=self._gradient.to(attention.q.dtype))
        self._gradient = None
        sums = self._colsum(mean, self._weights, signed=True, heads="none" if self.per_head else "sum")
        self._sums.append(sums.transpose(0, 1))  # [Hout, R, T]

    def finish(self) -> torch.Tensor:
        """[L + 1, T], with H and R where there are several; float32."""
        layers = torch.stack(self._sums)
        self._sums = []
        sums = torch.cat([layers, layers.sum(0, keepdim=True)])
        sums = sums if self.per_head else sums.squeeze(1)
        return sums.squeeze(-2) if len(self._weights) == 1 else sums

    def _chosen(self, n_layers: int) -> tuple[int, ...]:
        if self.layers is None:
            return tuple(range(n_layers))
        for layer in self.layers:
            if not -n_layers <= layer < n_layers:
                raise ValueError(f"layers={list(self.layers)}: the model has layers 0 to {n_layers - 1}")
        return tuple(layer % n_layers for layer in self.layers)
