"""Methods as their formulas read, from maps held in float64: what every shortcut is compared with.

In float32 they are plain torch, whose error against float64 is the yardstick of the error rule (``tests.ops.helpers``).
"""

from __future__ import annotations

import numpy as np
import torch

from scfast.attention.recorder import LayerAttention
from scfast.models.base import AttentionSource, TokenKind, Tokens


class MapRecorder:
    """Stands where a model expects a recorder, and keeps every attention map, in ``dtype``."""

    needs_output = True
    needs_parts = False
    target = None

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        self.dtype = dtype
        self.maps: list[list[torch.Tensor]] = []  # per layer, per cell [H, n, n]

    def begin(self, *args: object, **kwargs: object) -> None:
        pass

    def wants_hidden(self, layer: int) -> bool:
        return False

    def hidden(self, layer: int, states: torch.Tensor) -> None:
        pass

    def passes(self, n_layers: int) -> int:
        return 1

    def finish(self) -> None:
        pass

    def attend(self, attention: LayerAttention) -> torch.Tensor:
        q, k, v = (x.to(self.dtype) for x in (attention.q, attention.k, attention.v))
        split = attention.packing.split_q
        scale = attention.options.scale or q.shape[-1] ** -0.5
        self.maps.append(
            [
                torch.softmax(scale * torch.einsum("ihd,jhd->hij", a, b), -1)
                for a, b in zip(split(q), split(k), strict=True)
            ]
        )
        out = [torch.einsum("hij,jhd->ihd", p, x) for p, x in zip(self.maps[-1], split(v), strict=True)]
        return torch.cat(out).to(attention.q.dtype)


def rollout(
    source: AttentionSource,
    tokens: Tokens,
    readout: str = "mean",
    *,
    gene: int | None = None,
    layers: tuple[int, int] | str | None = None,
    heads: str = "mean",
    residual: float = 0.5,
    dtype: torch.dtype = torch.float64,
) -> list[np.ndarray]:
    """Scores of every cell, ``dtype`` [n], or [N, n] for prefix and suffix."""
    recorder = MapRecorder(dtype)
    with torch.inference_mode():
        source.forward(tokens, recorder)  # type: ignore[arg-type]
    fuse = {"mean": lambda p: p.mean(0), "max": lambda p: p.amax(0), "min": lambda p: p.amin(0)}[heads]
    scores = []
    for cell in range(tokens.n_cells):
        alone = tokens.select([cell])
        n = alone.n_tokens
        if readout == "cls":
            chosen = torch.arange(n) == source.cls_position
        else:
            chosen = alone.kind == TokenKind.GENE if gene is None else alone.gene_index == gene
        weights = chosen.to(dtype) / chosen.sum()
        steps = []
        for layer in recorder.maps:
            mixed = residual * fuse(layer[cell]) + (1 - residual) * torch.eye(n, dtype=dtype)
            steps.append(mixed / mixed.sum(-1, keepdim=True))
        last = len(steps) - 1
        spans = {
            "prefix": [(0, k) for k in range(last + 1)],
            "suffix": [(k, last) for k in range(last + 1)],
        }.get(layers if isinstance(layers, str) else "", [layers or (0, last)])
        rows = []
        for first, stop in spans:
            product = torch.eye(n, dtype=dtype)
            for step in steps[first : stop + 1]:
                product = step @ product
            rows.append(weights @ product)
        scores.append((torch.stack(rows) if isinstance(layers, str) else rows[0]).numpy())
    return scores


def received(source: AttentionSource, tokens: Tokens) -> list[np.ndarray]:
    """Sums over queries of every cell's maps, float64 [N, H, n]."""
    recorder = MapRecorder()
    with torch.inference_mode():
        source.forward(tokens, recorder)  # type: ignore[arg-type]
    return [
        np.stack([layer[cell].sum(1).numpy() for layer in recorder.maps]) for cell in range(tokens.n_cells)
    ]


def per_gene(scores: list[np.ndarray], tokens: Tokens, n_genes: int) -> np.ndarray:
    """[cells, genes] of scores [n] per cell, added up over the tokens of a gene."""
    table = np.zeros((tokens.n_cells, n_genes))
    for cell, values in enumerate(scores):
        column = tokens.select([cell]).gene_index.numpy()
        np.add.at(table[cell], column[column >= 0], values[column >= 0])
    return table
