"""States of chosen tokens at every layer: one vector per cell, layer and readout."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from scfast.observables._states import state_numbers
from scfast.observables.base import BatchInfo, Observable


class TokenStates(Observable):
    """States after each layer, read at several places of every cell in the one pass that the model makes.

    Parameters
    ----------
    weights
        float32 [P, T]: row weights of each of P readouts over the batch's tokens, such as one at the cls token, or
        1 / n at each of a cell's n genes.
    layers
        Which states: None for all N + 1 (0 is the output of the embeddings), or several numbers.
    name
        Key of the result.

    Notes
    -----
    float32 [B, K, P, d] for K states; nan where a cell has no token with a weight. Per cell [K, P, d].

    Examples
    --------
    >>> import torch, scfast
    >>> from scfast.observables import TokenStates
    >>> layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    >>> model = torch.nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).eval()
    >>> weights = torch.zeros(2, 10)  # two cells of five tokens
    >>> weights[0, ::5], weights[1, :5] = 1.0, 0.2  # the first token of each; the mean of the first cell
    >>> with torch.no_grad(), scfast.record(model, TokenStates(weights)) as rec:
    ...     _ = model(torch.randn(2, 5, 8))
    >>> [states.shape for states in rec["token_states"]], bool(rec["token_states"][1][:, 1].isnan().all())
    ([torch.Size([4, 2, 8]), torch.Size([4, 2, 8])], True)
    """

    needs_hidden = True
    takes_blocks = True
    token_dim = None

    def __init__(
        self, weights: torch.Tensor, layers: Sequence[int] | None = None, *, name: str = "token_states"
    ) -> None:
        if weights.dim() != 2 or not torch.isfinite(weights).all():
            raise ValueError(
                f"weights must be finite and [P, T], got {list(weights.shape)} of {weights.dtype}"
            )
        self.weights, self.layers, self.name = weights, None if layers is None else tuple(layers), name
        self._wanted: tuple[int, ...] = ()

    def begin(self, batch: BatchInfo) -> None:
        """Which tokens are read is settled here, before the model runs: looking at numbers waits for a GPU."""
        self._wanted = state_numbers(self.layers, batch.n_layers)
        self._states: dict[int, torch.Tensor] = {}
        packing = batch.packing
        if self.weights.shape[1] != packing.total_q:
            raise ValueError(
                f"weights are over {self.weights.shape[1]} tokens; this batch has {packing.total_q}"
            )
        weights = self.weights.cpu()
        read = (weights != 0).any(0).nonzero()[:, 0]  # the others may hold anything
        cells = torch.repeat_interleave(torch.arange(packing.n_cells), torch.tensor(packing.lengths_q))[read]
        counts = torch.bincount(cells, minlength=packing.n_cells).tolist()
        device = packing.device
        self._read = read.to(device).split(counts)
        self._parts = weights[:, read].to(device).split(counts, dim=1)  # [P, n] of each cell
        held = torch.zeros((packing.n_cells, len(weights)))
        self._held = held.index_add_(0, cells, (weights[:, read] != 0).float().T) > 0

    def needs_output(self, n_layers: int | None) -> bool:
        """True when the last state is among those wanted."""
        return True if n_layers is None else n_layers in state_numbers(self.layers, n_layers)

    def wants_hidden(self, layer: int) -> bool:
        """Whether state ``layer`` was asked for."""
        return layer in self._wanted

    def on_hidden(self, layer: int, states: torch.Tensor) -> None:
        """Read the states [T, d]."""
        seen = states.detach()
        pooled = torch.zeros((len(self._read), self.weights.shape[0], seen.shape[1]), device=seen.device)
        for cell, (read, weights) in enumerate(zip(self._read, self._parts, strict=True)):
            pooled[cell] = weights @ seen[read].float()
        self._states[layer] = pooled

    def finish(self) -> torch.Tensor:
        """float32 [B, K, P, d], in the order of the layers."""
        missing = [layer for layer in self._wanted if layer not in self._states]
        if missing:
            raise RuntimeError(
                f"the model gave no hidden state for {missing}; its adapter must call recorder.hidden"
            )
        states = torch.stack([self._states[layer] for layer in self._wanted], dim=1)
        absent = ~self._held.to(states.device)
        return states.masked_fill(absent[:, None, :, None], float("nan"))

    def check(self, packed: torch.Tensor) -> None:
        """Refuse states that are nan or infinite at tokens that are there."""
        fine = torch.isfinite(packed).all(-1) | ~self._held.to(packed.device)[:, None]
        if not fine.all():
            layers = [self._wanted[k] for k in torch.nonzero(~fine.all(2).all(0))[:, 0].tolist()]
            cells = int((~fine).any(2).any(1).sum())
            raise ValueError(
                f"states after layers {layers} are nan or infinite in {cells} of {len(packed)} cells of a batch: the"
                " model's weights are damaged, or its precision overflows; use float32 weights that load without nan"
            )
