"""Tiny models as people write them, and the float64 maps that their attention has."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.nn.functional import gelu

import scfast
from scfast.attention import ScoreOptions
from scfast.models import AttentionLayers, ModelBatch

LENGTHS = (12, 7, 1, 9)
WIDTH = 32


def ids() -> list[torch.Tensor]:
    """Token ids of each cell."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, 50, (n,), generator=generator) for n in LENGTHS]


class Encoder(nn.Module):
    """Embeddings, learned positions and an nn.TransformerEncoder."""

    def __init__(self, *, batch_first: bool = True, norm_first: bool = False, causal: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.genes, self.places = nn.Embedding(50, WIDTH), nn.Embedding(64, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 48, batch_first=batch_first, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        for layer in self.encoder.layers:  # copies of one layer: make them differ
            for weight in layer.parameters():
                if weight.dim() == 2:
                    nn.init.normal_(weight, std=0.4)
        self.causal = causal

    def forward(self, ids: torch.Tensor, positions: torch.Tensor, pads: torch.Tensor | None) -> torch.Tensor:
        x = self.genes(ids) + self.places(positions)
        x = x if self.encoder.layers[0].self_attn.batch_first else x.transpose(0, 1)
        mask = None
        if self.causal and pads is not None:
            mask = torch.ones(len(ids[0]), len(ids[0]), dtype=torch.bool).triu(1)
        return self.encoder(x, mask=mask, src_key_padding_mask=pads, is_causal=self.causal)


def run_encoder(model: Encoder, batch: ModelBatch) -> torch.Tensor:
    return model(batch.ids, batch.positions, None if batch.is_packed else batch.pads)


def encoder_maps(model: Encoder) -> list[list[torch.Tensor]]:
    """Per cell, per layer [H, n, n]: the weights that nn.MultiheadAttention itself returns."""
    model = copy.deepcopy(model).double()
    maps = []
    for cell in ids():
        x = model.genes(cell) + model.places(torch.arange(len(cell)))
        hidden = torch.ones(len(cell), len(cell), dtype=torch.bool).triu(1) if model.causal else None
        own = []
        for layer in model.encoder.layers:
            h = layer.norm1(x) if layer.norm_first else x
            _, weights = layer.self_attn(h, h, h, attn_mask=hidden, average_attn_weights=False)
            own.append(weights.detach())
            y = x[None] if layer.self_attn.batch_first else x[:, None]
            x = layer(y, src_mask=hidden).reshape(x.shape)
        maps.append(own)
    return maps


class Attention(nn.Module):
    """Grouped queries, causal, a softcap, and log counts on the keys, before the softcap or after it."""

    def __init__(self, before: bool) -> None:
        super().__init__()
        self.before = before
        self.linears = nn.ModuleList(
            nn.Linear(WIDTH, width) for width in (WIDTH, WIDTH // 2, WIDTH // 2, WIDTH)
        )
        for linear in self.linears:
            nn.init.normal_(linear.weight, std=0.4)

    def project(self, x: torch.Tensor) -> list[torch.Tensor]:
        return [linear(x).unflatten(-1, (-1, 8)) for linear in list(self.linears)[:3]]  # [B, L, H, D]

    def maps(self, x: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """[H, n, n] of one cell x [n, d]."""
        q, k, _ = self.project(x)
        scores = torch.einsum("ihd,jhd->hij", q, k.repeat_interleave(2, 1)) * 8**-0.5
        bias = torch.log1p(counts)
        capped = 3 * torch.tanh((scores + bias) / 3) if self.before else 3 * torch.tanh(scores / 3) + bias
        future = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
        return capped.masked_fill(future, -torch.inf).softmax(-1)

    def forward(self, x: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        v = self.project(x)[2].repeat_interleave(2, 1)
        return self.linears[3](torch.einsum("hij,jhd->ihd", self.maps(x, counts), v).flatten(1))


class Layer(nn.Module):
    """Pre-norm, its residual on the normed input."""

    def __init__(self, before: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = Attention(before)
        self.up, self.down = nn.Linear(WIDTH, 48), nn.Linear(48, WIDTH)

    def forward(self, x: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        x = self.norm1(x)
        x = self.norm2(self.attention(x, counts) + x)
        return self.down(gelu(self.up(x))) + x


class Decoder(nn.Module):
    """A model whose attention scfast does not know; as written here it runs one cell at a time."""

    def __init__(self, before: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.genes = nn.Embedding(50, WIDTH)
        self.layers = nn.ModuleList(Layer(before) for _ in range(3))

    def forward(self, ids: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        x = self.genes(ids)
        for layer in self.layers:
            x = layer(x, counts)
        return x


def counts() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(1, 30, (n,), generator=generator).float() for n in LENGTHS]


def decoder_maps(model: Decoder) -> list[list[torch.Tensor]]:
    """Per cell, per layer [H, n, n]."""
    model = copy.deepcopy(model).double()
    maps = []
    for cell, count in zip(ids(), counts(), strict=True):
        x, own = model.genes(cell), []
        for layer in model.layers:
            own.append(layer.attention.maps(layer.norm1(x), count.double()).detach())
            x = layer(x, count.double())
        maps.append(own)
    return maps


def decoder_states(model: Decoder) -> list[torch.Tensor]:
    """Per cell [n, d] after the last layer."""
    return [model(cell, count).detach() for cell, count in zip(ids(), counts(), strict=True)]


def declare(model: Decoder) -> AttentionLayers:
    """Its attention: a bias before the softcap is one more component of q and k."""
    before = model.layers[0].attention.before

    def qkv(layer: Attention, batch: ModelBatch, x: torch.Tensor, _: Any) -> tuple[torch.Tensor, ...]:
        q, k, v = layer.project(x)
        if before:
            bias = torch.log1p(batch.values) * 8**0.5  # [B, L]
            q = torch.cat([q, torch.ones_like(q[..., :1])], -1)
            k = torch.cat([k, bias[..., None, None].expand(*k.shape[:3], 1)], -1)
        return q, k, v

    return AttentionLayers(
        [layer.attention for layer in model.layers], qkv,
        lambda layer, heads, x, _: layer.linears[3](heads.flatten(-2)),
        n_heads=4, n_key_heads=2, head_dim=8, hidden_size=WIDTH,
        options=ScoreOptions(scale=8**-0.5, softcap=3.0, causal=True),
        key_bias=None if before else lambda batch: torch.log1p(batch.values),
    )  # fmt: skip


def wrap_decoder(model: Decoder, **options: Any) -> Any:
    return scfast.models.wrap(
        model, call=lambda model, batch: model(batch.ids, batch.values), max_tokens=64,
        layers=declare(model), blocks=model.layers, cls_position=-1, **options,
    )  # fmt: skip
