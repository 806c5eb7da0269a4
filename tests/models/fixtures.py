"""Tiny Geneformer checkpoints, written as the published ones lie on disk; weights are random."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import save_file

from scfast.models.bert import BertEncoder
from scfast.models.bert_shape import BertShape

#: Gene ids of the made-up vocabulary: real Ensembl form, so that ids and symbols are told apart.
GENES = tuple(f"ENSG{number:011d}" for number in range(1, 41))
SYMBOLS = tuple(f"GENE{number}" for number in range(1, 41))


def config(**changes: Any) -> dict[str, Any]:
    """``config.json`` with the keys of a published checkpoint, at toy size."""
    return {
        "architectures": ["BertForMaskedLM"],
        "attention_probs_dropout_prob": 0.02,
        "classifier_dropout": None,
        "gradient_checkpointing": False,
        "hidden_act": "relu",
        "hidden_dropout_prob": 0.02,
        "hidden_size": 32,
        "initializer_range": 0.02,
        "intermediate_size": 64,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 64,
        "model_type": "bert",
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "pad_token_id": 0,
        "position_embedding_type": "absolute",
        "torch_dtype": "float32",
        "transformers_version": "4.37.2",
        "type_vocab_size": 2,
        "use_cache": True,
        "vocab_size": 44,
        **changes,
    }


def weights(settings: Mapping[str, Any], seed: int = 0, spread: float = 0.3) -> dict[str, torch.Tensor]:
    """Random weights under their names in BertForMaskedLM; biases and norms are random too."""
    shape = BertShape.from_config(dict(settings), "fixture")
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, tensor in BertEncoder.initialised(shape, torch.float32, seed).tensors.items():
        noise = torch.empty(tensor.shape).normal_(0, spread, generator=generator)
        tensors[name] = tensor.clone() + noise / (1 if tensor.dim() == 1 else tensor.shape[-1] ** 0.5)
    return tensors


def write_v1(folder: Path, genes: Sequence[str] = GENES, **options: Any) -> Path:
    """A V1 checkpoint: <pad> 0, <mask> 1, genes from 2; medians as pickled NumPy scalars."""
    return write(folder, genes, ("<pad>", "<mask>"), **options)


def write_v2(folder: Path, genes: Sequence[str] = GENES, **options: Any) -> Path:
    """A V2 checkpoint: <pad>, <mask>, <cls>, <eos>, genes from 4; builtins only, and an Ensembl mapping."""
    return write(folder, genes, ("<pad>", "<mask>", "<cls>", "<eos>"), **options)


def write(
    folder: Path,
    genes: Sequence[str],
    special: Sequence[str],
    *,
    medians: Mapping[str, float] | None = None,
    gene_names: Mapping[str, str] | None = None,
    ensembl_mapping: Mapping[str, str] | None = None,
    weight_file: Literal["safetensors", "bin", "none"] = "safetensors",
    seed: int = 0,
    **changes: Any,
) -> Path:
    """Write a checkpoint; ``changes`` go to config.json. Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = config(**{"vocab_size": len(special) + len(genes)} | changes)
    (folder / "config.json").write_text(json.dumps(settings, indent=2))
    v2 = "<cls>" in special
    tokens = {token: number for number, token in enumerate([*special, *genes])}
    if medians is None:
        medians = {gene: 0.5 + 0.25 * (number % 7) for number, gene in enumerate(genes)}
    kept: Mapping[str, Any] = medians if v2 else {gene: np.float64(m) for gene, m in medians.items()}
    if gene_names is None:
        gene_names = dict(zip(SYMBOLS, genes, strict=False))
    tag = "_gc104M" if v2 else ""
    tables = {
        "token_dictionary": tokens,
        "gene_median_dictionary": dict(kept),
        "gene_name_id_dict": gene_names,
    }
    if v2:
        tables["ensembl_mapping_dict"] = dict(ensembl_mapping or {gene: gene for gene in genes})
    for stem, table in tables.items():
        with (folder / f"{stem}{tag}.pkl").open("wb") as file:
            pickle.dump(dict(table), file)
    if weight_file == "safetensors":
        save_file(weights(settings, seed), folder / "model.safetensors", metadata={"format": "pt"})
    elif weight_file == "bin":
        tensors = weights(settings, seed)
        tensors["bert.embeddings.position_ids"] = torch.arange(settings["max_position_embeddings"])[None]
        tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"]
        tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"]
        torch.save(tensors, folder / "pytorch_model.bin")
    return folder
