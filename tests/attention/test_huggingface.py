"""attn_implementation="scfast" and recording of Hugging Face models."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from torch.testing import assert_close

import scfast
from scfast.attention import huggingface
from scfast.attention.session import session_of
from scfast.observables import Entropy, HiddenStates, Received, Rollout
from tests.attention.helpers import (
    LENGTHS,
    MASK,
    cells,
    counted_ops,
    eager_maps,
    entropies,
    expected_rollout,
    pretrained,
    received,
    tokens,
)

FAMILIES = ["bert", "roberta", "esm", "llama", "gpt2"]
#: float32 models of three layers with wide weights, against the same in float64
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture
def own_backend(backend: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Models with attn_implementation="scfast" run on this backend."""
    op = scfast.ops.attention_forward
    monkeypatch.setattr(
        scfast.ops, "attention_forward", lambda *args, **kwargs: op(*args, **{**kwargs, "backend": backend})
    )
    return backend


def states(model: transformers.PreTrainedModel, **inputs: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs, output_hidden_states=True).hidden_states[-1]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("side", ["right", "left"])
def test_agrees_with_sdpa_on_padded_batches(family: str, side: str, own_backend: str) -> None:
    model, ids = pretrained(family), tokens()
    mask = (MASK if side == "right" else MASK.flip(1)).long()
    expected = states(model, input_ids=ids, attention_mask=mask)
    model.set_attn_implementation("scfast")
    got = states(model, input_ids=ids, attention_mask=mask)
    assert_close(got[mask.bool()], expected[mask.bool()], **CLOSE)
    changed = torch.where(mask.bool(), ids, 7)
    assert torch.equal(states(model, input_ids=changed, attention_mask=mask)[mask.bool()], got[mask.bool()])


@pytest.mark.parametrize("family", FAMILIES)
def test_recorded_statistics_equal_the_materialised_ones(family: str, backend: str) -> None:
    model, inputs = pretrained(family), {"input_ids": tokens(), "attention_mask": MASK.long()}
    maps = eager_maps(copy.deepcopy(model), **inputs)
    observables = (
        Rollout(), Rollout("mean", heads="max", name="mean"), Received(), Entropy(), HiddenStates(),
    )  # fmt: skip
    with torch.no_grad():
        plain = model(**inputs, output_hidden_states=True)
        with scfast.record(model, *observables, backend=backend) as rec:
            recorded = model(**inputs)
    assert recorded.keys() == model(**inputs).keys()
    for cell, layers in enumerate(maps):
        assert_close(rec["rollout"][cell].double(), expected_rollout(layers), **CLOSE)
        assert_close(rec["mean"][cell].double(), expected_rollout(layers, "mean", heads="max"), **CLOSE)
        assert_close(rec["received"][cell].double(), received(layers), **CLOSE)
        assert_close(rec["entropy"][cell].double(), entropies(layers), **CLOSE)
        hidden = torch.stack([cells(state)[cell] for state in plain.hidden_states])
        assert_close(rec["hidden_states"][cell], hidden, **CLOSE)


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("how", ["cu_seq_lens", "position_ids"])
def test_packed_calls_equal_padded_ones(family: str, how: str, backend: str) -> None:
    model, ids = pretrained(family), tokens()
    observables = Rollout(), Entropy(), HiddenStates(-1)
    packed = {
        "input_ids": torch.cat(cells(ids))[None],
        "position_ids": torch.cat([torch.arange(n) for n in LENGTHS])[None],
    }
    if how == "cu_seq_lens":
        starts = torch.tensor([0, *LENGTHS]).cumsum(0).int()
        packed |= {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts}
    with torch.no_grad(), scfast.record(model, *observables, backend=backend) as padded_rec:
        model(input_ids=ids, attention_mask=MASK.long())
    with torch.no_grad(), scfast.record(model, *observables, backend=backend) as packed_rec:
        model(**packed)
    for name in ("rollout", "entropy", "hidden_states"):
        for got, expected in zip(packed_rec[name], padded_rec[name], strict=True):
            assert_close(got, expected, **CLOSE)


def test_several_batches_accumulate_and_the_last_is_at_hand(backend: str) -> None:
    model, ids = pretrained("bert"), tokens()
    with (
        torch.no_grad(),
        scfast.record(model, Rollout(), HiddenStates(-1, pool="mean"), backend=backend) as rec,
    ):
        model(input_ids=ids, attention_mask=MASK.long())
        model(input_ids=ids[:1, :5])
    assert [len(scores) for scores in rec["rollout"]] == [*LENGTHS, 5]
    assert rec.batch["rollout"].shape == (5,)
    assert rec.batch["hidden_states"].shape == (1, 32)
    assert_close(rec["hidden_states"][-1], states(model, input_ids=ids[:1, :5])[0].mean(0), **CLOSE)


def test_cls_may_stand_last(backend: str) -> None:
    model, inputs = pretrained("llama"), {"input_ids": tokens(), "attention_mask": MASK.long()}
    maps = eager_maps(copy.deepcopy(model), **inputs)
    with torch.no_grad(), scfast.record(model, Rollout(), backend=backend, cls_position=-1) as rec:
        model(**inputs)
    from scfast.reference.rollout import rollout_matrices

    for scores, layers in zip(rec["rollout"], maps, strict=True):
        assert_close(scores.double(), rollout_matrices(layers).joint[-1][-1], **CLOSE)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_gradients_equal_those_of_sdpa(family: str, own_backend: str) -> None:
    def gradients(model: transformers.PreTrainedModel) -> dict[str, torch.Tensor]:
        model.zero_grad()
        logits = model(input_ids=tokens(), attention_mask=MASK.long()).logits
        logits[MASK].logsumexp(-1).sum().backward()
        return {
            name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None
        }

    model = pretrained(family)
    expected = gradients(model)
    model.set_attn_implementation("scfast")
    got = gradients(model)
    assert got.keys() == expected.keys()
    # the key bias moves no probability, so its gradient is rounding only: one scale for all
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    for name, gradient in got.items():
        assert_close(gradient, expected[name], rtol=1e-3, atol=1e-5 * largest)


@pytest.mark.filterwarnings("ignore:.*activation_checkpointing_enable")
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_replays_are_not_recorded(reentrant: bool, backend: str) -> None:
    model = pretrained("bert")
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.train()
    model.enable_input_require_grads()
    inputs = {"input_ids": tokens(), "attention_mask": MASK.long()}
    with scfast.record(model, Rollout(), Received(), backend=backend) as rec:
        model(**inputs).logits.sum().backward()
        model(**inputs).logits.sum().backward()
    assert len(rec["rollout"]) == len(rec["received"]) == 2 * len(LENGTHS)
    assert torch.equal(rec["received"][0], rec["received"][len(LENGTHS)])
    assert not rec["received"][0].requires_grad
    model.eval()
    with torch.no_grad(), scfast.record(model, Received(), backend=backend) as plain:
        model(**inputs)
    assert_close(rec["received"][:4], plain["received"], **CLOSE)


def test_one_visit_per_layer_and_phase(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = pretrained("bert"), {"input_ids": tokens(), "attention_mask": MASK.long()}
    observables = (
        Received(), Entropy(), Received(per_layer=True, name="each"), HiddenStates(),
        Rollout(), Rollout("mean", name="mean"), Rollout(layers="prefix", name="prefix"),
        Rollout(layers="suffix", name="suffix"), Rollout(layers=(1, 1), name="middle"),
    )  # fmt: skip
    with (
        torch.no_grad(),
        counted_ops(monkeypatch) as calls,
        scfast.record(model, *observables, backend=backend),
    ):
        model(**inputs)
    assert calls == {"attention_forward": 3, "attention_colsum": 3}


def test_generating_with_a_cache_agrees_with_sdpa(own_backend: str) -> None:
    model, mask = pretrained("llama"), MASK.flip(1).long()
    ids = torch.where(mask.bool(), tokens(), 0)
    arguments = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(ids, attention_mask=mask, **arguments)
    model.set_attn_implementation("scfast")
    assert torch.equal(model.generate(ids, attention_mask=mask, **arguments), expected)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_the_model_is_restored(implementation: str, backend: str) -> None:
    model = pretrained("bert", attn_implementation=implementation)
    hooks = [
        (module, len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()
    ]
    with scfast.record(model, HiddenStates(), backend=backend):
        assert model.config._attn_implementation == "scfast"
    with pytest.raises(ZeroDivisionError), scfast.record(model, HiddenStates(), backend=backend):
        raise ZeroDivisionError
    with pytest.raises(IndexError), scfast.record(model, Rollout(), backend=backend) as rec, torch.no_grad():
        model(input_ids=tokens(), token_type_ids=tokens())  # out of range: breaks off within the forward
    assert rec["rollout"] == []
    assert model.config._attn_implementation == implementation
    assert [(m, len(m._forward_hooks), len(m._forward_pre_hooks)) for m, _, _ in hooks] == hooks
    assert session_of(model) is None


def test_a_batch_that_broke_off_is_dropped(backend: str) -> None:
    model, ids = pretrained("bert"), tokens()
    handle = None

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    with torch.no_grad(), scfast.record(model, Rollout(), backend=backend) as rec:
        handle = model.bert.encoder.layer[1].register_forward_pre_hook(fail)
        with pytest.raises(ZeroDivisionError):
            model(input_ids=ids)
        handle.remove()
        model(input_ids=ids[:2])
    assert len(rec["rollout"]) == 2


def test_output_attentions_names_the_remedy(own_backend: str) -> None:
    model = pretrained("bert", attn_implementation="scfast")
    with pytest.raises(ValueError, match=r"scfast\.record"):
        model(input_ids=tokens(), output_attentions=True)


def test_dropout_in_training_is_refused(own_backend: str) -> None:
    model = pretrained("bert", attn_implementation="scfast").train()
    model.bert.encoder.layer[0].attention.self.dropout.p = 0.1
    with pytest.raises(NotImplementedError, match=r"dropout \(0\.1\)"):
        model(input_ids=tokens())


def test_masks_of_four_dimensions_are_refused(own_backend: str) -> None:
    model = pretrained("bert", attn_implementation="scfast")
    with pytest.raises(NotImplementedError, match="4-D masks"):
        model(input_ids=tokens(), attention_mask=torch.zeros(4, 1, 12, 12))


def test_sliding_windows_are_refused(own_backend: str) -> None:
    torch.manual_seed(0)
    config = transformers.MistralConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=48, sliding_window=4,
    )  # fmt: skip
    model = transformers.MistralModel(config).eval()
    model.set_attn_implementation("scfast")
    with pytest.raises(NotImplementedError, match="sliding window"):
        model(input_ids=tokens())
    with pytest.raises(NotImplementedError, match="sliding windows"):
        model(input_ids=tokens()[:, :3])


@pytest.mark.parametrize(
    ("keyword", "what"),
    [
        ("s_aux", "sinks"),
        ("head_mask", "head masks"),
        ("position_bias", "position biases"),
        ("cache", "caches"),
    ],
)
def test_other_features_are_refused_by_name(keyword: str, what: str) -> None:
    module = pretrained("bert").bert.encoder.layer[0].attention.self
    q = torch.zeros(1, 4, 3, 8)
    with pytest.raises(NotImplementedError, match=what):
        huggingface.attention_forward(module, q, q, q, None, **{keyword: torch.ones(4)})


def test_cross_attention_is_refused(own_backend: str) -> None:
    model = pretrained("bert", is_decoder=True, add_cross_attention=True, attn_implementation="scfast")
    with pytest.raises(NotImplementedError, match="cross-attention"):
        model(input_ids=tokens(), encoder_hidden_states=torch.zeros(4, 12, 32))


def test_position_ids_that_say_nothing_are_refused(own_backend: str) -> None:
    model = pretrained("bert", attn_implementation="scfast")
    with pytest.raises(ValueError, match="attention_mask"):
        model(input_ids=tokens()[:1], position_ids=torch.tensor([[0, 1, 2, 5, 6, 7, 8, 9, 10, 11, 12, 13]]))


def test_models_without_an_attention_interface_are_refused(backend: str) -> None:
    config = transformers.DebertaV2Config(
        vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48
    )
    model = transformers.DebertaV2Model(config)
    with (
        pytest.raises(TypeError, match="DebertaV2Model does not take an attention interface"),
        scfast.record(model, Rollout(), backend=backend),
    ):
        pass
    assert model.config._attn_implementation != "scfast"


def test_one_model_is_recorded_once_at_a_time(backend: str) -> None:
    model = pretrained("bert")
    with (
        scfast.record(model, Rollout(), backend=backend),
        pytest.raises(RuntimeError, match="recorded already"),
        scfast.record(model.bert, Received(), backend=backend),
    ):
        pass
    assert model.config._attn_implementation == "sdpa"


def test_another_model_in_the_block_is_left_alone(backend: str) -> None:
    model, other, ids = pretrained("bert"), pretrained("llama"), tokens()
    with torch.no_grad(), scfast.record(model, Rollout(), backend=backend) as rec:
        with scfast.record(other, Received(), backend=backend) as other_rec:
            model(input_ids=ids[:2])
            other(input_ids=ids[:1])
        pretrained("bert")(input_ids=ids)
    assert (len(rec["rollout"]), len(other_rec["received"])) == (2, 1)


def test_a_module_around_the_model_can_be_recorded(backend: str) -> None:
    class Classifier(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = pretrained("roberta")
            self.head = torch.nn.Linear(32, 2)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.head(self.body(input_ids=ids).last_hidden_state[:, 0])

    model = Classifier().eval()
    with (
        torch.no_grad(),
        scfast.record(model, Rollout(), HiddenStates(-1, pool="cls"), backend=backend) as rec,
    ):
        out = model(tokens())
        assert_close(model.head(torch.stack(rec["hidden_states"])), out, **CLOSE)
    assert [len(scores) for scores in rec["rollout"]] == [12] * 4


def test_what_cannot_be_recorded_is_named() -> None:
    with pytest.raises(TypeError, match="Linear holds neither"), scfast.record(torch.nn.Linear(2, 2)):
        pass
    with pytest.raises(TypeError, match="got int"), scfast.record(3):
        pass
