"""Hugging Face checkpoints as sources: written as tiny random ones, read back, and equal to their own maps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

import scfast
from scfast.models import load
from scfast.models.hf import PACKED
from scfast.observables import Entropy, HiddenStates, Received, Rollout
from tests.attention.helpers import (
    LENGTHS,
    MASK,
    cells,
    eager_maps,
    entropies,
    expected_rollout,
    pretrained,
    received,
    tokens,
)

CLOSE = {"rtol": 1e-4, "atol": 1e-5}
FAMILIES = ["bert", "roberta", "esm", "llama", "gpt2"]


def saved(folder: Path, model: transformers.PreTrainedModel) -> Path:
    model.save_pretrained(folder)
    return folder


def record(source: Any, *observables: Any) -> Any:
    with scfast.record(source, *observables) as recorder:
        source.forward(source.prepared, recorder)
    return recorder


@pytest.mark.parametrize("packed", [None, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str, packed: bool | None, tmp_path: Path) -> None:
    model, ids = pretrained(family), tokens()
    source = load("hf", saved(tmp_path, model), packed=packed).with_tokens(ids, mask=MASK)
    assert source.packed == (packed is None and family in PACKED)
    causal = family in ("llama", "gpt2")
    assert source.cls_position == (-1 if causal else 0)
    recorder = record(source, Rollout("mean"), Received(), Entropy(), HiddenStates())
    maps = eager_maps(model, input_ids=ids, attention_mask=MASK.long())
    body = model.base_model
    with torch.no_grad():
        padded = body(input_ids=ids, attention_mask=MASK.long(), output_hidden_states=True).hidden_states
    for cell, layers in enumerate(maps):
        assert_close(recorder["rollout"][cell].double(), expected_rollout(layers, "mean"), **CLOSE)
        assert_close(recorder["received"][cell].double(), received(layers), **CLOSE)
        assert_close(recorder["entropy"][cell].double(), entropies(layers), **CLOSE)
        for layer, states in enumerate(padded):
            assert_close(recorder["hidden_states"][cell][layer], cells(states)[cell], **CLOSE)
    assert source.bytes_per_token()["qk_per_layer"] == 4 * (32 + (16 if family == "llama" else 32))


def test_counts_become_tokens_and_tools_take_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    adata = anndata.AnnData(rng.poisson(1.0, (8, 20)).astype(np.float32))
    adata.var_names = [f"GENE{number}" for number in range(20)]

    def tokenize(counts: Any, var: Any, n_counts: np.ndarray) -> list[list[int]]:
        assert (n_counts >= counts.sum(1).A1).all()
        token = var["token"].to_numpy()
        return [[3, *(token[row.indices][token[row.indices] >= 0])] for row in counts]

    source = load(
        "hf", saved(tmp_path, pretrained("bert")), tokenize=tokenize,
        vocabulary={f"ENSG{number:011d}": number + 5 for number in range(18)},
        gene_names={f"GENE{number}": f"ENSG{number:011d}" for number in range(20)},
    )  # fmt: skip
    scfast.tl.rollout(adata, source, null="untrained", progress=False)
    scfast.tl.embed(adata, source, progress=False)
    scores = adata.layers["rollout"].toarray()
    assert (scores[:, 18:] == 0).all()
    np.testing.assert_array_equal(scores[:, :18] > 0, adata.X[:, :18] > 0)
    groups = adata.uns["rollout"]["groups"]
    assert groups["lost_vocabulary"].item() == (adata.X[:, 18:] > 0).sum(1).mean()


def test_a_class_is_explained_through_its_head(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=64, id2label={0: "B", 1: "T"}, label2id={"B": 0, "T": 1},
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config)
    source = load("hf", saved(tmp_path, model)).with_tokens(cells(tokens()))
    from scfast.observables import Relevance

    by_name = record(source, Relevance("class:T"))["relevance"]
    by_hand = record(source, Relevance(lambda output: output.logits[:, 1]))["relevance"]
    for one, other in zip(by_name, by_hand, strict=True):
        assert_close(one, other, rtol=0, atol=0)
    adata = anndata.AnnData(np.ones((len(LENGTHS), 3), dtype=np.float32))
    with pytest.raises(ValueError, match=r"target='class:NK' cannot be found .*it has the classes 'B', 'T'"):
        scfast.tl.relevance(adata, source, target="class:NK", progress=False)


def test_what_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    bert = saved(tmp_path / "bert", pretrained("bert"))
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        load("hf", tmp_path / "none")
    with pytest.raises(TypeError, match=r"dtype=torch\.float64 cannot be run"):
        load("hf", bert, dtype=torch.float64)
    esm = saved(tmp_path / "esm", pretrained("esm"))
    with pytest.raises(ValueError, match="packed=True: of 'esm' it is not known"):
        load("hf", esm, packed=True)
    with pytest.raises(
        ValueError, match="vocabulary has tokens from 1 to 50, but the model's token table has 50 rows"
    ):
        load("hf", bert, vocabulary={"A": 1, "B": 50})
    with pytest.raises(ValueError, match="gives one token id to several genes"):
        load("hf", bert, vocabulary={"A": 1, "B": 1})
    with pytest.raises(ValueError, match="give vocabulary= as well"):
        load("hf", bert, gene_names={"CD3D": "ENSG1"})
    weights = load_file(bert / "model.safetensors")
    some = {name: weight for name, weight in weights.items() if "layer.1.attention.self.query" not in name}
    save_file(some, bert / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"2 weights are missing: .*layer\.1\.attention\.self\.query\.bias"):
        load("hf", bert)
    (bert / "model.safetensors").write_bytes((esm / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(ValueError, match="is cut short or no safetensors file"):
        load("hf", bert)
    settings = json.loads((bert / "config.json").read_text())
    (bert / "config.json").write_text(json.dumps(settings | {"model_type": "nicheformer"}))
    with pytest.raises(
        ValueError, match=r"model_type='nicheformer' is no model of transformers .* scfast\.models\.wrap"
    ):
        load("hf", bert)
    (bert / "config.json").write_text(json.dumps({"model_type": "t5", "architectures": ["T5Model"]}))
    with pytest.raises(NotImplementedError, match="is an encoder-decoder"):
        load("hf", bert)
    (bert / "config.json").write_text(json.dumps({"model_type": "mistral", "sliding_window": 8}))
    with pytest.raises(NotImplementedError, match="sliding windows"):
        load("hf", bert)


def test_tokenisers_that_make_no_sense(tmp_path: Path) -> None:
    folder = saved(tmp_path, pretrained("bert"))
    adata = anndata.AnnData(np.ones((2, 3), dtype=np.float32))
    adata.var_names = ["A", "B", "C"]

    def run(tokenize: Any, **options: Any) -> None:
        scfast.tl.rollout(adata, load("hf", folder, tokenize=tokenize, **options), progress=False)

    for tokenize, said in (
        (None, "has no tokeniser: give tokenize="),
        (lambda counts, var: [[1, 2]], "was given 2 cells and returned 1"),
        (
            lambda counts, var: [[1, 2], [50]],
            "returned ids from 1 to 50, but the model's token table has 50 rows",
        ),
        (lambda counts, var: {"tokens": [[1], [2]]}, "must return ids per cell, or a mapping with 'ids'"),
        (
            lambda counts, var: {"ids": [[1], [2]], "values": [[1], []]},
            "values must have as many entries as ids",
        ),
        (lambda counts, var: [[0.5], [1.0]], "ids must be whole numbers, got float64"),
        (lambda counts, var: [[1] * 65, [1]], "a cell has 65 tokens"),
        (
            lambda counts, var: [[1], [1]],
            "does not say which token stands for which gene: give it a vocabulary=",
        ),
    ):
        with pytest.raises(ValueError, match=said):
            run(tokenize)
    with pytest.raises(ValueError, match="no gene of the data is in the model's vocabulary"):
        run(lambda counts, var: [[1], [1]], vocabulary={"X": 1})
