"""Hidden states: what each layer holds, per token or pooled per cell."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from scfast.observables.base import BatchInfo, Observable
from scfast.observables.readout import readout_weights


class HiddenStates(Observable):
    """States after each layer, or one vector per cell and layer.

    State 0 is the output of the embeddings, state l that after l layers (a Hugging Face decoder's last state
    is after its final norm).

    Parameters
    ----------
    layers
        Which states: None for all N + 1, a number (negative counts from the end, -1 is the last), or several
        numbers.
    pool
        None: every token. ``"cls"`` or ``"mean"``: one vector per cell, at the cls token or averaged over
        gene tokens.
    name
        Key of the result.

    Notes
    -----
    Per batch, K states of width d: [K, T, d] in the model's dtype; pooled float32 [B, K, d]. For a single
    number without the K: [T, d] and [B, d]. Per cell [K, n, d], [n, d], [K, d] or [d].

    Examples
    --------
    >>> import torch, scfast
    >>> from scfast.observables import HiddenStates
    >>> layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    >>> model = torch.nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).eval()
    >>> with torch.no_grad(), scfast.record(model, HiddenStates(-1, pool="mean")) as rec:
    ...     _ = model(torch.randn(2, 5, 8))
    >>> [vector.shape for vector in rec["hidden_states"]]
    [torch.Size([8]), torch.Size([8])]
    """

    needs_hidden = True
    takes_blocks = True

    def __init__(
        self,
        layers: int | Sequence[int] | None = None,
        *,
        pool: str | None = None,
        name: str = "hidden_states",
    ) -> None:
        if pool not in (None, "cls", "mean"):
            raise ValueError(f"pool={pool!r} is unknown; use None, 'cls' or 'mean'")
        self.layers = layers if layers is None or isinstance(layers, int) else tuple(layers)
        self.pool = pool
        self.name = name
        self.token_dim = None if pool else (0 if isinstance(layers, int) else 1)
        self._wanted: tuple[int, ...] | None = None

    def begin(self, batch: BatchInfo) -> None:
        """Forget the last batch."""
        self._wanted = self._resolve(batch.n_layers)
        self._states: dict[int, torch.Tensor] = {}
        self._readout = _Pooling(readout_weights(self.pool, batch)[0], batch) if self.pool else None

    def _resolve(self, n_layers: int) -> tuple[int, ...]:
        if self.layers is None:
            return tuple(range(n_layers + 1))
        given = (self.layers,) if isinstance(self.layers, int) else self.layers
        for layer in given:
            if not -n_layers - 1 <= layer <= n_layers:
                raise ValueError(
                    f"HiddenStates layer {layer} does not exist: the model has states 0 to {n_layers}"
                )
        return tuple(layer % (n_layers + 1) for layer in given)

    def needs_output(self, n_layers: int | None) -> bool:
        """True when the last state is among those wanted."""
        return True if n_layers is None else n_layers in self._resolve(n_layers)

    def wants_hidden(self, layer: int) -> bool:
        """Whether state ``layer`` was asked for."""
        return self._wanted is not None and layer in self._wanted

    def on_hidden(self, layer: int, states: torch.Tensor) -> None:
        """Keep or pool the states [T, d]."""
        seen = states.detach()
        self._states[layer] = seen if self._readout is None else self._readout.pool(seen)

    def finish(self) -> torch.Tensor:
        """The states asked for, in the order asked for."""
        assert self._wanted is not None
        missing = [layer for layer in self._wanted if layer not in self._states]
        if missing:
            raise RuntimeError(
                f"the model gave no hidden state for {missing}; its adapter must call recorder.hidden"
            )
        if isinstance(self.layers, int):
            return self._states[self._wanted[0]]
        return torch.stack([self._states[layer] for layer in self._wanted], dim=1 if self.pool else 0)


class _Pooling:
    """Weighted means over the tokens of each cell that have a weight; the others may hold anything.

    Which tokens those are is settled here, before the model runs: looking at numbers waits for a GPU.
    """

    def __init__(self, weights: torch.Tensor, batch: BatchInfo) -> None:
        read = weights.nonzero()[:, 0]
        cells = batch.packing.cell_of_query()[read]
        counts = torch.bincount(cells, minlength=batch.packing.n_cells).tolist()
        self._read, self._weights = read.split(counts), weights[read].split(counts)

    def pool(self, states: torch.Tensor) -> torch.Tensor:
        """States [T, d] to vectors, float32 [B, d]."""
        pooled = torch.zeros((len(self._read), states.shape[1]), device=states.device)
        for cell, (read, weights) in enumerate(zip(self._read, self._weights, strict=True)):
            pooled[cell] = weights.to(states.device) @ states[read.to(states.device)].float()
        return pooled
