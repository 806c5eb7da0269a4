import json
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.utils.rnn import pad_sequence

from scfast import Packing, models
from scfast.models.geneformer import GeneformerSource
from scfast.models.heads import new_classifier
from scfast.train import finetune as training
from scfast.train.classifier import Classifier, LabelledCells, class_logits, freeze
from scfast.train.fit import adamw, learning_rate, packed_states
from scfast.train.masking import TokenisedCells
from scfast.train.split import TEST, TRAIN, VALIDATION
from tests.models import fixtures

CLASSES = ("low", "high")
N_LAYERS = 3


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> GeneformerSource:
    folder = tmp_path_factory.mktemp("base")
    return models.load("geneformer", fixtures.write_v1(folder, hidden_dropout_prob=0.1))


def made_data(n: int = 60, seed: int = 0) -> LabelledCells:
    """Cells of 5 to 30 genes; those of class "high" hold genes above token 20 first."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    parts = []
    for label in labels:
        own = rng.permutation(np.arange(2, 22) + 20 * label)
        other = rng.permutation(np.arange(22, 42) - 20 * label)
        parts.append(np.concatenate([own[: rng.integers(4, 20)], other[: rng.integers(1, 11)]]))
    offsets = np.concatenate([[0], np.cumsum([part.size for part in parts])]).astype(np.int64)
    used = np.repeat([TRAIN, TRAIN, TRAIN, VALIDATION, TEST], 2)[np.arange(n) % 10].astype(np.int8)
    names = np.array([f"cell{i}" for i in range(n)])
    return LabelledCells(TokenisedCells(np.concatenate(parts).astype(np.int64), offsets), labels, used, names)


def settings(**changes) -> training.Settings:
    values = {
        "classes": CLASSES,
        "class_weights": (1.0, 1.0),
        "freeze": "none",
        "steps": 24,
        "batch_tokens": 200,
        "lr": 3e-3,
        "weight_decay": 0.01,
        "patience": 6,
        "seed": 0,
    }
    return training.Settings(**(values | changes))


def classifier_of(source: GeneformerSource, config: dict | None = None, seed: int = 1) -> torch.nn.Module:
    return new_classifier(source.encoder, {**source.config, **(config or {})}, CLASSES, seed)


def run(source: GeneformerSource, folder: Path, data: LabelledCells | None = None, **options) -> dict:
    known = {"resume", "progress", "notes"}
    chosen = settings(**{key: value for key, value in options.items() if key not in known})
    return training.finetune(
        classifier_of(source), data or made_data(), source.dictionaries, folder, chosen,
        **{key: value for key, value in options.items() if key in known},
    )  # fmt: skip


def test_the_loss_falls_and_the_test_is_passed_where_classes_are_separable(source, tmp_path):
    log = run(source, tmp_path, made_data(240), lr=5e-3, steps=120)
    losses = [entry["train_loss"] for entry in log["history"]]
    assert losses[0] > 0.3 > 0.1 > losses[-1]
    assert log["test"]["accuracy"] > 0.9
    assert log["test"]["macro_f1"] > 0.9
    assert log["test"]["majority_accuracy"] == 0.5
    assert np.sum(log["test"]["confusion"]) == log["test"]["cells"] == 48
    assert log["finished"]


@pytest.mark.parametrize(("what", "n_frozen"), [("none", None), (0, 0), (2, 2), ("all", N_LAYERS)])
def test_frozen_parameters_stay_bit_identical_and_the_others_move(source, tmp_path, what, n_frozen):
    before = dict(classifier_of(source).named_parameters())
    run(source, tmp_path, freeze=what)
    after = load_file(tmp_path / "model.safetensors")
    frozen = [] if n_frozen is None else ["bert.embeddings."]
    frozen += [f"bert.encoder.layer.{layer}." for layer in range(n_frozen or 0)]
    unused = {"bert.embeddings.word_embeddings.weight", "bert.embeddings.token_type_embeddings.weight"}
    for name, p in before.items():
        if any(name.startswith(prefix) for prefix in frozen):
            assert torch.equal(after[name], p), name
        elif name not in unused:
            assert not torch.equal(after[name], p), name


@pytest.mark.parametrize("what", ["none", 1, "all"])
def test_losses_are_those_of_the_eager_padded_model_step_by_step(source, what):
    """Two models, one packed on scfast attention, one padded and eager, trained side by side."""
    chosen = settings(freeze=what)
    data = made_data()
    packed = classifier_of(source, {"hidden_dropout_prob": 0.0})
    padded = classifier_of(source, {"hidden_dropout_prob": 0.0})
    padded.set_attn_implementation("eager")
    weights = (0.7, 1.9)
    ours = Classifier(packed, data, what=what, class_weights=weights, batch_tokens=200)
    freeze(padded, what)
    optimisers = [
        adamw((p for p in model.parameters() if p.requires_grad), chosen.lr, 0.01)
        for model in (packed, padded)
    ]
    rng = np.random.default_rng(0)
    train = data.rows(TRAIN)
    for step in range(12):
        rows = rng.choice(train, size=7, replace=False)
        ids = pad_sequence([torch.from_numpy(data.cells.cell(row)) for row in rows], batch_first=True)
        labels = torch.from_numpy(data.labels[rows])
        logits = padded(input_ids=ids, attention_mask=(ids > 0).long()).logits
        expected = torch.nn.functional.cross_entropy(logits, labels, weight=torch.tensor(weights))
        got = ours.loss(rows)
        assert abs(float(got.detach()) - float(expected.detach())) < 1e-4, step
        for loss, optimiser in zip((got, expected), optimisers, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(step, chosen)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    for (name, p), q in zip(packed.named_parameters(), padded.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-3, atol=2e-3, msg=name)


def test_predictions_do_not_depend_on_the_batches(source):
    data = made_data()
    rows = np.random.default_rng(0).permutation(60)
    model = classifier_of(source)
    whole, small = (
        Classifier(model, data, what="none", class_weights=(1.0, 1.0), batch_tokens=tokens).predict(rows)
        for tokens in (10**6, 40)
    )
    torch.testing.assert_close(whole, small, rtol=1e-5, atol=1e-6)
    cached = Classifier(model, data, what="all", class_weights=(1.0, 1.0), batch_tokens=100).predict(rows)
    torch.testing.assert_close(whole, cached, rtol=1e-5, atol=1e-6)


def test_class_weights_weigh_the_losses(source):
    data, model = made_data(), classifier_of(source, {"hidden_dropout_prob": 0.0})
    rows = np.array([0, 1, 2, 5])

    def loss(*weights: float, rows: np.ndarray = rows) -> float:
        chosen = Classifier(model, data, what="all", class_weights=weights, batch_tokens=200)
        return float(chosen.loss_of(chosen.predict(rows), rows))

    low, high = loss(1.0, 1.0, rows=rows[::2]), loss(1.0, 1.0, rows=rows[1::2])
    assert loss(3.0, 1.0) == pytest.approx((3 * low + high) / 4, rel=1e-5)
    assert training.balanced_weights(np.array([0, 0, 0, 1]), 2) == (4 / 6, 4 / 2)


def test_the_same_seed_gives_the_same_weights_and_another_one_others(source, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(17)
        run(source, tmp_path / name, seed=seed, steps=8)
    a, b, c = (load_file(tmp_path / name / "model.safetensors") for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], c[name]) for name in a)


class Killed(BaseException):
    """What a kill looks like from inside."""


@pytest.mark.parametrize("after", [1, 3])
def test_a_killed_run_ends_as_an_uninterrupted_one(source, tmp_path, after):
    whole = run(source, tmp_path / "whole", freeze=1)
    evaluations = count(1)

    def kill(entry: dict[str, float]) -> None:
        if next(evaluations) == after:
            raise Killed

    with pytest.raises(Killed):
        run(source, tmp_path / "killed", freeze=1, progress=kill)
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    resumed = run(source, tmp_path / "killed", freeze=1)
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    for log in (whole, resumed):
        log.pop("seconds")
        for entry in (*log["history"], log["best"]):
            entry.pop("seconds", None)
    assert whole == resumed
    assert (tmp_path / "whole" / "predictions.csv").read_text() == (
        tmp_path / "killed" / "predictions.csv"
    ).read_text()
    assert not (tmp_path / "killed" / "checkpoints").exists()


def test_training_stops_early_and_keeps_the_best_weights(source, tmp_path):
    losses: list[float] = []
    log = run(
        source,
        tmp_path,
        lr=0.3,
        patience=2,
        steps=48,
        progress=lambda e: losses.append(e["validation_loss"]),
    )
    best = int(np.argmin(losses))
    assert len(losses) == best + 3
    assert log["history"][-1]["step"] < 48
    assert log["best"]["validation_loss"] == losses[best]
    model = models.load("geneformer", tmp_path).hf()
    model.set_attn_implementation("scfast")
    data = made_data()
    again = Classifier(model, data, what="none", class_weights=(1.0, 1.0), batch_tokens=200)
    rows = data.rows(VALIDATION)
    assert float(again.loss_of(again.predict(rows), rows)) == pytest.approx(losses[best], rel=1e-4)


def padded_logits(model: torch.nn.Module, cells: TokenisedCells, rows: Sequence[int]) -> torch.Tensor:
    ids = pad_sequence([torch.from_numpy(cells.cell(row)) for row in rows], batch_first=True)
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=(ids > 0).long()).logits


def test_the_folder_loads_in_transformers_and_in_scfast(source, tmp_path):
    from transformers import BertForSequenceClassification

    run(source, tmp_path)
    model, info = BertForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.config.id2label == {0: "low", 1: "high"}
    assert "scfast" not in (tmp_path / "config.json").read_text()
    written = pd.read_csv(tmp_path / "predictions.csv", index_col="cell")
    logits = padded_logits(model.eval(), made_data().cells, range(60))
    np.testing.assert_allclose(written[["p_low", "p_high"]], logits.softmax(1), atol=1e-5)
    assert list(written["predicted"]) == [CLASSES[i] for i in logits.argmax(1)]
    assert list(written.columns[:3]) == ["part", "label", "predicted"]

    tuned = models.load("geneformer", tmp_path)
    assert tuned.genes == source.genes
    assert tuned.classes == ["low", "high"]
    assert source.classes == []
    assert isinstance(tuned.hf(), BertForSequenceClassification)
    torch.testing.assert_close(padded_logits(tuned.hf(), made_data().cells, range(5)), logits[:5])
    assert not tuned.untrained().classes


def test_class_logits_are_a_differentiable_function_of_the_first_states(source, tmp_path):
    run(source, tmp_path, steps=4)
    tuned = models.load("geneformer", tmp_path)
    model = tuned.hf()
    model.set_attn_implementation("scfast")
    data = made_data()
    classifier = Classifier(model, data, what="none", class_weights=(1.0, 1.0), batch_tokens=200)
    states = classifier._first_states(np.arange(4)).detach().requires_grad_()
    logits = tuned.encoder.classify(states)
    torch.testing.assert_close(logits, class_logits(model, states))
    (gradient,) = torch.autograd.grad(logits[:, 1].sum(), states)
    assert gradient.abs().sum() > 0
    with pytest.raises(ValueError, match=r"no sequence classifier.*scfast\.tl\.finetune"):
        source.encoder.classify(states)


def test_packed_states_need_no_padding(source):
    model = classifier_of(source, {"hidden_dropout_prob": 0.0}).eval()
    data = made_data()
    ids = torch.from_numpy(data.cells.cell(3))
    with torch.no_grad():
        alone = packed_states(model.bert, ids, Packing.from_lengths([len(ids)]))
        padded = model.bert(input_ids=ids[None]).last_hidden_state[0]
    torch.testing.assert_close(alone, padded)


def test_a_finished_run_is_kept_and_another_is_refused(source, tmp_path):
    first = run(source, tmp_path, steps=4)
    before = (tmp_path / "model.safetensors").stat().st_mtime_ns
    assert run(source, tmp_path, steps=4) == json.loads(json.dumps(first))
    assert (tmp_path / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"differs in lr \(0\.003 there, 0\.1 now\)"):
        run(source, tmp_path, steps=4, lr=0.1)
    other = made_data()
    other.labels[:2] = other.labels[1::-1]
    with pytest.raises(ValueError, match="differs in the cells' labels or parts"):
        run(source, tmp_path, other, steps=4)
    with pytest.raises(ValueError, match="differs in the weights it starts from"):
        training.finetune(
            classifier_of(source, seed=2),
            made_data(),
            source.dictionaries,
            tmp_path,
            settings(steps=4),
        )
    run(source, tmp_path, steps=4, lr=0.1, resume=False)


@pytest.mark.parametrize("resume", [True, False])
def test_a_checkpoint_that_is_no_run_is_never_overwritten(source, tmp_path, resume):
    fixtures.write_v1(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="was not trained there, and would be overwritten"):
        run(source, tmp_path, resume=resume)
    assert (tmp_path / "model.safetensors").read_bytes() == before
    (tmp_path / "training_log.json").write_text('{"settings": {"mask": 0.15}}')
    with pytest.raises(ValueError, match="of another kind, which would be overwritten"):
        run(source, tmp_path, resume=resume)


@pytest.mark.parametrize("what", ["some", 4, -1, True, 1.0])
def test_what_cannot_be_frozen(source, tmp_path, what):
    with pytest.raises(ValueError, match=r"freeze=.*use 'all', 'none', or the number of layers, 0 to 3"):
        run(source, tmp_path / "out", freeze=what)
    assert not (tmp_path / "out").exists()


def test_global_random_state_is_left_alone(source, tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    run(source, tmp_path, steps=2)
    assert torch.equal(torch.rand(2), expected)
