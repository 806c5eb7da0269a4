"""Weights are read without running code, and must be exactly those that the config asks for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from scfast.models import checkpoint, load
from scfast.models.geneformer import GeneformerSource
from tests.models import fixtures


def source_of(folder: Path) -> GeneformerSource:
    source = load("geneformer", folder)
    assert isinstance(source, GeneformerSource)
    return source


def change(folder: Path, **replaced: torch.Tensor | None) -> Path:
    """Replace or drop weights; names with __ for dots."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    for name, tensor in replaced.items():
        tensors.pop(name.replace("__", "."), None)
        if tensor is not None:
            tensors[name.replace("__", ".")] = tensor
    save_file(tensors, file)
    return folder


def test_bin_and_shards_are_the_same_model(tmp_path: Path) -> None:
    whole = source_of(fixtures.write_v1(tmp_path / "whole")).encoder.tensors
    old = source_of(fixtures.write_v1(tmp_path / "bin", weight_file="bin")).encoder.tensors
    folder = fixtures.write_v1(tmp_path / "shards")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    parts = {
        "model-00001-of-00002.safetensors": list(tensors)[::2],
        "model-00002-of-00002.safetensors": list(tensors)[1::2],
    }
    for file, names in parts.items():
        save_file({name: tensors[name] for name in names}, folder / file)
    weight_map = {name: file for file, names in parts.items() for name in names}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    sharded = source_of(folder).encoder.tensors
    assert set(whole) == set(old) == set(sharded)
    for name, tensor in whole.items():
        assert torch.equal(tensor, old[name])
        assert torch.equal(tensor, sharded[name])
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="names 1 files that are not there: model-00002"):
        load("geneformer", folder)
    index.write_text(json.dumps({"weight_map": {"a": "../other.safetensors"}}))
    with pytest.raises(ValueError, match="points outside its folder"):
        load("geneformer", folder)
    index.write_text("[]")
    with pytest.raises(ValueError, match="is no index of a sharded checkpoint"):
        load("geneformer", folder)


def test_what_transformers_saves_is_read(tmp_path: Path) -> None:
    source = source_of(fixtures.write_v2(tmp_path))
    source.hf().save_pretrained(tmp_path)
    again = source_of(tmp_path)
    for name, tensor in source.encoder.tensors.items():
        assert torch.equal(tensor, again.encoder.tensors[name]), name


def test_a_headless_bert_and_a_classifier_are_read(tmp_path: Path) -> None:
    whole = source_of(fixtures.write_v1(tmp_path / "whole"))
    body = {n.removeprefix("bert."): t for n, t in whole.encoder.tensors.items() if n.startswith("bert.")}
    bare = fixtures.write_v1(tmp_path / "bare")
    save_file({name: tensor.clone() for name, tensor in body.items()}, bare / "model.safetensors")
    assert not source_of(bare).encoder.has_head
    tuned = {f"bert.{name}": tensor.clone() for name, tensor in body.items()}
    tuned |= {"classifier.weight": torch.ones(3, 32), "classifier.bias": torch.ones(3)}
    tuned |= {"bert.pooler.dense.weight": torch.ones(32, 32), "bert.pooler.dense.bias": torch.ones(32)}
    save_file(tuned, bare / "model.safetensors")
    assert torch.equal(source_of(bare).encoder.layers[0].v.weight, whole.encoder.layers[0].v.weight)


LAYER = "bert.encoder.layer.1."


@pytest.mark.parametrize(
    ("replaced", "said"),
    [
        ({f"{LAYER}output.dense.bias": None}, rf"1 weights are missing: {LAYER}output\.dense\.bias"),
        ({"cls.predictions.transform.dense.weight": None}, "1 weights are missing: cls"),
        ({"bert.extra": torch.ones(1)}, r"1 weights have no place in the model: bert\.extra"),
        (
            {"bert.encoder.layer.3.output.dense.bias": torch.ones(32)},
            "no place in the model",
        ),
        (
            {f"{LAYER}output.dense.weight": torch.ones(3, 3)},
            r"output\.dense\.weight has shape \(3, 3\), config\.json asks for \(32, 64\)",
        ),
        (
            {f"{LAYER}output.dense.bias": torch.ones(32, dtype=torch.int8)},
            "int8, not floating",
        ),
    ],
)
def test_weights_that_do_not_fit(tmp_path: Path, replaced: dict[str, Any], said: str) -> None:
    folder = change(fixtures.write_v1(tmp_path), **replaced)
    with pytest.raises(ValueError, match=said):
        load("geneformer", folder)


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    folder = fixtures.write_v1(tmp_path)
    (folder / "config.json").write_text(json.dumps(fixtures.config(num_hidden_layers=40, vocab_size=42)))
    with pytest.raises(ValueError, match=r"592 weights are missing: .* and 572 more"):
        load("geneformer", folder)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_act": "silu"}, "hidden_act='silu'; 'relu', 'gelu'"),
        ({"model_type": "llama"}, "model_type='llama'; 'bert' can be run"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'; 'absolute'"),
        ({"is_decoder": True}, "is_decoder=True"),
        ({"num_attention_heads": 5}, "hidden_size 32 is not divisible by 5 attention heads"),
    ],
)
def test_models_of_another_kind_are_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    folder = fixtures.write_v1(tmp_path)
    (folder / "config.json").write_text(json.dumps(fixtures.config(**changes)))
    with pytest.raises(ValueError, match=said):
        load("geneformer", folder)


def test_configs_that_are_none(tmp_path: Path) -> None:
    folder = fixtures.write_v1(tmp_path)
    for content, said in (
        ("{", "is not JSON"),
        ("[]", "must hold a JSON object"),
        ("{}", "lacks num_hidden_layers, "),
    ):
        (folder / "config.json").write_text(content)
        with pytest.raises(ValueError, match=said):
            load("geneformer", folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing \(it holds .*token_dictionary"):
        load("geneformer", folder)


class Custom:
    """Something that a state_dict has no use for."""


def test_a_bin_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    folder = fixtures.write_v1(tmp_path, weight_file="bin")
    file = folder / "pytorch_model.bin"
    torch.save({"a": Custom()}, file)
    with pytest.raises(ValueError, match=r"refuses to read it without running code .*model\.safetensors"):
        load("geneformer", folder)
    torch.save({"a": 1}, file)
    with pytest.raises(ValueError, match="must hold a state_dict"):
        load("geneformer", folder)


def test_files_cut_short(tmp_path: Path) -> None:
    for kind, name in (("safetensors", "model.safetensors"), ("bin", "pytorch_model.bin")):
        file = fixtures.write_v1(tmp_path / kind, weight_file=kind) / name  # type: ignore[arg-type]
        whole = file.read_bytes()
        for cut in (0, 7, 100, len(whole) // 2):
            file.write_bytes(whole[:cut])
            with pytest.raises(ValueError, match=f"{name} is cut short or no|{name} holds more than weights"):
                load("geneformer", file.parent)
        file.write_text("version https://git-lfs.github.com/spec/v1\n")
        with pytest.raises(ValueError, match="git lfs pull"):
            load("geneformer", file.parent)


def test_no_weights_at_all(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no weights; looked for model\.safetensors, "):
        load("geneformer", fixtures.write_v1(tmp_path, weight_file="none"))


def test_half_precision_files_are_cast(tmp_path: Path) -> None:
    folder = fixtures.write_v1(tmp_path)
    halves = {name: tensor.half() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(halves, folder / "model.safetensors")
    assert source_of(folder).dtype == torch.float32
    assert checkpoint.read_tensors(folder)["cls.predictions.bias"].dtype == torch.float16
