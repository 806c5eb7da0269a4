"""How attention differs between the two halves of a pair of models (:class:`scfast.models.pair.ModelPair`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from scfast import ops
from scfast.observables.base import BatchInfo, Observable

if TYPE_CHECKING:
    from scfast.attention.layer import LayerAttention, ScoreOptions
    from scfast.ops import AttentionOutput

#: Rounding may carry a cosine this far beyond 1.
ROUNDING = 1e-4


class _Scores(NamedTuple):
    """What the map of a layer is made from; no more of the layer is kept."""

    q: torch.Tensor
    k: torch.Tensor
    options: ScoreOptions


class MapShift(Observable):
    """Inner products <P1, P2>, |P1|^2 and |P2|^2 of the maps of layer l of both models, per cell and head.

    float64 [B, N, H, 3] per batch; [N, H, 3] per cell. The q and k of the first model are kept, linear in tokens,
    until the second has come to the same layer.

    Parameters
    ----------
    name
        Key of the result.
    """

    token_dim = None

    def __init__(self, *, name: str = "map_shift") -> None:
        self.name = name

    def begin(self, batch: BatchInfo) -> None:
        """Forget the last batch."""
        self._batch = batch
        self._kept: dict[int, _Scores] = {}
        self._products: list[torch.Tensor] = []

    def on_layer(self, attention: LayerAttention, output: AttentionOutput | None) -> None:
        """Keep a layer of the first model; compare one of the second with it."""
        half = self._batch.n_layers // 2
        if attention.layer < half:
            self._kept[attention.layer] = _Scores(attention.q, attention.k, attention.options)
            return
        first = self._kept.pop(attention.layer - half)
        one, two = first.options, attention.options
        products = ops.attention_compare(
            first.q, first.k, attention.q, attention.k, attention.packing,
            scale=(one.scale, two.scale), softcap=(one.softcap, two.softcap),
            key_bias=(one.key_bias, two.key_bias), causal=(one.causal, two.causal),
            backend=self._batch.backend,
        )  # fmt: skip
        self._products.append(torch.stack(products, dim=-1))

    def finish(self) -> torch.Tensor:
        """[B, N, H, 3], float64."""
        return torch.stack(self._products, dim=1)

    def check(self, packed: torch.Tensor) -> None:
        """Refuse maps that are not finite, and a cosine beyond 1."""
        dot, square1, square2 = packed.unbind(-1)
        if not bool((dot <= (square1 * square2).sqrt() * (1 + ROUNDING)).all()):
            raise RuntimeError(
                "the inner products of two attention maps are not finite, or larger than their norms allow: the"
                " weights of one model hold nan, or its scores overflow"
            )


class ReceivedShift(Observable):
    """Attention received (:class:`~scfast.observables.Received`) in the first model, the second, and what changed.

    float32 [3, T] per batch, [3, n] per cell: first, second, second - first; summed over layers and heads.

    Parameters
    ----------
    name
        Key of the result.
    """

    sinks = frozenset({"received"})

    def __init__(self, *, name: str = "received_shift") -> None:
        self.name = name

    def begin(self, batch: BatchInfo) -> None:
        """Forget the last batch."""
        self._half = batch.n_layers // 2
        self._sums = torch.zeros(2, batch.packing.total_k, dtype=torch.float64, device=batch.packing.device)

    def on_layer(self, attention: LayerAttention, output: AttentionOutput | None) -> None:
        """Take the layer's column sums [H, T]."""
        assert output is not None
        assert output.received is not None
        self._sums[int(attention.layer >= self._half)] += output.received.sum(0, dtype=torch.float64)

    def finish(self) -> torch.Tensor:
        """[3, T], float32."""
        first, second = self._sums
        return torch.stack([first, second, second - first]).float()
