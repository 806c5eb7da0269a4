"""What an observable is: what it wants from the recorder, and what it makes of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from scfast.observables.target import TargetLike
from scfast.packing import Packing

if TYPE_CHECKING:
    from scfast.attention.layer import LayerAttention
    from scfast.ops import AttentionOutput

#: The norms of a layer: that of the attention and that of the feed-forward part.
NORMS = ("attention", "output")
#: Value of ``kind`` for tokens that stand for a gene; every other kind is special, chromosome or pad.
GENE = 0


@dataclass(frozen=True)
class BatchInfo:
    """What the recorder knows of the batch that runs.

    Attributes
    ----------
    n_layers
        Layers of the model, numbered from 0.
    packing
        Where the cells lie; T tokens, B cells.
    backend
        Backend of the ops.
    kind
        uint8 [T] or None: 0 for genes. None: every token counts as a gene.
    gene_index
        int64 [T] or None: column of the counts matrix that each token stands for, -1 for none.
    gene_names
        Names of those columns, or None.
    cls_position
        Token of each cell that is the readout ``"cls"``, counted from the end if negative; None: there is
        none.
    """

    n_layers: int
    packing: Packing
    backend: str = "auto"
    kind: torch.Tensor | None = None
    gene_index: torch.Tensor | None = None
    gene_names: Sequence[str] | None = None
    cls_position: int | None = None


class Observable:
    """Something to be computed while a model runs; subclass it and override what you need.

    The recorder calls, for every batch: :meth:`begin`; per layer :meth:`on_layer`, :meth:`on_norm_input` and
    :meth:`on_hidden`; then, from the last layer down, :meth:`sweep_rows` and :meth:`sweep_step`, or
    :meth:`on_sweep`; and :meth:`finish`, which returns the packed result; then :meth:`check`. Statistics asked for
    in :attr:`sinks` are taken in the one visit that computes the layer's attention; the sweeps of observables with
    the same :attr:`sweep_options` share one visit per layer.

    Attributes
    ----------
    name
        Key of the result in the recorder.
    sinks
        Statistics wanted of every layer: any of ``"received"``, ``"entropy"``, ``"max"``.
    sweep_options
        Keyword arguments of ``attention_colsum`` for the sweep, as sorted pairs; None: no sweep.
    needs_hidden
        Whether hidden states are wanted at all; :meth:`wants_hidden` says of which layers.
    needs_parts
        Whether projection, norms, the residual stream and the inputs of the norms are wanted of every layer.
    takes_blocks
        Whether a layer may come in blocks of queries, for cells that do not fit as a whole: :meth:`on_layer` then sees
        the last block beside the statistics of all, and there is no :meth:`on_sweep`.
    target
        What is differentiated, for observables of gradients: of kept layers ``d_out`` is then known in
        :meth:`on_sweep`; None: no gradient.
    token_dim
        Dimension of the packed result that runs over tokens, or ``None`` when dimension 0 runs over cells.
    """

    name: str = ""
    sinks: frozenset[str] = frozenset()
    sweep_options: tuple[tuple[str, object], ...] | None = None
    token_dim: int | None = -1
    needs_hidden: bool = False
    needs_parts: bool = False
    takes_blocks: bool = False
    target: TargetLike | None = None

    def begin(self, batch: BatchInfo) -> None:
        """Start a batch."""

    def passes(self, n_layers: int) -> int:
        """How often a model of so many layers must run over a batch."""
        return 1

    def scale(self, layer: int) -> float | None:
        """Factor of the layer's attention output in the present pass; None: as it is."""
        return None

    def needs_output(self, n_layers: int | None) -> bool:
        """Whether the state after the last layer is used; ``n_layers`` is None before the first batch."""
        return False

    def keeps(self, layer: int) -> bool:
        """Whether q and k of this layer are kept until :meth:`finish`."""
        return False

    def wants_hidden(self, layer: int) -> bool:
        """Whether the state after ``layer`` layers is wanted; 0 is the output of the embeddings."""
        return False

    def on_layer(self, attention: LayerAttention, output: AttentionOutput | None) -> None:
        """One layer has been visited; ``output`` holds the merged statistics, None if none were asked for."""

    def on_norm_input(self, layer: int, norm: str, x: torch.Tensor) -> None:
        """The input [T, d] of a layer's norm, ``"attention"`` or ``"output"``; if :attr:`needs_parts`."""

    def on_hidden(self, layer: int, states: torch.Tensor) -> None:
        """States [T, d] after ``layer`` layers."""

    def sweep_rows(self, layer: int) -> torch.Tensor | None:
        """Row weights [R, T] for the reverse visit of ``layer``; None: takes no part in it."""
        return None

    def sweep_step(self, layer: int, sums: torch.Tensor) -> None:
        """Column sums [R, T] that the reverse visit of ``layer`` gave for :meth:`sweep_rows`."""

    def on_sweep(self, attention: LayerAttention) -> None:
        """A kept layer, from the last one down, for visits that cannot be shared."""

    def finish(self) -> torch.Tensor:
        """The packed result of the batch."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its result is: override finish()")

    def check(self, packed: torch.Tensor) -> None:
        """Refuse a result that cannot be right.

        Apart from :meth:`finish` because looking at numbers waits for a GPU: whoever runs many batches copies the
        result to the host first. ``packed`` is what :meth:`finish` returned, on any device.
        """

    def split(self, packed: torch.Tensor, packing: Packing) -> list[torch.Tensor]:
        """The packed result, cell by cell."""
        if self.token_dim is None:
            return list(packed.unbind(0))
        return list(packing.split_q(packed, dim=self.token_dim))
