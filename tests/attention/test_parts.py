"""What surrounds the attention of a layer: where models say it is, it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch.testing import assert_close

import scfast
from scfast.attention import LayerAttention, Recorder
from scfast.observables import HiddenStates, MixingRatio, Observable
from scfast.ops import AttentionOutput
from tests.attention.helpers import MASK, encoder, pretrained, tokens

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


class Surroundings(Observable):
    """Keeps what each layer was said to be surrounded by."""

    name = "surroundings"
    needs_parts = True

    def begin(self, batch: object) -> None:
        self.layers: list[LayerAttention] = []
        self.norm_inputs: dict[tuple[int, str], torch.Tensor] = {}

    def on_layer(self, attention: LayerAttention, output: AttentionOutput | None) -> None:
        self.layers.append(attention)

    def on_norm_input(self, layer: int, norm: str, x: torch.Tensor) -> None:
        self.norm_inputs[layer, norm] = x

    def finish(self) -> torch.Tensor:
        return torch.zeros(self.layers[0].packing.total_q)


def record(model: nn.Module, *args: Any, **kwargs: Any) -> tuple[Surroundings, list[torch.Tensor]]:
    with torch.no_grad(), scfast.record(model, Surroundings(), HiddenStates()) as rec:
        model(*args, **kwargs)
    seen = next(x for x in rec.observables if isinstance(x, Surroundings))
    return seen, list(rec.batch["hidden_states"])


def check_post_norm(seen: Surroundings, states: list[torch.Tensor], biases: list[torch.Tensor]) -> None:
    """Each layer's own arithmetic, redone from what was handed over."""
    for number, layer in enumerate(seen.layers):
        parts = layer.parts
        assert parts is not None
        assert parts.post_norm
        assert layer.out is not None
        assert_close(layer.hidden_in, states[number])
        attended = layer.out.flatten(1) @ parts.projection.T + biases[number] + layer.hidden_in
        assert_close(seen.norm_inputs[number, "attention"], attended, **CLOSE)
        last = seen.norm_inputs[number, "output"]
        normed = parts.output_norm.part(last) / parts.output_norm.sigma(last)[:, None]
        assert_close(normed + parts.output_norm.bias, states[number + 1], **CLOSE)


FAMILIES = {
    "BertLayer": lambda sizes: transformers.BertModel(transformers.BertConfig(**sizes)),
    "RobertaLayer": lambda sizes: transformers.RobertaModel(transformers.RobertaConfig(**sizes)),
    "XLMRobertaLayer": lambda sizes: transformers.XLMRobertaModel(transformers.XLMRobertaConfig(**sizes)),
    "CamembertLayer": lambda sizes: transformers.CamembertModel(transformers.CamembertConfig(**sizes)),
    "ElectraLayer": lambda sizes: transformers.ElectraModel(transformers.ElectraConfig(**sizes)),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_bert_like_layers(family: str) -> None:
    sizes = {
        "vocab_size": 50, "hidden_size": 32, "embedding_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": 64,
    }  # fmt: skip
    torch.manual_seed(0)
    model = FAMILIES[family](sizes).eval()
    layers = [module for module in model.modules() if type(module).__name__ == family]
    with torch.no_grad():
        for layer in layers:
            layer.attention.output.dense.bias.normal_()
    seen, states = record(model, input_ids=tokens(), attention_mask=MASK.long())
    check_post_norm(seen, states, [layer.attention.output.dense.bias for layer in layers])


@pytest.mark.parametrize("batch_first", [True, False])
def test_encoder_layers(batch_first: bool) -> None:
    model = encoder(batch_first=batch_first)
    x = torch.randn(4, 12, 32, generator=torch.Generator().manual_seed(2))
    seen, states = record(model, x if batch_first else x.transpose(0, 1), src_key_padding_mask=~MASK[:, :12])
    check_post_norm(seen, states, [layer.self_attn.out_proj.bias for layer in model.layers])


def test_pre_norm_layers_hand_over_the_residual_stream() -> None:
    model = encoder(norm_first=True)
    x = torch.randn(4, 12, 32, generator=torch.Generator().manual_seed(2))
    seen, states = record(model, x, src_key_padding_mask=~MASK)
    assert not seen.norm_inputs
    for number, layer in enumerate(seen.layers):
        assert_close(layer.hidden_in, states[number])
        assert layer.parts is not None
        assert not layer.parts.post_norm
        assert layer.parts.projection is model.layers[number].self_attn.out_proj.weight

    esm = pretrained("esm")
    seen, states = record(esm, input_ids=tokens(), attention_mask=MASK.long())
    for number, layer in enumerate(seen.layers):
        assert_close(layer.hidden_in, states[number])
        assert layer.parts is not None
        assert layer.parts.projection is esm.encoder.layer[number].attention.output.dense.weight
    with pytest.raises(ValueError, match="attnresln-n is undefined for a pre-norm model"):
        record_ratio(esm)


def record_ratio(model: nn.Module) -> Recorder:
    with torch.no_grad(), scfast.record(model, MixingRatio()) as rec:
        model(input_ids=tokens(), attention_mask=MASK.long())
    return rec


def test_layers_that_are_not_declared_are_refused() -> None:
    with pytest.raises(NotImplementedError, match=r"norm-based analysis of this layer \(LlamaAttention\)"):
        record_ratio(pretrained("llama"))


def test_the_model_is_left_as_it_was() -> None:
    model = pretrained("bert")
    record_ratio(model)
    hooks = ("_forward_pre_hooks", "_forward_hooks")
    assert not any(getattr(module, name) for module in model.modules() for name in hooks)
