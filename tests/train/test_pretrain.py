import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from scfast.train import pretrain as training
from scfast.train.masking import TokenisedCells

PRESET = training.Preset(1, 2, 16, 32, context=64, batch_tokens=200, lr=5e-3, steps=12, count_noise=0.5)
N_GENES = 20


def made_cells(n_cells: int = 60, seed: int = 0) -> TokenisedCells:
    """Two kinds of cells with ten genes each: a hidden gene's kind shows in the others."""
    rng = np.random.default_rng(seed)
    parts = [2 + 10 * (i % 2) + rng.permutation(10)[: rng.integers(6, 11)] for i in range(n_cells)]
    offsets = np.concatenate([[0], np.cumsum([part.size for part in parts])]).astype(np.int64)
    ids = np.concatenate(parts).astype(np.int64)
    return TokenisedCells(ids, offsets, np.ones(ids.size), np.ones(ids.size))


def settings(**changes) -> training.Settings:
    values = {
        "preset": PRESET,
        "vocabulary_size": N_GENES + 2,
        "steps": 12,
        "mask": 0.15,
        "batch_tokens": 200,
        "lr": 5e-3,
        "seed": 0,
        "held_out": 0.2,
    }
    return training.Settings(**(values | changes))


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same_weights(one, other):
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_a_killed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path):
    cells = made_cells()
    whole = training.pretrain(cells, tmp_path / "whole", settings())
    for stop in (5, 9):
        stopped = training.pretrain(cells, tmp_path / "killed", settings(), stop_after=stop)
        assert not stopped["finished"]
        assert not (tmp_path / "killed" / "model.safetensors").exists()
        torch.manual_seed(99)  # what another program drew in between does not matter
    resumed = training.pretrain(cells, tmp_path / "killed", settings())
    assert_same_weights(tmp_path / "whole", tmp_path / "killed")
    assert resumed["history"][-1]["held_out_loss"] == whole["history"][-1]["held_out_loss"]
    assert sorted(file.name for file in (tmp_path / "killed").iterdir()) == [
        "config.json",
        "model.safetensors",
        "training_log.json",
    ]


def test_a_half_written_checkpoint_is_not_taken(tmp_path):
    cells = made_cells()
    training.pretrain(cells, tmp_path / "whole", settings())
    training.pretrain(cells, tmp_path / "killed", settings(), stop_after=5)
    half = tmp_path / "killed" / "checkpoints" / ".step-00000009.part"
    half.mkdir()
    (half / "parameters.safetensors").write_bytes(b"half")
    training.pretrain(cells, tmp_path / "killed", settings())
    assert_same_weights(tmp_path / "whole", tmp_path / "killed")


def test_training_beats_gene_frequencies_where_there_is_something_to_learn(tmp_path):
    # Ten of twenty genes are possible in a cell of known kind, and those in sight are not the hidden one.
    log = training.pretrain(made_cells(200), tmp_path, settings(steps=150, lr=2e-2))
    assert abs(log["unigram_loss"] - math.log(N_GENES)) < 0.1
    assert log["history"][-1]["held_out_loss"] < math.log(N_GENES) - 0.5
    assert [entry["step"] for entry in log["history"]] == sorted({entry["step"] for entry in log["history"]})


def test_the_seed_decides(tmp_path):
    cells = made_cells()
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        training.pretrain(cells, tmp_path / name, settings(steps=3, seed=seed))
    assert_same_weights(tmp_path / "a", tmp_path / "b")
    assert not torch.equal(*(next(iter(weights(tmp_path / name).values())) for name in "ac"))


def test_global_random_state_is_left_alone(tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    training.pretrain(made_cells(), tmp_path, settings(steps=2))
    assert torch.equal(torch.rand(2), expected)


def test_the_folder_is_a_hugging_face_model(tmp_path):
    from transformers import BertForMaskedLM

    log = training.pretrain(made_cells(), tmp_path, settings(steps=2))
    model, info = BertForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert "scfast" not in (tmp_path / "config.json").read_text()
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.config.hidden_act == "relu"
    assert model.config.num_hidden_layers == 1
    assert model.config.max_position_embeddings == 64
    model.set_attn_implementation("scfast")
    cells = made_cells()
    _, held_out = training._split(cells, settings(steps=2))
    loss = training.evaluate(model, training._held_out_batches(held_out, settings(steps=2)))
    assert loss == pytest.approx(log["history"][-1]["held_out_loss"], abs=1e-5)


def test_loss_and_gradients_are_those_of_the_padded_model():
    from torch.nn.utils.rnn import pad_sequence

    cells = made_cells()
    model = training.new_model(PRESET, N_GENES + 2, seed=1).eval()
    batch = training._mask(cells, np.arange(5), np.random.default_rng(0), settings())
    labels = torch.full_like(batch.ids, -100)
    labels[batch.chosen] = batch.targets
    padded = pad_sequence(batch.packing.split_q(batch.ids), batch_first=True)
    labels = pad_sequence(batch.packing.split_q(labels), batch_first=True, padding_value=-100)
    results = []
    for packed in (True, False):
        model.set_attn_implementation("scfast" if packed else "eager")
        loss = (
            training.masked_loss(model, batch)
            if packed
            else model(input_ids=padded, attention_mask=(padded > 0).long(), labels=labels).loss
        )
        model.zero_grad()
        loss.backward()
        results.append([loss.detach(), *(p.grad.clone() for p in model.parameters())])
    for x, y in zip(*results, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-6)


def test_a_finished_run_is_kept_and_another_is_refused(tmp_path):
    cells = made_cells()
    first = training.pretrain(cells, tmp_path, settings(steps=2))
    before = (tmp_path / "model.safetensors").stat().st_mtime_ns
    assert training.pretrain(cells, tmp_path, settings(steps=2)) == first
    assert (tmp_path / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r"lr \(0\.005 there, 0\.1 now\).*--restart"):
        training.pretrain(cells, tmp_path, settings(steps=2, lr=0.1))
    with pytest.raises(ValueError, match="differs in the tokens of the cells"):
        training.pretrain(made_cells(seed=1), tmp_path, settings(steps=2))
    training.pretrain(made_cells(seed=1), tmp_path, settings(steps=2), resume=False)
    assert json.loads((tmp_path / "training_log.json").read_text())["data"] != first["data"]


def test_an_unfinished_run_with_other_settings_is_refused(tmp_path):
    cells = made_cells()
    training.pretrain(cells, tmp_path, settings(), stop_after=2)
    with pytest.raises(ValueError, match="differs in seed"):
        training.pretrain(cells, tmp_path, settings(seed=5))


def test_too_few_cells(tmp_path):
    with pytest.raises(ValueError, match="none is left to train on"):
        training.pretrain(made_cells(1), tmp_path, settings())


def test_gain_is_over_the_unigram_loss_at_the_same_genes(tmp_path):
    log = training.pretrain(made_cells(), tmp_path, settings(steps=60))
    assert math.isclose(log["gain"], log["unigram_loss"] - log["history"][-1]["held_out_loss"], abs_tol=1e-5)
    assert 0 < log["gain_se"] < 1
