"""Gradient-weighted attention: which tokens a prediction depends on through the attention of all layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from scfast import ops
from scfast.observables.base import BatchInfo, Observable
from scfast.observables.readout import check_readout, readout_weights
from scfast.observables.sums import SUM_TOLERANCE, check_sums, sums_per_cell
from scfast.observables.target import TargetLike, parse_target

if TYPE_CHECKING:
    from scfast.attention.layer import LayerAttention
    from scfast.ops import AttentionOutput

CONVENTIONS = ("chefer-mm", "row-normalised")


class GradientObservable(Observable):
    """An observable of C^l = mean_h (dP^h * P^h)^+, dP the gradient of a target with respect to P.

    dP^h = dO^h V^hT needs no map: q, k, v, lse and dO of every layer are kept, linear in tokens.
    """

    def begin(self, batch: BatchInfo) -> None:
        """Lay down the readout's weights."""
        if batch.packing.lengths_q != batch.packing.lengths_k:
            raise ValueError(f"{type(self).__name__} needs as many queries as keys in every cell")
        self._batch = batch

    def needs_output(self, n_layers: int | None) -> bool:
        """True: the target comes after the last layer."""
        return True

    def keeps(self, layer: int) -> bool:
        """True: every layer takes part."""
        return True

    def _colsum(
        self, attention: LayerAttention, rows: torch.Tensor, *, signed: bool = False, **options: Any
    ) -> torch.Tensor:
        """r^T C of a layer with its gradient, [R, Hout, T]; ``signed`` leaves dP * P as it is."""
        assert attention.v is not None
        assert attention.d_out is not None
        cam = ops.Relevance(attention.v, attention.d_out, signed=signed, lse=attention.lse)
        sums = ops.attention_colsum(
            attention.q, attention.k, attention.packing, rows, map=cam,
            **options, **attention.options.kwargs(), backend=self._batch.backend,
        )  # fmt: skip
        assert isinstance(sums, torch.Tensor)
        return sums


class Relevance(GradientObservable):
    """Gradient-weighted attention rolled back from a readout (Chefer et al. 2021).

    Parameters
    ----------
    target
        What is explained. ``"class:NAME"``: a class logit of a fine-tuned model. ``"gene:NAME"``: the masked-gene
        logit of a gene at its own token. With :func:`scfast.record` also a function of the model's output that gives
        one value per cell, [B], or their sum.
    readout
        Where the target is read, as in :class:`~scfast.observables.Rollout`: ``"cls"`` for a classifier that reads
        the first token, ``"gene:NAME"`` for a gene.
    convention
        ``"chefer-mm"``: R <- R + C R in every layer (Chefer et al. 2021, ICCV), read backwards as r <- r + r^T C;
        scores do not sum to 1. ``"row-normalised"``: C + I with rows divided by 1 + the row sums of C; scores sum to 1.
        That is the rollout of Chefer et al. 2021 (CVPR) with P in place of their relevance of P.
    identity
        False: take out the identity that R starts from, R - I, else the readout's tokens keep their own weight;
        for ``"chefer-mm"``.
    name
        Key of the result.

    Raises
    ------
    ValueError
        Options that do not exist; row-normalised scores that do not sum to the readout's weight, or are NaN.

    Notes
    -----
    C^l = mean_h (dP^h * P^h)^+ with dP^h = dO^h V^hT, dO the gradient with respect to the attention output. float32 [T]
    per batch and [n] per cell; [R, T] for R > 1 readouts. The model must be run with gradients enabled; weights need
    none.

    Examples
    --------
    >>> import torch, scfast
    >>> from scfast.observables import Relevance
    >>> layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    >>> model = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    >>> first = Relevance(lambda states: states[:, 0, 3])
    >>> with scfast.record(model, first) as rec:
    ...     _ = model(torch.randn(1, 5, 8))
    >>> rec["relevance"][0].shape
    torch.Size([5])
    """

    def __init__(
        self,
        target: str | TargetLike,
        readout: str | torch.Tensor = "cls",
        *,
        convention: str = "chefer-mm",
        identity: bool = True,
        name: str = "relevance",
    ) -> None:
        check_readout(readout)
        if convention not in CONVENTIONS:
            raise ValueError(
                f"convention={convention!r} is unknown; use {' or '.join(map(repr, CONVENTIONS))}"
            )
        if not identity and convention != "chefer-mm":
            raise ValueError(f"identity=False belongs to convention='chefer-mm', got {convention!r}")
        self.target = parse_target(target)
        self.readout, self.convention, self.identity, self.name = readout, convention, identity, name

    def begin(self, batch: BatchInfo) -> None:
        """Lay down the readout's weights."""
        super().begin(batch)
        self._weights = self._rows = readout_weights(self.readout, batch)
        self._expected, self._scale = sums_per_cell(
            torch.stack([self._rows, self._rows.abs()]), batch.packing
        ).cpu()
        self._tolerance = 0.0

    def on_layer(self, attention: LayerAttention, output: AttentionOutput | None) -> None:
        """Note the precision."""
        self._tolerance += SUM_TOLERANCE[attention.q.dtype]

    def on_sweep(self, attention: LayerAttention) -> None:
        """Take the rows one layer down."""
        if self.convention == "chefer-mm":
            self._rows = self._rows + self._colsum(attention, self._rows)[:, 0]
        else:
            self._rows = self._colsum(attention, self._rows, residual=0.5)[:, 0]

    def finish(self) -> torch.Tensor:
        """[T] or [R, T], float32."""
        rows = self._rows if self.identity else self._rows - self._weights
        return rows[0] if len(rows) == 1 else rows

    def check(self, packed: torch.Tensor) -> None:
        """Refuse row-normalised scores that do not sum to the weight of their readout in every cell."""
        if self.convention == "row-normalised":
            rows = packed.reshape(1, len(self._expected), packed.shape[-1])
            check_sums(rows, self._batch.packing, self._expected, self._scale, self._tolerance, "relevance")


class GradientAttention(GradientObservable):
    """Gradient-weighted attention of every layer by itself: sum_i w_i C^l_ij.

    Parameters
    ----------
    target
        As in :class:`Relevance`.
    readout
        The weights w: None for 1 at every query; or as in :class:`~scfast.observables.Rollout`.
    per_head
        (dP^h * P^h)^+ of each head instead of their mean.
    total
        Put the sum over layers below them, as if it were one more.
    name
        Key of the result.

    Notes
    -----
    float32 [N, T] per batch, [N, n] per cell; ``per_head`` puts H after N, R > 1 readouts R before T.

    Examples
    --------
    >>> import torch, scfast
    >>> from scfast.observables import GradientAttention
    >>> layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    >>> model = torch.nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).eval()
    >>> with scfast.record(model, GradientAttention(torch.sum)) as rec:
    ...     _ = model(torch.randn(1, 5, 8))
    >>> rec["gradient_attention"][0].shape
    torch.Size([3, 5])
    """

    def __init__(
        self,
        target: str | TargetLike,
        readout: str | torch.Tensor | None = None,
        *,
        per_head: bool = False,
        total: bool = False,
        name: str = "gradient_attention",
    ) -> None:
        if readout is not None:
            check_readout(readout)
        self.target = parse_target(target)
        self.readout, self.per_head, self.total, self.name = readout, per_head, total, name

    def begin(self, batch: BatchInfo) -> None:
        """Lay down the weights."""
        super().begin(batch)
        if self.readout is None:
            self._weights = torch.ones((1, batch.packing.total_q), device=batch.packing.device)
        else:
            self._weights = readout_weights(self.readout, batch)
        self._layers: list[torch.Tensor] = []

    def on_sweep(self, attention: LayerAttention) -> None:
        """Take the layer's sums."""
        sums = self._colsum(attention, self._weights, heads="none" if self.per_head else "mean")
        self._layers.append(sums.transpose(0, 1))  # [Hout, R, T]

    def finish(self) -> torch.Tensor:
        """[N, T], with H and R where there are several; float32."""
        sums = torch.stack(self._layers[::-1])  # swept from the top
        self._layers = []
        if self.total:
            sums = torch.cat([sums, sums.sum(0, keepdim=True, dtype=torch.float64).float()])
        sums = sums if self.per_head else sums.squeeze(1)
        return sums.squeeze(-2) if len(self._weights) == 1 else sums
