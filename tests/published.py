"""Stand-ins of published models: their parts under their names, tiny and with random weights.

As in the originals, maps are held and cells run padded or alone: what scfast makes of them is compared with that.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn
from torch.nn.functional import gelu, scaled_dot_product_attention


def _wide(model: nn.Module) -> nn.Module:
    """Weights wide enough for uneven attention."""
    for weight in model.parameters():
        if weight.dim() == 2:
            nn.init.normal_(weight, std=0.3)
    return model


class Nicheformer(nn.Module):
    """Embeddings, learned positions, torch's encoder: post-norm, batch first."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings, self.positional_embedding = nn.Embedding(40, 32, padding_idx=1), nn.Embedding(64, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True, layer_norm_eps=1e-12)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        _wide(self)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.encoder(self.embeddings(ids) + self.positional_embedding.weight[: ids.shape[1]])


class StateLayer(nn.Module):
    """Pre-norm, all in one module."""

    def __init__(self, d_model: int = 32, nhead: int = 4) -> None:
        super().__init__()
        self.d_model, self.nhead = d_model, nhead
        self.norm1, self.norm2 = nn.LayerNorm(d_model), nn.LayerNorm(d_model)
        self.qkv_proj, self.out_proj = nn.Linear(d_model, 3 * d_model), nn.Linear(d_model, d_model)
        self.linear1, self.linear2 = nn.Linear(d_model, 48), nn.Linear(48, d_model)

    def forward(self, src: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            x.unflatten(-1, (self.nhead, -1)).transpose(1, 2)
            for x in self.qkv_proj(self.norm1(src)).chunk(3, dim=-1)
        )
        heads = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        src = src + self.out_proj(heads)
        return src + self.linear2(gelu(self.linear1(self.norm2(src))))


class _Stack(nn.Module):
    def __init__(self, layers: nn.ModuleList, name: str) -> None:
        super().__init__()
        setattr(self, name, layers)
        self._name = name

    def forward(self, x: torch.Tensor, **options: object) -> torch.Tensor:
        for layer in getattr(self, self._name):
            x = layer(x, **options)
        return x


class State(nn.Module):
    """A frozen table, a projection, and the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, 16)
        self.encoder = nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.SiLU())
        self.transformer_encoder = _Stack(nn.ModuleList(StateLayer() for _ in range(2)), "layers")
        _wide(self)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.transformer_encoder(self.encoder(self.embedding(ids)))


class FlexAttention(nn.Module):
    """Causal attention whose scores are biased and then capped, over one cell."""

    def __init__(self, d_model: int = 32, nheads: int = 4) -> None:
        super().__init__()
        self.h, self.d_k = nheads, d_model // nheads
        self.linears = nn.ModuleList(nn.Linear(d_model, d_model, bias=False) for _ in range(4))
        self.counts = torch.ones(1)

    def forward(self, inp: torch.Tensor, score_mod: object = None, block_mask: object = None) -> torch.Tensor:
        q, k, v = (linear(inp).unflatten(-1, (self.h, self.d_k)) for linear in self.linears[:3])
        scores = torch.einsum("bihd,bjhd->bhij", q, k) * self.d_k**-0.5 + torch.log1p(self.counts)
        future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
        maps = (5 * torch.tanh(scores / 5)).masked_fill(future, -torch.inf).softmax(-1)
        return self.linears[3](torch.einsum("bhij,bjhd->bihd", maps, v).flatten(2))


class FlexLayer(nn.Module):
    """The residual on the normed input."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2, self.self_attn = nn.LayerNorm(32), nn.LayerNorm(32), FlexAttention()
        self.linear1, self.linear2 = nn.Linear(32, 48), nn.Linear(48, 32)

    def forward(self, x: torch.Tensor, score_mod: object = None, block_mask: object = None) -> torch.Tensor:
        x = self.norm1(x)
        x = self.norm2(self.self_attn(x, score_mod=score_mod, block_mask=block_mask) + x)
        return self.linear2(gelu(self.linear1(x))) + x


class TranscriptFormer(nn.Module):
    """Gene embeddings and the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.model_config = SimpleNamespace(softcap=5)
        self.gene_embeddings = nn.Embedding(40, 32)
        self.transformer_encoder = _Stack(nn.ModuleList(FlexLayer() for _ in range(2)), "encoder_layers")
        _wide(self)

    def forward(self, ids: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        for layer in self.transformer_encoder.encoder_layers:
            layer.self_attn.counts = counts
        return self.transformer_encoder(self.gene_embeddings(ids))
