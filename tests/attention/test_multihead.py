"""Recording models of nn.MultiheadAttention."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import scfast
from scfast.observables import Entropy, HiddenStates, Received, Rollout
from tests.attention.helpers import LENGTHS, MASK, encoder, entropies, expected_rollout, received

pytestmark = [
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors"),
    pytest.mark.filterwarnings("ignore:Support for mismatched"),
]
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def inputs() -> torch.Tensor:
    return torch.randn(*MASK.shape, 32, generator=torch.Generator().manual_seed(2))


def maps_of(
    model: nn.TransformerEncoder, x: torch.Tensor, mask: torch.Tensor | None, causal: bool
) -> list[list[torch.Tensor]]:
    """Per cell, per layer [H, n, n] float64: the weights that nn.MultiheadAttention itself returns."""
    model, x = copy.deepcopy(model).double(), x.double()
    maps = []
    for layer in model.layers:
        h = layer.norm1(x) if layer.norm_first else x
        time = h if layer.self_attn.batch_first else h.transpose(0, 1)
        hidden = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1) if causal else None
        _, weights = layer.self_attn(
            time, time, time, key_padding_mask=mask, attn_mask=hidden, average_attn_weights=False
        )
        maps.append(weights)
        args = {"src_key_padding_mask": mask, "src_mask": hidden}
        out = layer(x if layer.self_attn.batch_first else x.transpose(0, 1), **args)
        x = out if layer.self_attn.batch_first else out.transpose(0, 1)
    lengths = [x.shape[1]] * len(x) if mask is None else LENGTHS
    return [[layer[cell, :, :n, :n].detach() for layer in maps] for cell, n in enumerate(lengths)]


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("causal", [True, False])
def test_encoder(batch_first: bool, norm_first: bool, padded: bool, causal: bool, backend: str) -> None:
    model, x = encoder(batch_first=batch_first, norm_first=norm_first), inputs()
    mask = ~MASK if padded else None
    options: dict[str, object] = {"src_key_padding_mask": mask}
    if causal:
        options |= {"mask": nn.Transformer.generate_square_subsequent_mask(12), "is_causal": True}
    given = x if batch_first else x.transpose(0, 1)
    expected_maps = maps_of(model, x, mask, causal)
    observables = Rollout("mean"), Received(), Entropy(), HiddenStates()
    with torch.no_grad():
        plain = model(given, **options)
        with scfast.record(model, *observables, backend=backend) as rec:
            out = model(given, **options)
        assert_close(model(given, **options), plain, rtol=0, atol=0)
    tokens = MASK if padded else torch.ones_like(MASK)
    out, plain = (y if batch_first else y.transpose(0, 1) for y in (out, plain))
    assert_close(out[tokens], plain[tokens], **CLOSE)
    for cell, layers in enumerate(expected_maps):
        assert_close(rec["rollout"][cell].double(), expected_rollout(layers, "mean"), **CLOSE)
        assert_close(rec["received"][cell].double(), received(layers), **CLOSE)
        assert_close(rec["entropy"][cell].double(), entropies(layers), **CLOSE)
        n = len(rec["rollout"][cell])
        assert_close(rec["hidden_states"][cell][0], x[cell, :n], rtol=0, atol=0)
        assert_close(rec["hidden_states"][cell][-1], out[cell, :n], rtol=0, atol=0)


def test_the_fused_paths_are_back_after_the_block(backend: str) -> None:
    model, x = encoder(), inputs()
    before = {name: dict(vars(module)) for name, module in model.named_modules()}

    def break_off() -> None:
        with scfast.record(model, Rollout(), HiddenStates(), backend=backend):
            assert not model.use_nested_tensor
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        break_off()
    assert model.use_nested_tensor
    for name, module in model.named_modules():
        assert vars(module).keys() == before[name].keys()
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert model(x).shape == x.shape


def test_unbatched_and_plain_attention(backend: str) -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(32, 4, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.attention(x, x, x)[0]

    torch.manual_seed(0)
    model, x = Plain().eval(), inputs()[0]
    with torch.no_grad(), scfast.record(model, Rollout(), backend=backend) as rec:
        out = model(x)
        assert rec["rollout"][0].shape == (12,)
    assert_close(out, model(x).detach(), **CLOSE)
    with (
        pytest.raises(NotImplementedError, match="TransformerEncoderLayer only"),
        scfast.record(model, HiddenStates(), backend=backend),
    ):
        pass


def test_gradients_pass_through(backend: str) -> None:
    model, x = encoder(), inputs().requires_grad_()

    def gradient() -> torch.Tensor:
        (grad,) = torch.autograd.grad(model(x, src_key_padding_mask=~MASK)[MASK].square().sum(), x)
        return grad

    expected = gradient()
    with scfast.record(model, Rollout(), Entropy(), backend=backend):
        assert_close(gradient(), expected, rtol=1e-3, atol=1e-5)


def test_other_threads_run_unrecorded(backend: str) -> None:
    model, x, results = encoder(), inputs(), []

    def other() -> None:
        with torch.no_grad():
            results.append(model(x))

    with torch.no_grad(), scfast.record(model, Rollout(), backend=backend) as rec:
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert rec["rollout"] == []
    assert_close(results[0], model(x).detach(), **CLOSE)


def attention_call(
    backend: str, module: nn.MultiheadAttention, *args: torch.Tensor, **options: object
) -> None:
    with torch.no_grad(), scfast.record(module, Received(), backend=backend):
        module(*args, **options)


def test_what_is_not_implemented_is_refused_by_name(backend: str) -> None:
    x = inputs()
    plain = nn.MultiheadAttention(32, 4, batch_first=True).eval()
    with pytest.raises(NotImplementedError, match="cross-attention"):
        attention_call(backend, plain, x, x + 1, x)
    with pytest.raises(NotImplementedError, match="float masks"):
        attention_call(backend, plain, x, x, x, key_padding_mask=(~MASK).float())
    with pytest.raises(NotImplementedError, match="attention masks other"):
        attention_call(backend, plain, x, x, x, attn_mask=torch.eye(12).bool())
    with pytest.raises(NotImplementedError, match="add_bias_kv"):
        attention_call(backend, nn.MultiheadAttention(32, 4, add_bias_kv=True, batch_first=True), x, x, x)
    with pytest.raises(NotImplementedError, match="dropout"):
        attention_call(backend, nn.MultiheadAttention(32, 4, dropout=0.1, batch_first=True), x, x, x)
    with pytest.raises(NotImplementedError, match="kdim"):
        attention_call(backend, nn.MultiheadAttention(32, 4, kdim=16, vdim=16, batch_first=True), x, x, x)


def test_a_bool_mask_that_hides_nothing_is_taken(backend: str) -> None:
    x, plain = inputs(), nn.MultiheadAttention(32, 4, batch_first=True).eval()
    attention_call(backend, plain, x, x, x, attn_mask=torch.zeros(12, 12, dtype=torch.bool))


def test_layers_that_are_not_reached_are_reported(backend: str) -> None:
    class Half(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare = (nn.MultiheadAttention(32, 4, batch_first=True) for _ in range(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x, x, x)[0]

    model = Half().eval()
    with (
        torch.no_grad(),
        scfast.record(model, Received(), backend=backend),
        pytest.raises(RuntimeError, match="1 of 2 attention layers"),
    ):
        model(inputs())
