"""scGPT checkpoints: the three files as published, in every layout, and what is said of those that do not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from scfast.models import load
from tests.models import scgpt_files
from tests.models.scgpt_files import LAYOUTS
from tests.models.test_scgpt import source_of


def test_all_layouts_are_one_model(tmp_path: Path) -> None:
    sources = [source_of(scgpt_files.write(tmp_path / layout, layout=layout)) for layout in LAYOUTS]
    for source in sources[1:]:
        for name, tensor in sources[0].network.tensors.items():
            assert torch.equal(tensor, source.network.tensors[name]), name
    source = sources[0]
    assert (source.n_layers, source.n_heads, source.head_dim, source.max_tokens) == (3, 4, 8, 1200)
    assert (source.default_readout, source.cls_position) == ("cls", 0)
    assert source.genes == list(scgpt_files.GENES)


def change(folder: Path, **replaced: torch.Tensor | None) -> Path:
    """Replace or drop weights; names with __ for dots."""
    tensors = torch.load(folder / "best_model.pt", weights_only=True)
    for name, tensor in replaced.items():
        tensors.pop(name.replace("__", "."), None)
        if tensor is not None:
            tensors[name.replace("__", ".")] = tensor
    torch.save(tensors, folder / "best_model.pt")
    return folder


LAYER = "transformer_encoder.layers.1."


@pytest.mark.parametrize(
    ("replaced", "said"),
    [
        ({f"{LAYER}linear1.bias": None}, rf"1 weights are missing: {LAYER}linear1\.bias"),
        (
            {f"{LAYER}self_attn.Wqkv.weight": None, "value_encoder.norm.bias": None},
            rf"2 weights are missing: value_encoder\.norm\.bias, {LAYER}self_attn\.in_proj_weight",
        ),
        (
            {"dsbn.bns.0.weight": torch.ones(32)},
            r"1 weights have no place in the model: dsbn\.bns\.0\.weight",
        ),
        ({f"{LAYER}linear1.bias": torch.ones(3)}, r"linear1\.bias has shape \(3,\), args\.json .* \(48,\)"),
        ({f"{LAYER}self_attn.in_proj_weight": torch.ones(96, 32)}, "in_proj_weight twice, in two layouts"),
        ({"encoder.embedding.weight": torch.ones(70, 32)}, r"has 70 rows, but vocab\.json has 63"),
    ],
)
def test_weights_that_do_not_fit(tmp_path: Path, replaced: dict[str, Any], said: str) -> None:
    folder = change(scgpt_files.write(tmp_path), **replaced)
    with pytest.raises(ValueError, match=said):
        load("scgpt", folder)


def test_heads_may_be_absent_or_of_another_kind(tmp_path: Path) -> None:
    source = source_of(scgpt_files.write(tmp_path))
    tensors = torch.load(tmp_path / "best_model.pt", weights_only=True)
    body = {name: t for name, t in tensors.items() if "decoder." not in name}
    body["cls_decoder.out_layer.weight"] = torch.ones(14, 32)
    body["flag_encoder.weight"] = torch.ones(2, 32)
    torch.save(body, tmp_path / "best_model.pt")
    again = source_of(tmp_path)
    for name, tensor in source.network.tensors.items():
        assert torch.equal(tensor, again.network.tensors[name])


def test_a_file_cut_short_and_files_that_lack(tmp_path: Path) -> None:
    folder = scgpt_files.write(tmp_path)
    file = folder / "best_model.pt"
    whole = file.read_bytes()
    for cut in (0, 100, len(whole) // 2):
        file.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"best_model\.pt is cut short or no|holds more than weights"):
            load("scgpt", folder)
    for name in ("best_model.pt", "vocab.json", "args.json"):
        (folder / name).unlink()
        with pytest.raises(FileNotFoundError, match=name.replace(".", r"\.")):
            load("scgpt", folder)


@pytest.mark.parametrize(
    ("vocabulary", "said"),
    [
        ({"GENE1": 0, "GENE2": 2}, "must number its 2 genes and tokens from 0 to 1"),
        ({"GENE1": 0, "GENE2": 0}, "each once"),
        ({"GENE1": "0"}, "is not the vocab.json of an scGPT"),
        ({"GENE1": 0}, r"has 63 rows, but vocab\.json has 4 genes and special tokens"),
    ],
)
def test_vocabularies_that_do_not_fit(tmp_path: Path, vocabulary: dict[str, Any], said: str) -> None:
    folder = scgpt_files.write(tmp_path)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    with pytest.raises(ValueError, match=said):
        load("scgpt", folder)


def test_special_tokens_that_a_vocabulary_lacks_are_appended(tmp_path: Path) -> None:
    whole = source_of(scgpt_files.write(tmp_path / "whole"))
    bare = source_of(scgpt_files.write(tmp_path / "bare", special=()))
    assert bare.rules == whole.rules
    assert bare.rules.cls == len(scgpt_files.GENES) + 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"embsize": None}, "gives no whole number above 0 as embsize"),
        ({"nheads": 5}, "embsize 32 is not divisible by 5 heads"),
        ({"input_emb_style": "category"}, "input_emb_style='category'; 'continuous' can be run"),
        ({"input_style": "log1p"}, "input_style='log1p'; 'binned' can be run"),
        ({"pre_norm": True}, "pre_norm=True; False can be run"),
        ({"domain_spec_batchnorm": "dsbn"}, "domain_spec_batchnorm='dsbn'"),
        ({"n_bins": 1}, "n_bins must be a whole number, 2 or more; got 1"),
    ],
)
def test_models_of_another_kind_are_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    folder = scgpt_files.write(tmp_path)
    (folder / "args.json").write_text(json.dumps(scgpt_files.args(**changes)))
    with pytest.raises(ValueError, match=said):
        load("scgpt", folder)


def test_options_that_cannot_be(tmp_path: Path) -> None:
    folder = scgpt_files.write(tmp_path)
    with pytest.raises(ValueError, match="seed must be a whole number, 0 or more; got -1"):
        load("scgpt", folder, seed=-1)
    with pytest.raises(ValueError, match="max_tokens must be a whole number, 2 or more"):
        load("scgpt", folder, max_tokens=1)
    with pytest.raises(TypeError, match=r"dtype=torch\.int8 cannot be run"):
        load("scgpt", folder, dtype=torch.int8)
