"""Logits of single genes and of classes: those of transformers, as parts of a graph."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from scfast.attention import Recorder
from scfast.models import load
from scfast.models.base import Tokens
from scfast.models.geneformer import GeneformerSource
from scfast.observables import AttentionAttribution, HiddenStates, Relevance, Target
from tests.models import fixtures
from tests.models.test_bert import random_tokens

LENGTHS = (17, 1, 0, 9)
CLASSES = ("low", "high", "none")


def classifier(folder: Path, classes: tuple[str, ...] = CLASSES, **options: object) -> Path:
    """A V2 checkpoint with a random classifier on its first token."""
    fixtures.write_v2(folder, id2label=dict(enumerate(classes)), **options)
    tensors = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(3)
    for name, shape in {
        "bert.pooler.dense.weight": (32, 32), "bert.pooler.dense.bias": (32,),
        "classifier.weight": (len(classes), 32), "classifier.bias": (len(classes),),
    }.items():  # fmt: skip
        tensors[name] = torch.randn(shape, generator=generator) / 3
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


class Kept(Relevance):
    """Keeps the gradients, too."""

    def on_sweep(self, attention):  # type: ignore[no-untyped-def]
        self.gradients = {**getattr(self, "gradients", {}), attention.layer: attention.d_out}
        super().on_sweep(attention)


def run(source: GeneformerSource, tokens: Tokens, target: Target | str, **options: object) -> Recorder:
    recorder = Recorder([Relevance(target, "mean"), HiddenStates(-1)], backend="reference", **options)  # type: ignore[arg-type]
    source.forward(tokens, recorder)
    return recorder


def test_gene_logits_are_those_of_transformers(tmp_path: Path) -> None:
    source = load("geneformer", fixtures.write_v2(tmp_path, hidden_act="gelu"))
    assert isinstance(source, GeneformerSource)
    ids = torch.randint(4, 44, (1, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model = source.hf()
        states = model.bert(input_ids=ids).last_hidden_state[0]
        expected = model(input_ids=ids).logits[0, torch.arange(12), ids[0]]
        got = source.encoder.gene_logits(states, ids[0])
    assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_cells_without_the_gene_have_no_relevance(tmp_path: Path) -> None:
    source = load("geneformer", fixtures.write_v2(tmp_path))
    tokens = random_tokens(LENGTHS, 44)
    rec = run(source, tokens, Target("gene", "G20", 20))  # the token of column 20 stands in the last cell
    first, second, _, last = rec["relevance"]
    assert_close(first, torch.full((17,), 1 / 17))
    assert_close(second, torch.ones(1))
    assert float(last.sum()) > 1
    named = run(source, tokens, "gene:G20", gene_names=[f"G{i}" for i in range(27)])
    assert torch.equal(named.batch["relevance"], rec.batch["relevance"])
    nowhere = run(source, tokens, Target("gene", "G30", 30))
    assert float(nowhere.batch["relevance"].sum()) == pytest.approx(3)


def test_weights_are_never_trained(tmp_path: Path) -> None:
    source = load("geneformer", classifier(tmp_path))
    assert isinstance(source, GeneformerSource)
    tokens = random_tokens((17, 1, 9), 44)
    recorder = Recorder([AttentionAttribution("class:high", steps=2)], backend="reference")
    with torch.no_grad():
        source.forward(tokens, recorder)
    assert recorder.batch["attribution"].shape == (4, 27)
    assert not any(tensor.requires_grad for tensor in source.encoder.tensors.values())
    with (
        torch.inference_mode(),
        pytest.raises(RuntimeError, match=r"outside torch\.no_grad\(\) and torch\.infer"),
    ):
        run(source, tokens, "class:high")


def test_targets_that_do_not_exist(tmp_path: Path) -> None:
    tuned = load("geneformer", classifier(tmp_path / "tuned"))
    plain = load("geneformer", fixtures.write_v2(tmp_path / "plain"))
    tokens = random_tokens(LENGTHS, 44)
    for source, target, message in (
        (tuned, "class:middle", "geneformer:tuned has the classes 'low', 'high', 'none'"),
        (plain, "class:low", "geneformer:plain has no classifier; fine-tune one with scfast.tl.finetune"),
        (plain, "gene:CD3D", r"occurs 0 times in gene_names; it must occur once"),
        (plain, torch.sum, "has no output to apply a function to"),
    ):
        with pytest.raises(ValueError, match=message):
            run(source, tokens, target)  # type: ignore[arg-type]


def test_a_checkpoint_without_a_masked_gene_head_explains_no_gene(tmp_path: Path) -> None:
    folder = fixtures.write_v2(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {name: x for name, x in tensors.items() if not name.startswith("cls.")}, folder / "model.safetensors"
    )
    source = load("geneformer", folder)
    with pytest.raises(ValueError, match="has no masked-gene head"):
        run(source, random_tokens(LENGTHS, 44), Target("gene", "G1", 1))
    assert json.loads((folder / "config.json").read_text())["model_type"] == "bert"
