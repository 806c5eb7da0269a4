"""Attention rollout toward a readout, swept backwards through the layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from scfast.observables.base import BatchInfo, Observable
from scfast.observables.readout import check_readout, readout_weights
from scfast.observables.sums import SUM_TOLERANCE, check_sums, sums_per_cell

if TYPE_CHECKING:
    from scfast.attention.layer import LayerAttention
    from scfast.ops import AttentionOutput

FUSIONS = ("mean", "max", "min", "sum")


class Rollout(Observable):
    """Attention rollout (Abnar & Zuidema 2020), read off for a readout.

    With A~ = D^-1 (a A + (1 - a) I), A the fused map of a layer and D its row sums, the scores of a readout w
    are s = w^T A~_N ... A~_1. They are computed from the last layer down, one weighted column sum per layer,
    so that no map is ever held; q and k of each layer are kept until then. Scores of a cell sum to the weight
    of its readout (1), which is checked for every cell.

    Parameters
    ----------
    readout
        ``"cls"``; ``"mean"`` over the gene tokens; ``"gene:NAME"``; or weights [R, T] over the batch's
        tokens.
    layers
        None: all. ``(first, last)``: layers first to last, both included, counted from 0 (negative: from the
        end); the readout stands after ``last``, the scores belong to the tokens before ``first``.
        ``"prefix"``: the readout after each layer, rolled back to the input, all N in one sweep; row k is the
        readout after layer k. ``"suffix"``: the readout after the last layer, rolled back to the input of
        each layer; row k holds the scores of the positions entering layer k, which are contextualised, not
        input genes (row 0 is the whole rollout).
    residual
        a above, the weight of attention against the identity; 0.5 is the paper's (A + I) / 2.
    heads
        Fusion of the heads: ``"mean"``, ``"max"``, ``"min"`` or ``"sum"``.
    convention
        ``"abnar"``; or ``"vit-explain"``, which reproduces that package with its quirks (rows divided by the
        sums of other rows, discarding on the flattened map): ``backend="reference"`` only, holds the maps,
        not checked for its sum, which is not 1.
    discard_ratio
        Of ``"vit-explain"``: share of the fused map's smallest entries that is set to zero.
    name
        Key of the result.

    Raises
    ------
    ValueError
        Options that do not exist; scores that do not sum to the readout's weight, or are NaN.

    Notes
    -----
    float32 [T] per batch and [n] per cell; [R, T] for R > 1 readouts; [N, T] or [N, R, T] for prefix and
    suffix. A cell without the readout (no such gene) scores zero everywhere.

    Examples
    --------
    >>> import torch, scfast
    >>> from scfast.observables import Rollout
    >>> layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    >>> model = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    >>> partway = Rollout(layers="prefix", name="partway")
    >>> with torch.no_grad(), scfast.record(model, Rollout("mean"), partway) as rec:
    ...     _ = model(torch.randn(1, 5, 8))
    >>> round(rec["rollout"][0].sum().item(), 4), rec["partway"][0].shape
    (1.0, torch.Size([2, 5]))
    """

    def __init__(
        self,
        readout: str | torch.Tensor = "cls",
        layers: tuple[int, int] | str | None = None,
        residual: float = 0.5,
        heads: str = "mean",
        *,
        convention: str = "abnar",
        discard_ratio: float = 0.0,
        name: str = "rollout",
    ) -> None:
        check_readout(readout)
        if not 0.0 <= residual <= 1.0:
            raise ValueError(f"residual must lie in [0, 1], got {residual}")
        if heads not in FUSIONS:
            raise ValueError(f"heads={heads!r} is not a fusion for rollout; use one of {', '.join(FUSIONS)}")
        if isinstance(layers, str) and layers not in ("prefix", "suffix"):
            raise ValueError(f"layers={layers!r} is unknown; use None, (first, last), 'prefix' or 'suffix'")
        if convention not in ("abnar", "vit-explain"):
            raise ValueError(f"convention={convention!r} is unknown; use 'abnar' or 'vit-explain'")
        if convention == "vit-explain" and (residual != 0.5 or isinstance(layers, str)):
            raise ValueError(
                "convention='vit-explain' fixes residual at 0.5 and knows no 'prefix' or 'suffix'"
            )
        if discard_ratio and convention != "vit-explain":
            raise ValueError(
                f"discard_ratio={discard_ratio} belongs to convention='vit-explain'; leave it at 0"
            )
        self.readout, self.layers, self.residual, self.heads = readout, layers, residual, heads
        self.convention, self.discard_ratio, self.name = convention, discard_ratio, name
        self.takes_blocks = convention == "abnar"
        if convention == "abnar":
            self.sweep_options = (("heads", heads), ("residual", residual))

    def begin(self, batch: BatchInfo) -> None:
        """Lay down the readout's weights."""
        if self.convention == "vit-explain" and batch.backend != "reference":
            raise ValueError(
                "convention='vit-explain' holds the attention maps: record with backend='reference'"
            )
        if batch.packing.lengths_q != batch.packing.lengths_k:
            raise ValueError(
                "rollout needs self-attention: as many queries as keys in every cell (no key-value cache)"
            )
        self._batch = batch
        self._weights = readout_weights(self.readout, batch)
        sums = sums_per_cell(torch.stack([self._weights, self._weights.abs()]), batch.packing)
        self._expected, self._scale = sums.cpu()  # before the layers: a GPU has nothing to be waited for yet
        self._first, self._last = _layer_range(self.layers, batch.n_layers)
        self._rows: torch.Tensor | None = None
        self._suffixes: list[torch.Tensor] = []
        self._maps: list[LayerAttention] = []
        self._tolerance = 0.0

    def keeps(self, layer: int) -> bool:
        """Whether the sweep passes through ``layer``."""
        return self.sweep_options is not None and self._first <= layer <= self._last

    def on_layer(self, attention: LayerAttention, output: AttentionOutput | None) -> None:
        """Note the precision; the maps themselves wait for the sweep."""
        if self._first <= attention.layer <= self._last:
            self._tolerance += SUM_TOLERANCE[attention.q.dtype]
            if self.convention == "vit-explain":
                self._maps.append(attention)

    def sweep_rows(self, layer: int) -> torch.Tensor | None:
        """The readouts that have reached the output of ``layer`` on their way down."""
        if not self.keeps(layer):
            return None
        if self._rows is None:
            return self._weights
        return torch.cat([self._rows, self._weights]) if self.layers == "prefix" else self._rows

    def sweep_step(self, layer: int, sums: torch.Tensor) -> None:
        """Take the rows one layer down."""
        self._rows = sums
        if self.layers == "suffix":
            self._suffixes.append(sums)

    def finish(self) -> torch.Tensor:
        """Scores, float32; see the class."""
        if self.convention == "vit-explain":
            return _squeeze(self._vit_explain())
        assert self._rows is not None
        rows = torch.cat(self._suffixes) if self.layers == "suffix" else self._rows
        if isinstance(self.layers, str):
            # swept from the top: the last layer's rows come first
            rows = rows.unflatten(0, (-1, self._weights.shape[0])).flip(0)
        self._rows, self._suffixes = None, []
        return _squeeze(rows)

    def check(self, packed: torch.Tensor) -> None:
        """Refuse scores that do not sum to the weight of their readout in every cell."""
        if self.convention == "vit-explain":
            return
        steps = packed.shape[0] if isinstance(self.layers, str) else 1
        rows = packed.reshape(steps, len(self._expected), packed.shape[-1])  # [N, R, T]
        check_sums(rows, self._batch.packing, self._expected, self._scale, self._tolerance)

    def _vit_explain(self) -> torch.Tensor:
        from scfast.reference.rollout import packed_rollout

        layers = [(att.q, att.k, att.options.kwargs()) for att in self._maps]
        self._maps = []
        return packed_rollout(
            layers, self._batch.packing, self._weights,
            heads=self.heads, convention=self.convention, discard_ratio=self.discard_ratio,
        ).float()  # fmt: skip


def _squeeze(rows: torch.Tensor) -> torch.Tensor:
    """[..., 1, T] -> [..., T]."""
    return rows.squeeze(-2) if rows.shape[-2] == 1 else rows


def _layer_range(layers: tuple[int, int] | str | None, n_layers: int) -> tuple[int, int]:
    if layers is None or isinstance(layers, str):
        return 0, n_layers - 1
    first, last = (layer + n_layers if layer < 0 else layer for layer in layers)
    if not 0 <= first <= last < n_layers:
        raise ValueError(
            f"layers={layers} must name a first and a last of the {n_layers} layers, 0 to {n_layers - 1}"
        )
    return first, last
