"""Configurations of checkpoints, indices of sharded weights, training logs, and rows of tiles."""

from __future__ import annotations

import json
from pathlib import Path

from scfast.kernels import tiles

from scfast.models import bioformers, checkpoint
from scfast.models.bert_shape import BertShape
from scfast.models.scgpt_tokens import check_vocabulary
from scfast.models.scgpt_weights import ScgptShape
from scfast.train import fit as training
from tests.fuzz.harness import Way

BERT = {
    "model_type": "bert", "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 16, "intermediate_size": 32,
    "vocab_size": 40, "max_position_embeddings": 64, "hidden_act": "relu", "layer_norm_eps": 1e-12, "pad_token_id": 0,
}  # fmt: skip
BIOFORMERS = {
    "model_type": "bioformers", "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 16,
    "intermediate_size": 32, "architecture": "encoder", "value_embedding": "linear", "hidden_act": "gelu",
    "binning": {"mode": "value", "n_bins": 30}, "conditions": ["dose"], "zero_genes": True, "max_tokens": None,
}  # fmt: skip
SCGPT = {
    "nlayers": 2,
    "nheads": 4,
    "embsize": 16,
    "d_hid": 32,
    "pad_value": -2,
    "n_bins": 51,
    "pre_norm": False,
}
INDEX = {"weight_map": {"a": "model-00001.safetensors", "b": "model-00002.safetensors"}}
LOG = {"settings": {"epochs": 1, "seed": 0}, "cells": "0f", "finished": True}
TILES = """[[row]]
gpus = ["sm_90"]
visits = ["colsum"]
bits = 16
width = 64
queries = 128
keys = 128
warps = 8
stages = 2
basis = "measured"
"""


def as_json(value: object) -> bytes:
    return json.dumps(value).encode()


def read_bert(path: Path) -> None:
    BertShape.from_config(checkpoint.read_config(path.parent), str(path)).encoder_weights()


def read_bioformers(path: Path) -> None:
    (path.parent / "vocab.json").write_text('{"<cls>": 0, "CD3D": 1}')
    bioformers.load(path.parent)


def read_vocabulary(path: Path) -> None:
    (path.parent / "config.json").write_text(json.dumps(BIOFORMERS))
    bioformers.load(path.parent)


def read_scgpt(path: Path) -> None:
    ScgptShape.from_args(checkpoint.read_config(path.parent, path.name), 40, str(path)).weights()


def read_scgpt_vocabulary(path: Path) -> None:
    check_vocabulary(checkpoint.read_config(path.parent, path.name), str(path))


def read_log(path: Path) -> None:
    training.claim(path.parent, LOG)
    training.finished_log(path.parent, LOG)


MISSING = (ValueError, FileNotFoundError)  # there are no weights beside these files
WAYS = [
    Way("config.json", read_bert, [as_json(BERT)]),
    Way("bioformers/config.json", read_bioformers, [as_json(BIOFORMERS)], MISSING),
    Way("bioformers/vocab.json", read_vocabulary, [b'{"<cls>": 0, "CD3D": 1, "LYZ": 2}'], MISSING),
    Way("args.json", read_scgpt, [as_json(SCGPT)]),
    Way("vocab.json", read_scgpt_vocabulary, [b'{"CD3D": 1, "LYZ": 0, "<pad>": 2}']),
    Way(
        "model.safetensors.index.json",
        lambda path: checkpoint.read_tensors(path.parent),
        [as_json(INDEX)],
        MISSING,
    ),
    Way("training_log.json", read_log, [as_json(LOG)]),
    Way("tiles.toml", lambda path: tiles._own_rows(str(path)), [TILES.encode()]),
]
WORDS = [
    *(
        f'"{key}": '.encode()
        for key in sorted({*BERT, *BIOFORMERS, *SCGPT, "weight_map", "settings", "is_decoder"})
    ),
    *(
        b"null",
        b"true",
        b"false",
        b"-1",
        b"0",
        b"1e999",
        b"NaN",
        b"[]",
        b"{}",
        b"9" * 12,
        b'"quantile"',
        b'"table"',
    ),
    *(b"../", b"[[row]]\n", b'"""', b"{a={a=", b"\\ud800"),
]
