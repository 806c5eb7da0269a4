"""Norm-based analysis without maps: how much each token mixes in, and what each head moves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from scfast import ops
from scfast.observables.base import BatchInfo
from scfast.observables.vectors import NormObservable, check_kinds, self_weights, vectors

if TYPE_CHECKING:
    from scfast.attention.layer import LayerAttention
    from scfast.ops import AttentionOutput

#: What :class:`HeadNorms` measures.
QUANTITIES = ("weighted", "prob", "mixed")
#: Columns of the states that :class:`HeadNorms` mixes in one visit.
MIXED_COLUMNS = 128


class MixingRatio(NormObservable):
    """How far attention brings in other tokens rather than keeps the token itself (Kobayashi et al. 2021).

    For token i, |sum_{j != i} F_ij| / (|sum_{j != i} F_ij| + |F_ii|): norms of vector sums. Linear in tokens.

    Parameters
    ----------
    kinds
        Of ``"attn-n"``; ``"attnres-n"``, with the residual x_i in F_ii; ``"attnresln-n"``, with the attention's
        layer norm; ``"enc-n"``, with the second layer norm too. The last two exist for post-norm models only.
    name
        Key of the result.

    Notes
    -----
    float32 [N, K, T] per batch, [N, K, n] per cell, K kinds in the order given; between 0 and 1.

    Examples
    --------
    >>> import torch, scfast
    >>> from scfast.observables import MixingRatio
    >>> layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    >>> model = torch.nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).eval()
    >>> with torch.no_grad(), scfast.record(model, MixingRatio(["attn-n", "attnresln-n"])) as rec:
    ...     _ = model(torch.randn(1, 5, 8))
    >>> rec["mixing_ratio"][0].shape
    torch.Size([3, 2, 5])
    """

    def __init__(
        self, kinds: Sequence[str] = ("attn-n", "attnres-n", "attnresln-n"), *, name: str = "mixing_ratio"
    ) -> None:
        self.kinds, self.name = check_kinds(tuple(kinds)), name

    def begin(self, batch: BatchInfo) -> None:
        """Forget the last batch."""
        self._open = None
        self._layers: list[torch.Tensor] = []

    def measure(self, attention: LayerAttention, sigma: dict[str, torch.Tensor]) -> None:
        """Take the layer's ratios [K, T]."""
        assert attention.out is not None
        own_weights, ratios = self_weights(attention), []
        for kind in self.kinds:
            terms = vectors(attention, kind, sigma)
            alone, whole = terms.own(own_weights)
            others = torch.linalg.vector_norm(terms.project(attention.out) - alone, dim=-1)
            total = others + torch.linalg.vector_norm(whole, dim=-1)
            ratios.append(torch.where(total > 0, others / total, 0.0))
        self._layers.append(torch.stack(ratios))

    def finish(self) -> torch.Tensor:
        """[N, K, T], float32."""
        self.check_closed()
        return torch.stack(self._layers)


class HeadNorms(NormObservable):
    """What each head weighs in each cell, one number per layer and head: the layer x head heatmap.

    Parameters
    ----------
    quantities
        Of ``"weighted"``: sum_ij P^h_ij |f_h(x_j)| / n, the norm of what a query takes in, as a mean over queries
        (Kobayashi et al. 2020); ``"prob"``: the Frobenius norm |P^h|_F, between 1 (even attention) and sqrt(n) (each
        query looks at one key); ``"mixed"``: |P^h x|_F, x the states that enter the layer, at d / D times the cost of
        attention.
    name
        Key of the result.

    Notes
    -----
    float32 [B, N, H, Q] per batch, [N, H, Q] per cell, Q quantities in the order given; 0 for cells without tokens.
    |P|_F needs no map: sum_j P_ij^2 = exp(lse_i(2 s) - 2 lse_i(s)).

    Examples
    --------
    >>> import torch, scfast
    >>> from scfast.observables import HeadNorms
    >>> layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    >>> model = torch.nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).eval()
    >>> with torch.no_grad(), scfast.record(model, HeadNorms(["weighted", "prob"])) as rec:
    ...     _ = model(torch.randn(1, 5, 8))
    >>> rec["head_norms"][0].shape
    torch.Size([3, 2, 2])
    """

    sinks = frozenset({"received"})
    token_dim = None

    def __init__(self, quantities: Sequence[str] = ("weighted", "prob"), *, name: str = "head_norms") -> None:
        unknown = [quantity for quantity in quantities if quantity not in QUANTITIES]
        if unknown or not quantities:
            raise ValueError(f"quantities={list(quantities)}: use some of {', '.join(map(repr, QUANTITIES))}")
        self.quantities, self.name = tuple(quantities), name
        self.sinks = frozenset({"received"}) if "weighted" in quantities else frozenset()

    def begin(self, batch: BatchInfo) -> None:
        """Forget the last batch."""
        self._open, self._batch = None, batch
        self._layers: list[torch.Tensor] = []

    def on_layer(self, attention: LayerAttention, output: AttentionOutput | None) -> None:
        """Take the layer's statistics."""
        self._output = output
        super().on_layer(attention, output)

    def measure(self, attention: LayerAttention, sigma: dict[str, torch.Tensor]) -> None:
        """Take the layer's numbers [B, H, Q]."""
        measures = {"weighted": self._weighted, "prob": self._prob, "mixed": self._mixed}
        self._layers.append(torch.stack([measures[name](attention) for name in self.quantities], dim=-1))

    def finish(self) -> torch.Tensor:
        """[B, N, H, Q], float32."""
        return torch.stack(self._layers, dim=1)

    def _weighted(self, attention: LayerAttention) -> torch.Tensor:
        assert self._output is not None
        assert self._output.received is not None
        norms = vectors(attention, "attn-n", {}).head_norms()  # [T, H]
        lengths = torch.tensor(self._batch.packing.lengths_q, device=norms.device).clamp(min=1)
        return self._per_cell(self._output.received.T * norms) / lengths[:, None]

    def _prob(self, attention: LayerAttention) -> torch.Tensor:
        assert attention.lse is not None
        options = attention.options
        cap, bias = options.softcap, options.key_bias
        nothing = attention.k.new_zeros((*attention.k.shape[:2], 1))
        twice = ops.attention_forward(
            attention.q, attention.k, nothing, attention.packing,
            scale=2 * (attention.q.shape[2] ** -0.5 if options.scale is None else options.scale),
            softcap=None if cap is None else 2 * cap, key_bias=None if bias is None else 2 * bias,
            causal=options.causal, backend=self._batch.backend,
        ).lse  # fmt: skip
        return self._per_cell((twice - 2 * attention.lse).exp()).sqrt()

    def _mixed(self, attention: LayerAttention) -> torch.Tensor:
        assert attention.hidden_in is not None
        squares = torch.zeros(attention.q.shape[:2], device=attention.q.device)
        for x in attention.hidden_in.to(attention.q.dtype).split(MIXED_COLUMNS, dim=1):
            shared = x[:, None].expand(-1, attention.k.shape[1], -1).contiguous()  # [T, Hkv, W]
            mixed = ops.attention_forward(
                attention.q, attention.k, shared, attention.packing,
                **attention.options.kwargs(), backend=self._batch.backend,
            ).out  # fmt: skip
            squares += (mixed.float() ** 2).sum(-1)
        return self._per_cell(squares).sqrt()

    def _per_cell(self, rows: torch.Tensor) -> torch.Tensor:
        """Sums over the tokens of each cell: [T, H] -> float32 [B, H]."""
        packing = self._batch.packing
        sums = torch.zeros((packing.n_cells, rows.shape[1]), dtype=torch.float64, device=rows.device)
        return sums.index_add_(0, packing.cell_of_query(), rows.double()).float()
