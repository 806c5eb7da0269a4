"""Gradient-weighted attention: against the authors' own code, and against autograd on eager models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from torch.testing import assert_close

import scfast
from scfast.attention import LayerAttention, Recorder, ScoreOptions
from scfast.observables import AttentionAttribution, GradientAttention, Observable, Relevance, Rollout
from tests.attention.helpers import LENGTHS, MASK, encoder, pretrained, tokens
from tests.observables.eager import chefer_mm, maps_and_gradients, row_normalised, weighted
from tests.ops.helpers import assert_by_rule

#: float32 models of three layers with wide weights, against the same in float64
CLOSE = {"rtol": 2e-4, "atol": 1e-5}


def run_gradients(
    maps: torch.Tensor, gradients: torch.Tensor, *observables: Observable, backend: str
) -> Recorder:
    """Feed given maps and gradients of them, [B, N, H, n, n]: with v = I the output is the map, and so is dO."""
    n_cells, n_layers, n_heads, n, _ = maps.shape
    packing = scfast.Packing.from_lengths([n] * n_cells)
    eye = torch.eye(n)[:, None].expand(n, n_heads, n).repeat(n_cells, 1, 1)
    recorder = Recorder(observables, backend=backend)
    recorder.begin(n_layers, packing, cls_position=0)
    target = torch.zeros(())
    for layer in range(n_layers):
        q = maps[:, layer].float().log().transpose(1, 2).flatten(0, 1)
        out = recorder.attend(LayerAttention(layer, q, eye, eye, packing, ScoreOptions(scale=1.0)))
        assert out is not None
        target = target + (out * gradients[:, layer].float().transpose(1, 2).flatten(0, 1)).sum()
    recorder.differentiate(target)
    recorder.finish()
    return recorder


def every_row(maps: torch.Tensor) -> torch.Tensor:
    return torch.eye(maps.shape[-1]).repeat(1, len(maps))


def test_golden_chefer_mm(shared: Path, backend: str) -> None:
    arrays = np.load(shared / "golden" / "rollout_a.npz")
    maps, gradients = torch.from_numpy(arrays["maps"]), torch.from_numpy(arrays["mm/grads"])
    rows = every_row(maps)
    rec = run_gradients(
        maps, gradients, Relevance(torch.sum, rows), GradientAttention(torch.sum, rows), backend=backend
    )
    close = {"rtol": 2e-6, "atol": 2e-7}
    cams = torch.from_numpy(arrays["mm/cam_bar"])  # [B, L, n, n]
    relevance = torch.stack(rec["relevance"]).double()
    assert_close(torch.stack(rec["gradient_attention"]).double(), cams, **close)
    assert_close(relevance, torch.from_numpy(arrays["mm/R_after_layer"])[:, -1], **close)
    # handle_residual: the identity taken out, rows divided by their sums, the identity back
    identity = torch.eye(maps.shape[-1], dtype=torch.float64)
    without = relevance - identity
    expected = torch.from_numpy(arrays["mm/R_handle_residual"]).double()
    assert_close(without / without.sum(-1, keepdim=True) + identity, expected, rtol=1e-5, atol=1e-6)


def test_golden_chefer_rollout_of_relevance(shared: Path, backend: str) -> None:
    """Given maps of relevance: a uniform P whose gradient is n times the map."""
    arrays = np.load(shared / "golden" / "rollout_a.npz")
    cams = torch.from_numpy(arrays["chefer/cams_relevance"]).double()[:, :, None]  # [B, L, 1, n, n]
    n = cams.shape[-1]
    rows = every_row(cams)
    rec = run_gradients(
        torch.full(cams.shape, 1 / n), cams * n,
        Relevance(torch.sum, rows), Relevance(torch.sum, rows, convention="row-normalised", name="rows"),
        backend=backend,
    )  # fmt: skip
    for name, key in (("relevance", "_unnormalised"), ("rows", "")):
        expected = torch.from_numpy(arrays[f"chefer/rollout_relevance{key}_start0"]).double()
        assert_close(torch.stack(rec[name]).double(), expected, rtol=5e-6, atol=1e-6)


TARGETS = {
    "bert": lambda output: output.logits[:, 0, 7],
    "llama": lambda output: output.logits[:, 0, 7] + output.logits[:, 2, 9],
    "roberta": lambda output: output.last_hidden_state[:, 0, 3],
}


def largest(scores: torch.Tensor) -> torch.Tensor:
    """The size of scores made of gradients, which are sums that cancel: that of the largest of their row."""
    return scores.abs().amax(-1, keepdim=True).expand_as(scores)


def relevances(maps: torch.Tensor, gradients: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the observables say, of the maps [N, H, n, n] of a cell and the gradients of them."""
    cams = weighted(maps, gradients)
    return {
        "relevance": chefer_mm(cams)[0],
        "rows": row_normalised(cams).mean(0),
        "gradient_attention": cams.sum(1),
        "heads": (maps * gradients).clamp(min=0).sum(2),
    }


@pytest.mark.parametrize("family", TARGETS)
@pytest.mark.parametrize("trained", [True, False])
def test_gradients_are_those_of_an_eager_model(family: str, trained: bool, backend: str) -> None:
    model = pretrained(family).requires_grad_(trained)
    inputs = {"input_ids": tokens(), "attention_mask": MASK.long()}
    target = TARGETS[family]
    observables = (
        Relevance(target),
        Relevance(target, "mean", convention="row-normalised", name="rows"),
        GradientAttention(target),
        GradientAttention(target, per_head=True, name="heads"),
        Rollout("mean"),
    )
    with scfast.record(model, *observables, backend=backend) as rec:
        output = model(**inputs)
    if trained:
        target(output).sum().backward()  # the caller's graph is left whole
        assert any(p.grad is not None for p in model.parameters())
    model.requires_grad_(True).zero_grad()
    exact, plain = (
        maps_and_gradients(model, target, dtype, **inputs) for dtype in (torch.float64, torch.float32)
    )
    for cell, n in enumerate(LENGTHS):
        if family == "llama" and n < 3:
            continue  # its target reads the third token
        both = (relevances(*(x[:, cell, :, :n, :n] for x in of)) for of in (exact, plain))
        scores_of, torchs = both
        for name, scores in scores_of.items():
            size = largest(scores.flatten(1)).view_as(scores) if name == "heads" else largest(scores)
            assert_by_rule(name, rec[name][cell], scores, torchs[name], size)


class Captured(Observable):
    """Keeps the layers with their gradients, and computes nothing."""

    name = "captured"

    def __init__(self, target) -> None:  # type: ignore[no-untyped-def]
        self.target = target

    def begin(self, batch: object) -> None:
        self.layers: dict[int, LayerAttention] = {}

    def needs_output(self, n_layers: int | None) -> bool:
        return True

    def keeps(self, layer: int) -> bool:
        return True

    def on_sweep(self, attention: LayerAttention) -> None:
        self.layers[attention.layer] = attention

    def finish(self) -> torch.Tensor:
        return torch.zeros(self.layers[0].packing.total_q)


@pytest.mark.parametrize("family", TARGETS)
def test_gradients_at_the_outputs_give_those_of_the_maps(family: str, backend: str) -> None:
    """dP = dO V^T, with dO through attention_backward of the layers above."""
    model, target = pretrained(family), TARGETS[family]
    inputs = {"input_ids": tokens(), "attention_mask": MASK.long()}
    with scfast.record(model, Captured(target), backend=backend) as rec:
        model(**inputs)
    layers = rec.observables[0].layers  # type: ignore[attr-defined]
    (_, gradients), (_, plain) = (
        maps_and_gradients(model, target, dtype, **inputs) for dtype in (torch.float64, torch.float32)
    )
    for number, layer in layers.items():
        v = layer.v.repeat_interleave(layer.q.shape[1] // layer.v.shape[1], dim=1)
        split = layer.packing.split_q
        for cell, (d_out, values) in enumerate(zip(split(layer.d_out), split(v), strict=True)):
            n = LENGTHS[cell]
            if family == "llama" and n < 3:
                continue
            expected, by_torch = (x[number, cell, :, :n, :n] for x in (gradients, plain))
            visible = expected != 0 if family == "llama" else torch.ones_like(expected, dtype=torch.bool)
            dp = torch.einsum("ihd,jhd->hij", d_out.double(), values.double())
            size = largest(expected)
            assert_by_rule("dP", dp[visible], expected[visible], by_torch[visible], size[visible])


def test_models_of_multihead_attention(backend: str) -> None:
    model, x = encoder(), torch.randn(4, 12, 32, generator=torch.Generator().manual_seed(1))
    target = lambda states: states[:, 0, 5]  # noqa: E731
    with scfast.record(model, Relevance(target), backend=backend) as rec:
        model(x, src_key_padding_mask=~MASK)
    assert rec["relevance"][0][0] > 1  # the identity, and what is added to it
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"outside torch\.no_grad"):
        record(model, Relevance(target), x, backend=backend)


def record(
    model: nn.Module, observable: Observable, *args: object, backend: str = "auto", **kwargs: object
) -> Recorder:
    with scfast.record(model, observable, backend=backend) as rec:
        model(*args, **kwargs)
    return rec


def classifier() -> transformers.BertForSequenceClassification:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=64, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        id2label={0: "low", 1: "high"}, label2id={"low": 0, "high": 1},
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config).eval()


def test_a_class_of_a_transformers_classifier(backend: str) -> None:
    model = classifier()
    inputs = {"input_ids": tokens(), "attention_mask": MASK.long()}
    named = record(model, Relevance("class:high"), **inputs, backend=backend)
    given = record(model, Relevance(lambda output: output.logits[:, 1]), **inputs, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(named["relevance"], given["relevance"], strict=True))
    with pytest.raises(ValueError, match="BertForSequenceClassification has the classes low, high"):
        record(model, Relevance("class:middle"), **inputs)
    with pytest.raises(ValueError, match="target='gene:CD3D' cannot be found in what BertForSequence"):
        record(model, Relevance("gene:CD3D"), **inputs)
    with pytest.raises(ValueError, match="does not depend on the model's attention"):
        record(model, Relevance(lambda output: output.logits.detach()[:, 1]), **inputs)


def test_attribution_is_the_integral_along_each_layer(backend: str) -> None:
    model = pretrained("bert")
    model.set_attn_implementation("eager")
    steps, target = 3, TARGETS["bert"]
    inputs = {"input_ids": tokens(), "attention_mask": MASK.long()}
    exact, plain = (
        [_attributed(model.to(dtype), layer, steps, target, inputs) for layer in range(3)]
        for dtype in (torch.float64, torch.float32)
    )
    model.set_attn_implementation("sdpa")
    calls = []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    with scfast.record(model, AttentionAttribution(target, steps=steps), backend=backend) as rec:
        output = model(**inputs)
    handle.remove()
    assert len(calls) == 9
    with torch.no_grad():
        assert_close(output.logits[0], model(**inputs).logits[0], **CLOSE)
    for cell, n in enumerate(LENGTHS):
        by_layer, by_torch = (
            torch.stack([layer[cell, :, :n, :n].sum((0, 1)) for layer in layers]) for layers in (exact, plain)
        )
        got = rec["attribution"][cell]
        assert_by_rule("layers", got[:-1], by_layer, by_torch, largest(by_layer))
        whole = by_layer.sum(0)
        assert_by_rule("total", got[-1], whole, by_torch.sum(0), largest(whole))


def _attributed(
    model: transformers.PreTrainedModel, layer: int, steps: int, target, inputs: dict[str, torch.Tensor]
) -> torch.Tensor:  # type: ignore[no-untyped-def]
    """P * mean over alpha of dF/dP at alpha P in one layer, [B, H, L, L] in the model's dtype, by autograd."""
    from transformers.models.bert import modeling_bert

    module = model.bert.encoder.layer[layer].attention.self
    plain, held = modeling_bert.eager_attention_forward, {}

    def scaled(called, query, key, value, *args, **kwargs):  # type: ignore[no-untyped-def]
        out, p = plain(called, query, key, value, *args, **kwargs)
        if called is not module:
            return out, p
        held["p"] = p.detach()
        held["scaled"] = (p.detach() * held["alpha"]).requires_grad_()
        return (held["scaled"] @ value).transpose(1, 2).contiguous(), p

    total = torch.zeros(())
    modeling_bert.eager_attention_forward = scaled
    try:
        for step in range(steps):
            held["alpha"] = (step + 1) / steps
            (gradient,) = torch.autograd.grad(target(model(**inputs)).sum(), held["scaled"])
            total = total + gradient / steps
    finally:
        modeling_bert.eager_attention_forward = plain
    return held["p"] * total


def test_attribution_adds_up_to_what_a_layer_does(backend: str) -> None:
    """Completeness: the sum approaches F(P) - F(0) as the steps become many."""
    model = encoder()
    x = torch.randn(1, 9, 32, generator=torch.Generator().manual_seed(3))
    attribution = AttentionAttribution(lambda states: states[:, 2, 5], layers=[1], steps=100)
    rec = record(model, attribution, x, backend=backend)
    with torch.no_grad():
        whole = model(x)[0, 2, 5]
        attention = model.layers[1].self_attn
        attention.out_proj.weight.zero_()  # attention faded out altogether
        gone = model(x)[0, 2, 5]
    assert_close(rec["attribution"][0][0].sum(), whole - gone, rtol=0.02, atol=0)


def test_attribution_per_head_and_readout(backend: str) -> None:
    model = encoder()
    x = torch.randn(1, 9, 32, generator=torch.Generator().manual_seed(3))
    target = lambda states: states[:, 2, 5]  # noqa: E731
    whole = record(model, AttentionAttribution(target, steps=2), x, backend=backend)["attribution"][0]
    per_head = AttentionAttribution(target, steps=2, per_head=True)
    heads = record(model, per_head, x, backend=backend)["attribution"][0]
    by_row = AttentionAttribution(target, torch.eye(9), steps=2)
    rows = record(model, by_row, x, backend=backend)["attribution"][0]
    assert (heads.shape, rows.shape) == ((4, 4, 9), (4, 9, 9))
    assert_close(heads.sum(1), whole, **CLOSE)
    assert_close(rows.sum(1), whole, **CLOSE)
    alone = pytest.raises(ValueError, match="AttentionAttribution runs the model several times over a batch")
    with alone, scfast.record(model, AttentionAttribution(target), Rollout("mean")):
        model(x)
    with pytest.raises(ValueError, match=r"layers=\[3\]: the model has layers 0 to 2"):
        record(model, AttentionAttribution(target, layers=[3]), x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Relevance("logit"), "target='logit' is unknown; use 'class:NAME', 'gene:NAME'"),
        (lambda: Relevance("class:"), "target='class:' is unknown"),
        (lambda: Relevance(3), "target=3 is unknown"),
        (lambda: Relevance("class:a", "first"), "readout='first' is unknown"),
        (lambda: Relevance("class:a", convention="lrp"), "convention='lrp' is unknown; use 'chefer-mm' or"),
        (lambda: AttentionAttribution("class:a", steps=0), "steps must be at least 1"),
        (lambda: AttentionAttribution("class:a", layers=[]), "at least one layer"),
        (
            lambda: Recorder([Relevance("class:a"), GradientAttention("class:b")]),
            "one forward has one gradient, and there are the targets class:a and class:b",
        ),
    ],
)
def test_options_that_do_not_exist(make, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        make()


def test_a_target_that_was_not_differentiated_is_missed() -> None:
    packing = scfast.Packing.from_lengths([5])
    q, k, v = torch.randn(3, 5, 2, 8).unbind(0)
    recorder = Recorder([Relevance("class:a")], backend="reference")
    recorder.begin(1, packing, cls_position=0)
    recorder.attend(LayerAttention(0, q, k, v, packing))
    with pytest.raises(RuntimeError, match="the target was not differentiated"):
        recorder.finish()
