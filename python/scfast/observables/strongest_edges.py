"""The strongest edges of every cell: which gene reads from which, in one layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from scfast import ops
from scfast.observables.base import GENE, BatchInfo, Observable

if TYPE_CHECKING:
    from scfast.attention.layer import LayerAttention
    from scfast.ops import AttentionOutput


class StrongestEdges(Observable):
    """The n largest entries A_ij between gene tokens of one layer's map, heads fused.

    float32 [B, n, 3] per batch, [n, 3] per cell: weight A_ij, and the places of the key j that is read from and of the
    query i that reads, within the cell; largest first, ties by query and key. nan where a cell has fewer edges.

    Parameters
    ----------
    n
        Edges of a cell.
    layer
        Number of the layer, from 0; negative numbers count from the end.
    heads
        Fusion of the heads: ``"mean"``, ``"sum"``, ``"max"`` or ``"min"``.
    name
        Key of the result.
    """

    token_dim = None

    def __init__(
        self, n: int, *, layer: int = -1, heads: str = "mean", name: str = "strongest_edges"
    ) -> None:
        self.n, self.layer, self.heads, self.name = n, layer, heads, name

    def begin(self, batch: BatchInfo) -> None:
        """Forget the last batch."""
        if not -batch.n_layers <= self.layer < batch.n_layers:
            raise ValueError(f"layer={self.layer} does not exist: the model has {batch.n_layers} layers")
        self._batch = batch
        self._layer = self.layer % batch.n_layers
        self._edges = torch.empty(0)

    def on_layer(self, attention: LayerAttention, output: AttentionOutput | None) -> None:
        """Take the strongest keys of every query, and of those the strongest of each cell."""
        if attention.layer != self._layer:
            return
        packing, kind = attention.packing, self._batch.kind
        gene = torch.ones(packing.total_q, dtype=torch.bool, device=attention.q.device)
        gene = gene if kind is None else kind == GENE
        # So many of a query's strongest keys may be no genes.
        others = max((int((~part).sum()) for part in packing.split_q(gene)), default=0)
        values, keys = ops.attention_topk(
            attention.q, attention.k, packing, self.n + others,
            heads=self.heads, backend=self._batch.backend, **attention.options.kwargs(),
        )  # fmt: skip
        cells = zip(*(packing.split_q(x) for x in (values, keys, gene)), strict=True)
        edges = [self._strongest(*cell) for cell in cells]
        self._edges = torch.stack(edges) if edges else values.new_empty((0, self.n, 3))

    def _strongest(self, values: torch.Tensor, keys: torch.Tensor, gene: torch.Tensor) -> torch.Tensor:
        """[n, 3] of one cell's strongest keys [queries, m]."""
        edges = values.new_full((self.n, 3), torch.nan)
        inside = (keys >= 0) & gene[keys.clamp(min=0)] & gene[:, None]
        query, place = inside.nonzero(as_tuple=True)
        weight, key = values[query, place], keys[query, place]
        if len(weight) > self.n:
            least = weight.topk(self.n).values[-1]
            kept = (weight >= least).nonzero()[:, 0]
            query, weight, key = query[kept], weight[kept], key[kept]
        order = weight.argsort(descending=True, stable=True)[: self.n]
        edges[: len(order)] = torch.stack([x[order].to(edges.dtype) for x in (weight, key, query)], dim=1)
        return edges

    def finish(self) -> torch.Tensor:
        """[B, n, 3], float32."""
        return self._edges
