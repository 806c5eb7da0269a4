"""Attention between genes, summed over the cells of a batch: what a gene network is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from scfast import ops
from scfast.observables.base import GENE, BatchInfo, Observable
from scfast.packing import Packing

if TYPE_CHECKING:
    from scfast.attention.layer import LayerAttention
    from scfast.ops import AttentionOutput


class _GenesOfTokens(Observable):
    """What the observables here share: which gene each token is, and how layers and heads are weighed."""

    token_dim = None

    def __init__(self, genes: np.ndarray, weights: np.ndarray, name: str) -> None:
        self.genes, self.weights, self.name = genes, np.asarray(weights, dtype=np.float64), name

    def begin(self, batch: BatchInfo) -> None:
        """Look up the place of every token's gene."""
        if batch.gene_index is None:
            raise ValueError(
                f"{type(self).__name__} needs to know which token is which gene: give gene_index with the batch"
            )
        if len(self.weights) != batch.n_layers:
            raise ValueError(f"weights are of {len(self.weights)} layers; the model has {batch.n_layers}")
        self._batch, device = batch, batch.gene_index.device
        gene = (
            batch.gene_index if batch.kind is None else torch.where(batch.kind == GENE, batch.gene_index, -1)
        )
        place = torch.from_numpy(self.genes).to(device)
        self._ids = torch.where(gene >= 0, place[gene.clamp(min=0)], -1)  # [T]
        self._gene = gene >= 0

    def split(self, packed: torch.Tensor, packing: Packing) -> list[torch.Tensor]:
        """The result of the batch: it is none per cell."""
        return [packed]

    def check(self, packed: torch.Tensor) -> None:
        """Refuse sums that are nan or infinite."""
        if not torch.isfinite(packed.sum()):  # one pass, and a sum of float64 hides neither
            raise ValueError(
                f"{self.name}: sums over a batch are nan or infinite: the model's weights are damaged, or its precision"
                " overflows; use float32 weights that load without nan"
            )


class GeneEdges(_GenesOfTokens):
    """Attention from genes that read to genes that are read, summed over the cells of a batch, layers and heads.

    float64 [rows, G]: element (source, target) is the sum over cells of w_lh P^lh_ij, for the tokens j of the source
    and i of the target. No map is held.

    Parameters
    ----------
    genes
        int64 [columns]: the place of each column's gene among the G of the network, -1 for genes that are not in it;
        they, and tokens that are no genes, take their share of the softmax.
    weights
        [N, H]: of every layer and head; layers of weight zero are not computed.
    rows
        (first, last): the sources, by their places in ``sources``.
    sources
        int64 [columns]: the place of each column's gene among the sources. Default: ``genes``.
    rank
        Whether edges weigh by rank, as in scGPT's tutorial on networks: of each head, raw scores of the genes of a cell
        are replaced by their rank within the query's row, then by the rank within the key's column, both from 0 and
        over the number of genes; equal ones rank as they come. Maps of one cell and head are then held.
    name
        Key of the result.
    """

    def __init__(
        self,
        genes: np.ndarray,
        weights: np.ndarray,
        rows: tuple[int, int],
        *,
        sources: np.ndarray | None = None,
        rank: bool = False,
        name: str = "gene_edges",
    ) -> None:
        super().__init__(genes, weights, name)
        self.rows, self.rank = rows, rank
        self.sources = genes if sources is None else sources
        self.n_targets = int(genes.max(initial=-1)) + 1

    def begin(self, batch: BatchInfo) -> None:
        """Forget the last batch."""
        super().begin(batch)
        assert batch.gene_index is not None
        first, last = self.rows
        place = torch.from_numpy(self.sources).to(self._ids.device)
        self._keys = torch.where(self._gene, place[batch.gene_index.clamp(min=0)], -1)
        self._out = torch.zeros(last - first, self.n_targets, dtype=torch.float64, device=self._ids.device)

    def on_layer(self, attention: LayerAttention, output: AttentionOutput | None) -> None:
        """Add the layer's attention between genes."""
        weights = self.weights[attention.layer]
        if not weights.any():
            return
        if self.rank:
            self._add_ranks(attention, weights)
            return
        factors = torch.tensor(weights, dtype=torch.float32, device=attention.q.device)
        ops.attention_scatter(
            attention.q, attention.k, attention.packing, self._keys, self._out, ids_q=self._ids, rows=self.rows,
            heads="sum", head_weights=factors, backend=self._batch.backend, **attention.options.kwargs(),
        )  # fmt: skip

    def _add_ranks(self, attention: LayerAttention, weights: np.ndarray) -> None:
        if attention.options.causal:
            raise ValueError(
                "convention='rank' ranks all pairs of genes, and this model is causal: use 'mean'"
            )
        packing, (first, last) = attention.packing, self.rows
        group = attention.q.shape[1] // attention.k.shape[1]
        parts = (attention.q, attention.k, self._gene, self._ids, self._keys)
        for q, k, gene, target, source in zip(*(packing.split_q(x) for x in parts), strict=True):
            wanted = (source[gene] >= first) & (source[gene] < last)
            key, query = wanted.nonzero()[:, 0], (target[gene] >= 0).nonzero()[:, 0]
            place = (source[gene][key, None] - first) * self.n_targets + target[gene][None, query]
            for head in np.flatnonzero(weights):
                ranks = edge_ranks(q[gene, head], k[gene, head // group])
                values = weights[head] * ranks[query][:, key].T
                self._out.view(-1).index_add_(0, place.reshape(-1), values.reshape(-1))

    def finish(self) -> torch.Tensor:
        """float64 [rows, G]."""
        return self._out


def edge_ranks(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """Ranks of raw scores within rows, then of those within columns, over n; float64 [n, n], queries in rows.

    Parameters
    ----------
    q, k
        [n, D] of one head and cell.

    Examples
    --------
    >>> import torch
    >>> edge_ranks(torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [-1.0]]))
    tensor([[0.0000, 0.0000],
            [0.5000, 0.5000]], dtype=torch.float64)
    """
    return _ranks(_ranks(q @ k.T, 1), 0).double() / len(q)


def _ranks(values: torch.Tensor, dim: int) -> torch.Tensor:
    return values.argsort(dim=dim, stable=True).argsort(dim)


class GeneQueriesKeys(_GenesOfTokens):
    """Queries and keys of genes, summed over the tokens of a batch, layer by layer.

    float64 [chosen layers, G, 2 + 2 H D]: the number of tokens, the same times the scale of scores, queries, keys.

    Parameters
    ----------
    genes, weights
        As of :class:`GeneEdges`; layers of weight zero are left out.
    name
        Key of the result.
    """

    def __init__(self, genes: np.ndarray, weights: np.ndarray, *, name: str = "gene_queries_keys") -> None:
        super().__init__(genes, weights, name)

    def begin(self, batch: BatchInfo) -> None:
        """Forget the last batch."""
        super().begin(batch)
        self._sums: list[torch.Tensor] = []

    def on_layer(self, attention: LayerAttention, output: AttentionOutput | None) -> None:
        """Add the layer's queries and keys."""
        if not self.weights[attention.layer].any():
            return
        q, k, options = attention.q, attention.k, attention.options
        if options.causal or options.softcap is not None or q.shape != k.shape:
            raise ValueError(
                "convention='qk-mean' is defined for plain scores of as many keys as queries; this model's are causal,"
                " capped or of shared keys: use 'mean'"
            )
        token = (self._ids >= 0).nonzero()[:, 0]
        rows = torch.cat([q[token].flatten(1), k[token].flatten(1)], dim=1).double()
        count = rows.new_ones(len(rows), 1)
        scale = q.shape[-1] ** -0.5 if options.scale is None else options.scale
        rows = torch.cat([count, scale * count, rows], dim=1)
        sums = rows.new_zeros(int(self.genes.max(initial=-1)) + 1, rows.shape[1])
        self._sums.append(sums.index_add_(0, self._ids[token], rows))

    def finish(self) -> torch.Tensor:
        """float64 [chosen layers, G, 2 + 2 H D]."""
        return torch.stack(self._sums)
