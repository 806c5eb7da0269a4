"""Packed post-norm layers are those of nn.TransformerEncoder, whatever biases their scores."""

from __future__ import annotations

import copy

import pytest
import torch

from scfast import Packing
from scfast.attention import Recorder, ScoreOptions
from scfast.models import torch_layers
from scfast.models.encoder import PackedEncoder
from scfast.observables import HiddenStates, Received

WIDTH, HEADS, FFN, LAYERS = 32, 4, 48, 3
LENGTHS = (33, 7, 1, 0, 18)


def module(activation: str = "relu", seed: int = 0) -> torch.nn.TransformerEncoder:
    """An encoder with weights, biases and norms drawn at random, every layer its own."""
    torch.manual_seed(seed)
    layer = torch.nn.TransformerEncoderLayer(
        WIDTH, HEADS, FFN, batch_first=True, activation=activation, dropout=0.0
    )
    encoder = torch.nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
    for parameter in encoder.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return encoder.eval()


def packed(encoder: torch.nn.TransformerEncoder, activation: str = "relu") -> PackedEncoder:
    layers = torch_layers.from_tensors(encoder.state_dict(), "layers.", LAYERS)
    return PackedEncoder(layers, HEADS, activation, eps=1e-5)


def by_torch(
    encoder: torch.nn.TransformerEncoder, cells: list[torch.Tensor], masks: list[torch.Tensor]
) -> list[torch.Tensor]:
    """States [T, d] around every layer, cell by cell, with a mask that is added to scores."""
    states = [torch.cat(cells)]
    for layer in encoder.layers:
        # with gradients on, the layer computes what its formula says, not the fused path
        cells = [
            layer(x[None], src_mask=mask)[0].detach() if len(x) else x
            for x, mask in zip(cells, masks, strict=True)
        ]
        states.append(torch.cat(cells))
    return states


class _Output(Recorder):
    """Observes nothing, and has the last states computed."""

    @property
    def needs_output(self) -> bool:
        return True


def run(encoder: PackedEncoder, x: torch.Tensor, options: ScoreOptions | None, block: int | None) -> Recorder:
    recorder = Recorder([HiddenStates(), Received()])
    packing = Packing.from_lengths(LENGTHS)
    with torch.no_grad():
        recorder.begin(encoder.n_layers, packing)
        encoder.forward(x, packing, recorder, options, block)
        recorder.finish()
    return recorder


@pytest.mark.parametrize("block", [None, 13])
@pytest.mark.parametrize(
    ("activation", "scores"), [("relu", "plain"), ("gelu", "key_bias"), ("relu", "causal")]
)
def test_states_are_those_of_torch(activation: str, scores: str, block: int | None) -> None:
    encoder = module(activation)
    x = torch.randn(sum(LENGTHS), WIDTH)
    bias = torch.randn(sum(LENGTHS)).round()
    masks = [torch.zeros(n, n) for n in LENGTHS]
    options = None
    if scores == "key_bias":
        masks = [part[None].expand(len(part), -1) for part in bias.split(LENGTHS)]
        options = ScoreOptions(key_bias=bias)
    elif scores == "causal":
        masks = [torch.full((n, n), -torch.inf).triu(1) for n in LENGTHS]
        options = ScoreOptions(causal=True)
    cells = list(x.split(LENGTHS))
    plain = by_torch(encoder, cells, masks)
    exact = by_torch(
        copy.deepcopy(encoder).double(), [c.double() for c in cells], [m.double() for m in masks]
    )
    got = run(packed(encoder, activation), x, options, block).batch["hidden_states"]
    assert len(got) == LAYERS + 1
    for ours, theirs, truth in zip(got, plain, exact, strict=True):
        allowed = 2 * (theirs - truth).abs().max() + 2e-6
        assert (ours - truth).abs().max() <= allowed


def test_last_states_of_some_tokens_are_those_of_all() -> None:
    encoder, packing = packed(module("gelu"), "gelu"), Packing.from_lengths(LENGTHS)
    x, rows = torch.randn(sum(LENGTHS), WIDTH), torch.tensor([0, 3, 32, 33, 40, 41, 58])

    def last(**options: object) -> torch.Tensor:
        recorder = _Output([])
        recorder.begin(LAYERS, packing)
        states = encoder.forward(x, packing, recorder, **options)
        recorder.finish()
        return states

    # the same bits for twenty seeds; a product of fewer rows may be summed in another order, states reach 3.3
    torch.testing.assert_close(last(rows=rows), last()[rows], rtol=0, atol=2e-6)
    with pytest.raises(ValueError, match="rows= is not for causal scores"):
        last(rows=rows, options=ScoreOptions(causal=True))


def test_layers_are_views_of_the_tensors() -> None:
    tensors = module().state_dict()
    for layer, number in zip(
        torch_layers.from_tensors(tensors, "layers.", LAYERS), range(LAYERS), strict=True
    ):
        fused = tensors[f"layers.{number}.self_attn.in_proj_weight"]
        assert layer.qk.weight.data_ptr() == fused.data_ptr()
        assert layer.v.weight.untyped_storage().data_ptr() == fused.untyped_storage().data_ptr()
        assert torch.equal(torch.cat([layer.qk.weight, layer.v.weight]), fused)


def test_names_and_shapes_are_those_of_torch() -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in module().state_dict().items()}
    assert torch_layers.shapes("layers.", LAYERS, WIDTH, FFN) == expected


def test_fresh_weights_are_distributed_as_those_of_torch() -> None:
    shapes = torch_layers.shapes("layers.", 1, 128, 192)
    ours = torch_layers.initialised(shapes, torch.Generator().manual_seed(1))
    torch.manual_seed(1)
    theirs = torch.nn.TransformerEncoderLayer(128, 4, 192).state_dict()
    for name, weight in theirs.items():
        mine = ours[f"layers.0.{name}"]
        assert mine.shape == weight.shape
        if weight.std() == 0:
            assert torch.equal(mine, weight), name
            continue
        spread = float(weight.abs().max())
        deviation = spread / (3 * weight.numel()) ** 0.5  # of a mean of uniform numbers within +- spread
        assert float(mine.abs().max()) == pytest.approx(spread, rel=0.05), name
        assert abs(float(mine.mean())) <= 6 * deviation, name
