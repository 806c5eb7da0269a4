"""Tiny scGPT checkpoints, written as the published ones lie on disk; weights are random."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

Layout = Literal["in_proj", "Wqkv", "_impl.Wqkv"]
LAYOUTS: tuple[Layout, ...] = ("in_proj", "Wqkv", "_impl.Wqkv")
GENES = tuple(f"GENE{number}" for number in range(1, 61))
SPECIAL = ("<pad>", "<cls>", "<eoc>")


def args(**changes: Any) -> dict[str, Any]:
    """``args.json`` with the keys of a published checkpoint, at toy size."""
    return {
        "data_source": "cellxgene", "save_dir": "save", "load_model": None, "n_hvg": None,
        "valid_size_or_ratio": 0.003, "grad_accu_steps": 1, "pad_token": "<pad>", "input_style": "binned",
        "input_emb_style": "continuous", "n_bins": 51, "max_seq_len": 1200, "training_tasks": "both",
        "mask_ratio": [0.25, 0.5, 0.75], "trunc_by_sample": True, "vocab_path": "vocab.json", "batch_size": 32,
        "eval_batch_size": 64, "epochs": 6, "lr": 0.0001, "warmup_ratio_or_step": 10000.0, "no_cls": True,
        "no_cce": True, "fp16": True, "fast_transformer": True, "nlayers": 3, "nheads": 4, "embsize": 32,
        "d_hid": 48, "dropout": 0.2, "n_layers_cls": 3, "log_interval": 500, "save_interval": 1000,
        "mask_value": -1, "pad_value": -2,
        **changes,
    }  # fmt: skip


def shapes(
    layout: Layout, vocabulary: int, n_layers: int, hidden: int, intermediate: int
) -> dict[str, list[int]]:
    """Name -> shape of every weight of a published file, heads included, in their order."""
    d, f = hidden, intermediate
    stem, out = {
        "in_proj": ("self_attn.in_proj_", "self_attn.out_proj."),
        "Wqkv": ("self_attn.Wqkv.", "self_attn.out_proj."),
        "_impl.Wqkv": ("self_attn._impl.Wqkv.", "self_attn._impl.out_proj."),
    }[layout]

    def affine(name: str, *weight: int) -> dict[str, list[int]]:
        return {f"{name}weight": list(weight), f"{name}bias": [weight[0]]}

    made = {
        "encoder.embedding.weight": [vocabulary, d],
        **affine("encoder.enc_norm.", d),
        **affine("value_encoder.linear1.", d, 1),
        **affine("value_encoder.linear2.", d, d),
        **affine("value_encoder.norm.", d),
    }
    for layer in range(n_layers):
        prefix = f"transformer_encoder.layers.{layer}."
        made |= affine(f"{prefix}{stem}", 3 * d, d) | affine(f"{prefix}{out}", d, d)
        made |= affine(f"{prefix}linear1.", f, d) | affine(f"{prefix}linear2.", d, f)
        made |= affine(f"{prefix}norm1.", d) | affine(f"{prefix}norm2.", d)
    made |= affine("decoder.fc.0.", d, d) | affine("decoder.fc.2.", d, d) | affine("decoder.fc.4.", 1, d)
    for linear, norm in ((0, 2), (3, 5)):
        made |= affine(f"cls_decoder._decoder.{linear}.", d, d) | affine(f"cls_decoder._decoder.{norm}.", d)
    made |= affine("cls_decoder.out_layer.", 1, d) | affine("mvc_decoder.gene2query.", d, d)
    return made | {"mvc_decoder.W.weight": [d, d]}


def weights(
    settings: Mapping[str, Any], vocabulary: int, layout: Layout = "Wqkv", seed: int = 0
) -> dict[str, torch.Tensor]:
    """Random weights, the same numbers in every layout; biases and norms are random too."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [settings[key] for key in ("nlayers", "embsize", "d_hid")]
    tensors = {}
    for name, shape in shapes(layout, vocabulary, *sizes).items():
        spread = 0.3 if len(shape) == 1 else shape[-1] ** -0.5
        tensor = torch.empty(shape).normal_(0, spread, generator=generator)
        is_norm = len(shape) == 1 and name.endswith("weight")
        tensors[name] = tensor + 1 if is_norm else tensor
    return tensors


def write(
    folder: Path,
    genes: Sequence[str] = GENES,
    *,
    layout: Layout = "Wqkv",
    special: Sequence[str] = SPECIAL,
    seed: int = 0,
    **changes: Any,
) -> Path:
    """Write a checkpoint; ``changes`` go to args.json. Returns the folder."""
    settings = args(**changes)
    tensors = weights(settings, len(genes) + len(SPECIAL), layout, seed)
    return write_files(folder, settings, {gene: row for row, gene in enumerate([*genes, *special])}, tensors)


def write_files(
    folder: Path,
    settings: Mapping[str, Any],
    vocabulary: Mapping[str, int],
    tensors: Mapping[str, torch.Tensor],
) -> Path:
    """The three files of a checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "args.json").write_text(json.dumps(settings))
    (folder / "vocab.json").write_text(json.dumps(vocabulary, indent=2))
    torch.save(dict(tensors), folder / "best_model.pt")
    return folder
