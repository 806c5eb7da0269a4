"""A small model that keeps all that AttentionSource promises, written for tests: no file, no adapter."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from scfast import Packing
from scfast.attention.recorder import LayerAttention, Recorder
from scfast.models.base import AttentionSource, TokenBytes, TokenKind, Tokens

if TYPE_CHECKING:
    from anndata import AnnData

#: What the tests of everything above the ops run on.
BACKEND = "auto"


class ToySource(AttentionSource):
    """Attention layers with a residual over embedded genes; tokens are genes by falling count, ties by
    column."""

    def __init__(
        self, genes: list[str], *, cls: bool = False, n_layers: int = 3, max_tokens: int = 24, seed: int = 0
    ):
        self.name, self.genes, self.n_layers, self.max_tokens, self.seed = (
            "toy",
            genes,
            n_layers,
            max_tokens,
            seed,
        )
        self.n_heads, self.head_dim, self.hidden_size, self.dtype = 2, 8, 16, torch.float32
        self.default_readout, self.cls_position = ("cls", 0) if cls else ("mean", None)
        self.device = torch.device("cpu")
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.randn(len(genes) + 1, 16, generator=generator)  # the last row is cls
        self.weights = torch.randn(n_layers, 3, 16, 16, generator=generator) / 4

    def tokenize(
        self, counts: sparse.csr_matrix, var: pd.DataFrame, n_counts: np.ndarray | None = None
    ) -> Tokens:
        vocabulary = pd.Index(self.genes).get_indexer(var.index)
        parts, lost, cut = [], [], []
        room = self.max_tokens - (self.cls_position is not None)
        for row in range(counts.shape[0]):
            at = slice(counts.indptr[row], counts.indptr[row + 1])
            columns, values = counts.indices[at], counts.data[at]
            order = np.lexsort((columns, -values))
            known = columns[order][vocabulary[columns[order]] >= 0]
            parts.append(known[:room])
            lost.append(len(columns) - len(known))
            cut.append(len(known) - len(parts[-1]))
        if self.cls_position is not None:
            parts = [np.concatenate([[-1], part]) for part in parts]
        gene = np.concatenate([*parts, np.empty(0, dtype=int)]).astype(np.int64)
        lengths = [len(part) for part in parts]
        return Tokens(
            ids=torch.from_numpy(np.where(gene < 0, len(self.genes), vocabulary[gene])),
            positions=torch.from_numpy(
                np.concatenate([*map(np.arange, lengths), np.empty(0)]).astype(np.int64)
            ),
            packing=Packing.from_lengths(lengths),
            gene_index=torch.from_numpy(gene),
            kind=torch.from_numpy(np.where(gene < 0, TokenKind.SPECIAL, TokenKind.GENE).astype(np.uint8)),
            lost_vocabulary=torch.tensor(lost, dtype=torch.int64),
            lost_truncation=torch.tensor(cut, dtype=torch.int64),
        )

    def to(self, device: torch.device | str) -> ToySource:
        if self.table.to(device) is self.table:
            return self
        moved = copy.copy(self)
        moved.table, moved.weights = self.table.to(device), self.weights.to(device)
        moved.device = moved.table.device
        return moved

    def forward(self, tokens: Tokens, recorder: Recorder) -> None:
        tokens = tokens.to(self.device)
        recorder.begin(
            self.n_layers,
            tokens.packing,
            kind=tokens.kind,
            gene_index=tokens.gene_index,
            cls_position=self.cls_position,
        )
        states = self.table[tokens.ids] + tokens.positions[:, None] / 50
        recorder.hidden(0, states)
        for layer, (wq, wk, wv) in enumerate(self.weights):
            q, k, v = ((states @ w).reshape(-1, 2, 8) for w in (wq, wk, wv))
            out = recorder.attend(LayerAttention(layer, q, k, v, tokens.packing))
            assert out is not None
            states = torch.nn.functional.layer_norm(states + out.reshape(-1, 16), (16,))
            recorder.hidden(layer + 1, states)
        recorder.finish()

    def untrained(self, seed: int = 0) -> ToySource:
        return ToySource(
            self.genes, cls=self.cls_position is not None, n_layers=self.n_layers, max_tokens=self.max_tokens,
            seed=seed + 1000,
        ).to(self.device)  # fmt: skip

    def bytes_per_token(self) -> TokenBytes:
        return {"activations": 1000, "qk_per_layer": 128, "hidden": 64}


def toy_adata(n_cells: int = 23, n_genes: int = 40, seed: int = 0) -> AnnData:
    """Counts with groups (one cell without), replicates, and symbols beside the ids."""
    from anndata import AnnData  # the model alone is of use without it

    rng = np.random.default_rng(seed)
    counts = rng.poisson(0.8, (n_cells, n_genes)).astype(np.float32)
    counts[:, 0] = 1  # no cell is empty
    obs = pd.DataFrame(
        {
            "type": pd.Categorical(rng.choice(["B/plasma", "T", "Mono"], n_cells)),
            "donor": rng.choice(["d1", "d2", "d3"], n_cells),
        },
        index=[f"cell{i}" for i in range(n_cells)],
    )
    obs.loc["cell3", "type"] = np.nan
    var = pd.DataFrame({"symbol": [f"S{i}" for i in range(n_genes)]}, index=[f"G{i}" for i in range(n_genes)])
    return AnnData(sparse.csr_matrix(counts), obs=obs, var=var)


def toy_source(n_genes: int = 40, **options: object) -> ToySource:
    """Knows all genes of :func:`toy_adata` but every seventh, in another order."""
    return ToySource([f"G{i}" for i in reversed(range(n_genes)) if i % 7 != 3], **options)  # type: ignore[arg-type]
