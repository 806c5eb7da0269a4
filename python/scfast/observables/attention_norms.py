"""Attention weighted by what it carries: column sums of the norms |F_ij|, without holding them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from scfast import ops
from scfast.observables.base import BatchInfo
from scfast.observables.readout import check_readout, readout_weights
from scfast.observables.vectors import NormObservable, check_kinds, vectors

if TYPE_CHECKING:
    from scfast.attention.layer import LayerAttention


class AttentionNorms(NormObservable):
    """What queries take in from each token, measured by norms (Kobayashi et al. 2020, 2021): sum_i w_i |F_ij|.

    F_ij = sum_h P^h_ij f_h(x_j) is the vector that query i reads from token j, f_h(x) = (x W_V^h + b_V^h) W_O^h. It
    enters through H x H Gram matrices, one per token; no F_ij is formed.

    Parameters
    ----------
    kinds
        Of ``"attn-n"``; ``"attnres-n"``, with the residual on the diagonal; ``"attnresln-n"``, after the attention's
        layer norm; ``"enc-n"``, after the second layer norm too (Modarressi et al. 2022). Each costs one visit a
        layer. The last two exist for post-norm models only.
    readout
        The weights w: None for 1 at every query; or as in :class:`~scfast.observables.Rollout`.
    per_head
        Each head by itself, P^h_ij |f_h(x_j)|; for ``kinds=["attn-n"]`` only.
    total
        Put the sum over layers below them, as if it were one more.
    name
        Key of the result.

    Notes
    -----
    float32 [N, K, T] per batch, [N, K, n] per cell, K kinds (with ``per_head``: K = H heads); with R > 1 rows of
    weights [N, K, R, T]. Norms do not sum to 1; a row's sum over j is what its query takes in altogether.

    Examples
    --------
    >>> import torch, scfast
    >>> from scfast.observables import AttentionNorms
    >>> layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    >>> model = torch.nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).eval()
    >>> norms = AttentionNorms(["attn-n", "attnresln-n"])
    >>> with torch.no_grad(), scfast.record(model, norms) as rec:
    ...     _ = model(torch.randn(1, 5, 8))
    >>> rec["attention_norms"][0].shape
    torch.Size([3, 2, 5])
    """

    def __init__(
        self,
        kinds: Sequence[str] = ("attn-n",),
        *,
        readout: str | torch.Tensor | None = None,
        per_head: bool = False,
        total: bool = False,
        name: str = "attention_norms",
    ) -> None:
        self.kinds = check_kinds(tuple(kinds))
        if per_head and self.kinds != ("attn-n",):
            raise ValueError(
                f"per_head=True belongs to kinds=['attn-n'], got {list(kinds)}: residual and norms are not per head"
            )
        if readout is not None:
            check_readout(readout)
        self.readout, self.per_head, self.total, self.name = readout, per_head, total, name

    def begin(self, batch: BatchInfo) -> None:
        """Lay down the weights."""
        self._open, self._backend = None, batch.backend
        self._layers: list[torch.Tensor] = []
        if self.readout is None:
            self._weights = torch.ones((1, batch.packing.total_q), device=batch.packing.device)
        else:
            self._weights = readout_weights(self.readout, batch)

    def measure(self, attention: LayerAttention, sigma: dict[str, torch.Tensor]) -> None:
        """Take the layer's weighted sums [K, R, T]."""
        sums = []
        for kind in self.kinds:
            norm = vectors(attention, kind, sigma).norm_map(attention.lse)
            one = ops.attention_colsum(
                attention.q, attention.k, attention.packing, self._weights, map=norm,
                heads="none" if self.per_head else None, **attention.options.kwargs(), backend=self._backend,
            )  # fmt: skip
            assert isinstance(one, torch.Tensor)
            sums.append(one)  # [R, 1 or H, T]
        self._layers.append(torch.cat(sums, dim=1).transpose(0, 1))

    def finish(self) -> torch.Tensor:
        """[N, K, T] or [N, K, R, T], float32."""
        self.check_closed()
        sums = torch.stack(self._layers)
        if self.total:
            sums = torch.cat([sums, sums.sum(0, keepdim=True, dtype=torch.float64).float()])
        return sums.squeeze(2) if sums.shape[2] == 1 else sums
