"""States of genes, summed over the cells of a batch at every layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from scfast.observables._states import state_numbers
from scfast.observables.base import GENE, BatchInfo, Observable
from scfast.packing import Packing


class GeneStateSums(Observable):
    """The state of each chosen gene after each layer, summed over the cells of a batch that have it.

    Every cell weighs the same: a gene with several tokens in a cell counts by their mean.

    Parameters
    ----------
    columns
        Columns of the counts matrix that the genes stand in.
    layers
        Which states: None for all N + 1 (0 is the output of the embeddings), or several numbers.
    name
        Key of the result.

    Notes
    -----
    float64 [U, K, d] for K states and the U chosen genes that the batch has, by ascending column. It is no result per
    cell: a recorder holds one tensor per batch.
    """

    needs_hidden = True
    takes_blocks = True

    def __init__(
        self, columns: Sequence[int] | np.ndarray | torch.Tensor, layers: Sequence[int] | None = None, *,
        name: str = "gene_state_sums",
    ) -> None:  # fmt: skip
        self.columns = torch.as_tensor(columns, dtype=torch.int64)
        self.layers, self.name = None if layers is None else tuple(layers), name
        self._wanted: tuple[int, ...] = ()

    def begin(self, batch: BatchInfo) -> None:
        """Which tokens are read is settled here, before the model runs: looking at numbers waits for a GPU."""
        if batch.gene_index is None:
            raise ValueError(
                "GeneStateSums needs to know which token is which gene: give gene_index with the batch"
            )
        self._wanted = state_numbers(self.layers, batch.n_layers)
        self._states: dict[int, torch.Tensor] = {}
        packing, gene = batch.packing, batch.gene_index.cpu()
        chosen = torch.isin(gene, self.columns)
        if batch.kind is not None:
            chosen &= batch.kind.cpu() == GENE
        read = chosen.nonzero()[:, 0]
        read = read[torch.argsort(gene[read], stable=True)]
        cell = torch.repeat_interleave(torch.arange(packing.n_cells), torch.tensor(packing.lengths_q))[read]
        _, lengths = torch.unique_consecutive(gene[read], return_counts=True)
        pair = gene[read] * max(packing.n_cells, 1) + cell
        _, which, tokens = torch.unique_consecutive(pair, return_inverse=True, return_counts=True)
        device = packing.device
        self._read, self._lengths = read.to(device), lengths.to(device)
        repeated = bool((tokens > 1).any())
        self._weights = (1.0 / tokens[which].double())[:, None].to(device) if repeated else None

    def needs_output(self, n_layers: int | None) -> bool:
        """True when the last state is among those wanted."""
        return True if n_layers is None else n_layers in state_numbers(self.layers, n_layers)

    def wants_hidden(self, layer: int) -> bool:
        """Whether state ``layer`` was asked for."""
        return layer in self._wanted

    def on_hidden(self, layer: int, states: torch.Tensor) -> None:
        """Sum up the states [T, d]."""
        rows = states.detach()[self._read].double()
        if self._weights is not None:
            rows *= self._weights
        # Segments are summed in order: unlike index_add_, a GPU gives the same bits each time.
        self._states[layer] = torch.segment_reduce(rows, "sum", lengths=self._lengths, axis=0, unsafe=True)

    def finish(self) -> torch.Tensor:
        """float64 [U, K, d], in the order of the layers."""
        missing = [layer for layer in self._wanted if layer not in self._states]
        if missing:
            raise RuntimeError(
                f"the model gave no hidden state for {missing}; its adapter must call recorder.hidden"
            )
        return torch.stack([self._states[layer] for layer in self._wanted], dim=1)

    def check(self, packed: torch.Tensor) -> None:
        """Refuse states that are nan or infinite."""
        fine = torch.isfinite(packed).all(-1)  # [U, K]
        if not fine.all():
            layers = [self._wanted[k] for k in torch.nonzero(~fine.all(0))[:, 0].tolist()]
            raise ValueError(
                f"states of {int((~fine).any(1).sum())} genes are nan or infinite at layers {layers}: the model's"
                " weights are damaged, or its precision overflows; use float32 weights that load without nan"
            )

    def split(self, packed: torch.Tensor, packing: Packing) -> list[torch.Tensor]:
        """The result of the batch."""
        return [packed]
