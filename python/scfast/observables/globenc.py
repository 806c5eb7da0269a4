"""GlobEnc: rollout over what vectors carry rather than over probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from scfast import ops
from scfast.observables.base import BatchInfo
from scfast.observables.readout import check_readout, readout_weights
from scfast.observables.sums import SUM_TOLERANCE, check_sums, sums_per_cell
from scfast.observables.vectors import NormObservable, check_kinds, vectors

if TYPE_CHECKING:
    from scfast.attention.layer import LayerAttention

CONVENTIONS = ("globenc", "row-normalised")


class GlobEnc(NormObservable):
    """Rollout over norm-based maps, read off for a readout (Modarressi et al. 2022).

    With N^l_ij the norm of what token i holds of token j after layer l, residual and both layer norms included, the
    scores of a readout w are s = w^T N^N ... N^1, computed from the last layer down, one weighted column sum per layer.
    q, k and an H x H Gram matrix per token and layer are kept until then.

    Parameters
    ----------
    readout
        As in :class:`~scfast.observables.Rollout`.
    kind
        The map: ``"enc-n"``, the method's own; or ``"attn-n"``, ``"attnres-n"``, ``"attnresln-n"``, which for
        pre-norm models are what there is (the first two).
    convention
        ``"globenc"``: the norms as they are, as the authors' code multiplies them; scores do not sum to 1.
        ``"row-normalised"``: each row divided by its sum; scores sum to 1, which is checked.
    residual
        a: mix each layer's map with the identity, a N + (1 - a) I, after the rows are normalised. Default: 1, since
        the residual is inside the maps.
    name
        Key of the result.

    Raises
    ------
    ValueError
        Options that do not exist; a pre-norm model with a kind that has layer norms; row-normalised scores that do not
        sum to the readout's weight, or are NaN.

    Notes
    -----
    float32 [T] per batch and [n] per cell; [R, T] for R > 1 readouts. A cell without the readout scores zero.

    Examples
    --------
    >>> import torch, scfast
    >>> from scfast.observables import GlobEnc
    >>> layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    >>> model = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    >>> globenc = GlobEnc("mean", convention="row-normalised")
    >>> with torch.no_grad(), scfast.record(model, globenc) as rec:
    ...     _ = model(torch.randn(1, 5, 8))
    >>> round(rec["globenc"][0].sum().item(), 4)
    1.0
    """

    def __init__(
        self,
        readout: str | torch.Tensor = "cls",
        *,
        kind: str = "enc-n",
        convention: str = "globenc",
        residual: float = 1.0,
        name: str = "globenc",
    ) -> None:
        check_readout(readout)
        self.kinds = check_kinds((kind,))
        if convention not in CONVENTIONS:
            raise ValueError(
                f"convention={convention!r} is unknown; use {' or '.join(map(repr, CONVENTIONS))}"
            )
        if not 0.0 <= residual <= 1.0:
            raise ValueError(f"residual must lie in [0, 1], got {residual}")
        self.readout, self.convention, self.residual, self.name = readout, convention, residual, name

    def begin(self, batch: BatchInfo) -> None:
        """Lay down the readout's weights."""
        self._open, self._batch = None, batch
        self._rows = readout_weights(self.readout, batch)
        self._expected, self._scale = sums_per_cell(
            torch.stack([self._rows, self._rows.abs()]), batch.packing
        ).cpu()
        self._maps: dict[int, ops.Norm] = {}
        self._tolerance = 0.0

    def keeps(self, layer: int) -> bool:
        """True: the sweep passes through every layer."""
        return True

    def measure(self, attention: LayerAttention, sigma: dict[str, torch.Tensor]) -> None:
        """Keep the layer's map in the form of its Gram matrices."""
        self._maps[attention.layer] = vectors(attention, self.kinds[0], sigma).norm_map(attention.lse)
        self._tolerance += SUM_TOLERANCE[attention.q.dtype]

    def on_sweep(self, attention: LayerAttention) -> None:
        """Take the rows one layer down."""
        self.check_closed()
        sums = ops.attention_colsum(
            attention.q, attention.k, attention.packing, self._rows, map=self._maps.pop(attention.layer),
            residual=1.0 if self.convention == "row-normalised" else None,  # divides the rows by their sums
            **attention.options.kwargs(), backend=self._batch.backend,
        )  # fmt: skip
        assert isinstance(sums, torch.Tensor)
        self._rows = self.residual * sums[:, 0] + (1 - self.residual) * self._rows

    def finish(self) -> torch.Tensor:
        """[T] or [R, T], float32."""
        return self._rows[0] if len(self._rows) == 1 else self._rows

    def check(self, packed: torch.Tensor) -> None:
        """Refuse row-normalised scores that do not sum to the weight of their readout in every cell."""
        if self.convention == "row-normalised":
            rows = packed.reshape(1, len(self._expected), packed.shape[-1])
            check_sums(rows, self._batch.packing, self._expected, self._scale, self._tolerance, "GlobEnc")
