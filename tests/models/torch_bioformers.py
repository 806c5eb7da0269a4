"""A BioFormers of torch's own modules, one cell at a time: what the packed one must equal, in any dtype."""

from __future__ import annotations

import torch
from torch import nn

from scfast.models.base import Tokens
from scfast.models.bioformers_network import BioformersNetwork


class TorchBioformers(nn.Module):
    """The weights of ``network``, under the same names."""

    def __init__(self, network: BioformersNetwork, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        shape = network.shape
        d = shape.hidden
        self.n_bins, self.causal = shape.n_bins, shape.causal
        self.embeddings = nn.Module()
        self.embeddings.gene = nn.Embedding(shape.n_genes + 1, d)
        self.embeddings.mask = nn.Embedding(1, d)
        self.embeddings.norm = nn.LayerNorm(d)
        if shape.value_embedding == "table":
            self.embeddings.value = nn.Embedding(shape.n_bins, d)
        else:
            self.embeddings.value = nn.Module()
            self.embeddings.value.linear1, self.embeddings.value.linear2 = nn.Linear(1, d), nn.Linear(d, d)
        if shape.n_conditions:
            self.embeddings.external = nn.Embedding(shape.n_conditions + 1, d)
        layer = nn.TransformerEncoderLayer(
            d, shape.n_heads, shape.intermediate, dropout=0.0, activation=shape.activation, batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, shape.n_layers, enable_nested_tensor=False)
        self.head = nn.Module()
        self.head.dense, self.head.norm = nn.Linear(d, d), nn.LayerNorm(d)
        self.head.output = nn.Linear(d, shape.n_bins)
        self.load_state_dict(network.tensors)
        self.to(dtype)

    def embed(self, ids: torch.Tensor, bins: torch.Tensor, external: torch.Tensor | None) -> torch.Tensor:
        """States [n, d] of one cell, before the first layer."""
        value = self.embeddings.value
        if isinstance(value, nn.Embedding):
            values = value(bins.clamp(min=0).long())
        else:
            share = (bins / (self.n_bins - 1)).to(self.embeddings.mask.weight.dtype)
            values = value.linear2(value.linear1(share[:, None]).relu())
        values = torch.where((bins == -1)[:, None], self.embeddings.mask.weight, values)
        x = self.embeddings.gene(ids) + values
        return self.embeddings.norm(x if external is None else x + self.embeddings.external(external))

    def forward(self, tokens: Tokens) -> list[torch.Tensor]:
        """States [T, d] around every layer, then logits [T, n_bins]."""
        states: list[list[torch.Tensor]] = [[] for _ in range(len(self.encoder.layers) + 2)]
        split = tokens.packing.split_q
        conditions = [None] * tokens.n_cells if tokens.external is None else split(tokens.external)
        for ids, bins, external in zip(split(tokens.ids), split(tokens.values), conditions, strict=True):
            x = self.embed(ids, bins, external)
            states[0].append(x)
            mask = torch.full((len(ids),) * 2, -torch.inf, dtype=x.dtype).triu(1) if self.causal else None
            for number, layer in enumerate(self.encoder.layers, start=1):
                x = layer(x[None], src_mask=mask)[0]
                states[number].append(x)
            inner = nn.functional.gelu(self.head.dense(x))
            states[-1].append(self.head.output(self.head.norm(inner)))
        return [torch.cat(parts) for parts in states]
