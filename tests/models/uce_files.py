"""Tiny UCE checkpoints, written as the published ones lie on disk; and the model in plain torch modules."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

HUMAN = tuple(f"GENE{number}" for number in range(60))
MOUSE = tuple(f"Gene{number}" for number in range(40))
FILES = {
    "human": "Homo_sapiens.GRCh38.gene_symbol_to_embedding_ESM2.pt",
    "mouse": "Mus_musculus.GRCm39.gene_symbol_to_embedding_ESM2.pt",
}
HEADS = 4


class Positions(nn.Module):
    """The table of sines."""

    def __init__(self, width: int) -> None:
        super().__init__()
        position = torch.arange(1536)[:, None]
        rate = torch.exp(torch.arange(0, width, 2) * (-np.log(10000.0) / width))
        table = torch.zeros(1536, 1, width)
        table[:, 0, 0::2], table[:, 0, 1::2] = torch.sin(position * rate), torch.cos(position * rate)
        self.register_buffer("pe", table)


def block(into: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(into, out), nn.LayerNorm(out), nn.GELU(), nn.Dropout())


class PlainUce(nn.Module):
    """UCE of plain torch modules, padded and with attention maps on request: what the packed forward is held to."""

    def __init__(self, rows: int, token_dim: int, width: int, heads: int, ffn: int, layers: int, output: int):
        super().__init__()
        self.pos_encoder = Positions(width)
        self.encoder = nn.Sequential(nn.Linear(token_dim, width), nn.GELU(), nn.LayerNorm(width))
        layer = nn.TransformerEncoderLayer(width, heads, ffn)
        self.transformer_encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.decoder = nn.Sequential(
            block(width, 1024), block(1024, output), block(output, output), nn.Linear(output, output)
        )
        self.binary_decoder = nn.Sequential(
            block(output + 1280, 2048), block(2048, 512), block(512, 128), nn.Linear(128, 1)
        )
        self.gene_embedding_layer = nn.Sequential(nn.Linear(token_dim, width), nn.GELU(), nn.LayerNorm(width))
        self.pe_embedding = nn.Embedding(rows, token_dim)

    @torch.no_grad()
    def run(self, ids: torch.Tensor, bias: torch.Tensor) -> dict[str, list[torch.Tensor]]:
        """Of ids [B, S], with ``bias`` [B, S] added to the scores of a token: states and maps, layer by layer."""
        rows = nn.functional.normalize(self.pe_embedding(ids.T), dim=2)
        states = self.encoder(rows) * self.encoder[0].out_features ** 0.5
        states = states + self.pos_encoder.pe[: len(states)]
        found: dict[str, list[torch.Tensor]] = {"states": [states.transpose(0, 1)], "maps": []}
        for layer in self.transformer_encoder.layers:
            mask = bias.to(states.dtype)
            _, maps = layer.self_attn(
                states, states, states, key_padding_mask=mask, average_attn_weights=False
            )
            states = layer(states, src_key_padding_mask=mask)
            found["states"].append(states.transpose(0, 1))
            found["maps"].append(maps)
        found["embedding"] = [nn.functional.normalize(self.decoder(states)[0], dim=1)]
        return found


def module(rows: int, *, layers: int = 2, token_dim: int = 16, seed: int = 0, **sizes: int) -> PlainUce:
    """A model with weights, biases and norms drawn at random, every layer its own."""
    torch.manual_seed(seed)
    shape = {"width": 32, "heads": HEADS, "ffn": 48, "output": 12} | sizes
    model = PlainUce(rows, token_dim, layers=layers, **shape)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


@dataclass(frozen=True)
class Written:
    """A checkpoint on disk, what it holds, and how it is loaded."""

    folder: Path
    model: PlainUce
    options: Mapping[str, Any] = field(default_factory=dict)


def places(symbols: Sequence[str], chromosomes: int = 5, seed: int = 0) -> pd.DataFrame:
    """A made-up genome; some genes start where others do."""
    rng = np.random.default_rng(seed)
    starts = rng.permutation(len(symbols)) // 2 * 1000 + 7
    names = [*map(str, range(1, chromosomes)), "X"]
    return pd.DataFrame(
        {"gene_symbol": symbols, "chromosome": rng.choice(names, len(symbols)), "start": starts}
    )


def write(
    folder: Path,
    *,
    name: str = "4layer_model.torch",
    species: Mapping[str, Sequence[str]] | None = None,
    genome: pd.DataFrame | None = None,
    drawn: bool = True,
    seed: int = 0,
    **sizes: int,
) -> Written:
    """Write a checkpoint.

    ``drawn``: all_tokens.torch ends before the chromosomes, whose vectors are drawn with the published seed; the
    weights hold the whole table in any case. ``genome`` says where human genes lie.
    """
    species = {"human": HUMAN, "mouse": MOUSE} if species is None else species
    (folder / "protein_embeddings").mkdir(parents=True, exist_ok=True)
    token_dim = sizes.setdefault("token_dim", 16)
    generator = torch.Generator().manual_seed(seed)
    parts, offsets, genomes = [torch.randn(4, token_dim, generator=generator)], {}, []
    parts[0][0] = 0  # the pad
    for kind, symbols in species.items():
        vectors = torch.randn(len(symbols), token_dim, generator=generator)
        offsets[kind] = sum(map(len, parts))
        parts.append(vectors)
        own = {symbol: vector.clone() for symbol, vector in zip(symbols, vectors, strict=True)}
        torch.save(own, folder / "protein_embeddings" / FILES[kind])
        table = places(symbols) if genome is None or kind != "human" else genome
        genomes.append(table.assign(gene_symbol=table["gene_symbol"].str.upper(), species=kind))
    rows = torch.cat(parts)
    with torch.random.fork_rng():
        torch.manual_seed(23)
        whole = torch.cat([rows, torch.normal(0.0, 1.0, size=(1895, token_dim))])
    torch.save(rows if drawn else whole, folder / "all_tokens.torch")
    pd.concat(genomes).to_csv(folder / "species_chrom.csv", index=False)
    with (folder / "species_offsets.pkl").open("wb") as file:
        pickle.dump(offsets, file)
    model = module(len(whole), seed=seed, **sizes)
    model.pe_embedding.weight.data = whole
    torch.save(model.state_dict(), folder / name)
    heads = sizes.get("heads", HEADS)
    return Written(folder, model, {"chromosome_offset": len(rows), "n_heads": heads, "sample_size": 24})
