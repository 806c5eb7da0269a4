"""The recorder's protocol, and the observables other than rollout."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

import scfast
from scfast.attention import LayerAttention, Recorder, ScoreOptions
from scfast.observables import Entropy, HiddenStates, Observable, Received, Rollout
from scfast.reference._maps import prob_maps
from tests.attention.helpers import counted_ops

LENGTHS = (5, 0, 1, 33)
PACKING = scfast.Packing.from_lengths(LENGTHS)


def attention(layer: int, *, with_v: bool = True) -> LayerAttention:
    generator = torch.Generator().manual_seed(layer)
    q, k, v = torch.randn(3, PACKING.total_q, 4, 16, generator=generator).unbind(0)
    bias = torch.randn(PACKING.total_q, generator=generator)
    return LayerAttention(layer, q, k, v if with_v else None, PACKING, ScoreOptions(scale=0.5, key_bias=bias))


def maps(layer: int) -> list[torch.Tensor]:
    a = attention(layer)
    return [p for p, _ in prob_maps(a.q, a.k, PACKING, **a.options.kwargs())]


@pytest.mark.parametrize("with_last_v", [True, False])
def test_received_and_entropy(with_last_v: bool, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    each, summed = Received(per_layer=True, name="each"), Received(per_layer=True, heads="sum", name="summed")
    recorder = Recorder([Received(), each, summed, Entropy()], backend=backend)
    recorder.begin(2, PACKING)
    with counted_ops(monkeypatch) as calls:
        assert recorder.attend(attention(0)).shape == (39, 4, 16)
        out = recorder.attend(attention(1, with_v=with_last_v))
        recorder.finish()
    assert (out is not None) == with_last_v
    stopped = {"attention_forward": 1, "attention_colsum": 1, "attention_rowstats": 1}
    assert calls == ({"attention_forward": 2} if with_last_v else stopped)
    for cell, layers in enumerate(zip(maps(0), maps(1), strict=True)):
        both = torch.stack(layers)
        assert_close(recorder["received"][cell].double(), both.sum((0, 1, 2)), rtol=1e-5, atol=1e-6)
        assert_close(recorder["each"][cell].double(), both.sum(2), rtol=1e-5, atol=1e-6)
        assert_close(recorder["summed"][cell].double(), both.sum((1, 2)), rtol=1e-5, atol=1e-6)
        entropy = torch.special.entr(both).sum(-1).transpose(1, 2)
        assert_close(recorder["entropy"][cell].double(), entropy, rtol=1e-4, atol=1e-5)
        n = LENGTHS[cell]
        assert_close(recorder["received"][cell].sum().item(), 2.0 * 4 * n, rtol=1e-5, atol=0)


def test_received_sums_heads_or_keeps_them() -> None:
    with pytest.raises(ValueError, match="heads='mean' is unknown; use 'none' or 'sum'"):
        Received(per_layer=True, heads="mean")


def test_nothing_is_computed_that_nobody_wants(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    recorder = Recorder([Rollout("mean")], backend=backend)
    recorder.begin(2, PACKING)
    assert not recorder.needs_output
    with counted_ops(monkeypatch) as calls:
        recorder.attend(attention(0))
        assert recorder.attend(attention(1, with_v=False)) is None
        assert calls == {"attention_forward": 1}
        recorder.finish()
    assert calls == {"attention_forward": 1, "attention_colsum": 2}


def states(layer: int) -> torch.Tensor:
    return torch.arange(39 * 8).reshape(39, 8).float() + 1000 * layer


@pytest.mark.parametrize("layers", [None, -1, 0, [0, -2], (2,)])
@pytest.mark.parametrize("pool", [None, "cls", "mean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hidden_states(layers: int | list[int] | None, pool: str | None, dtype: torch.dtype) -> None:
    recorder = Recorder([HiddenStates(layers, pool=pool)])
    kind = torch.zeros(39, dtype=torch.uint8)
    kind[0] = 1
    recorder.begin(2, PACKING, kind=kind, cls_position=0)
    wanted = {None: [0, 1, 2], -1: [2], 0: [0]}.get(layers) if not isinstance(layers, list | tuple) else None
    wanted = wanted or {(0, -2): [0, 1], (2,): [2]}[tuple(layers)]
    assert [layer for layer in range(3) if recorder.wants_hidden(layer)] == wanted
    assert recorder.needs_output == (2 in wanted)
    for layer in range(3):
        recorder.hidden(layer, states(layer).to(dtype))
    recorder.finish()
    for cell, n in enumerate(LENGTHS):
        rows = torch.stack([PACKING.split_q(states(layer).to(dtype))[cell] for layer in wanted])
        if pool == "cls":
            rows = rows[:, 0].float() if n else torch.zeros(len(wanted), 8)
        if pool == "mean":
            rows = rows.float()[:, 1 if cell == 0 else 0 :].sum(1) / max(n - (cell == 0), 1)
        expected = rows[0] if isinstance(layers, int) else rows
        assert_close(recorder["hidden_states"][cell], expected, rtol=1e-5, atol=1e-3)


def test_pooling_does_not_touch_what_is_not_read() -> None:
    recorder = Recorder([HiddenStates(0, pool="cls")])
    recorder.begin(1, PACKING, cls_position=0)
    poisoned = torch.full((39, 2), torch.nan)
    poisoned[list(PACKING.starts_q)] = 1.0
    recorder.hidden(0, poisoned)
    recorder.finish()
    assert recorder.batch["hidden_states"].tolist() == [[1, 1], [0, 0], [1, 1], [1, 1]]


def test_observables_are_not_shared_between_recorders() -> None:
    rollout = Rollout("mean")
    first, second = (
        Recorder([rollout], backend="reference"),
        Recorder([rollout], backend="reference", keep=False),
    )
    first.begin(1, PACKING)
    second.begin(1, scfast.Packing.from_lengths([2]))
    first.attend(attention(0))
    first.finish()
    assert [len(scores) for scores in first["rollout"]] == list(LENGTHS)
    assert second["rollout"] == []


def test_without_keep_only_the_last_batch_is_held() -> None:
    recorder = Recorder([Received()], backend="reference", keep=False)
    for _ in range(2):
        recorder.begin(1, PACKING)
        recorder.attend(attention(0))
        recorder.finish()
    assert recorder["received"] == []
    assert recorder.batch["received"].shape == (39,)


def test_own_observables() -> None:
    class SelfAttention(Observable):
        name = "largest"
        sinks = frozenset({"max"})

        def on_layer(self, attention: LayerAttention, output: scfast.ops.AttentionOutput | None) -> None:
            self.value = output.max.mean(1)

        def finish(self) -> torch.Tensor:
            return self.value

    recorder = Recorder([SelfAttention()], backend="reference")
    recorder.begin(1, PACKING)
    recorder.attend(attention(0))
    recorder.finish()
    expected = torch.cat([p.amax(-1).mean(0) for p in maps(0) if p.numel()])
    assert_close(recorder.batch["largest"].double(), expected, rtol=1e-5, atol=1e-6)


def test_the_protocol_is_checked() -> None:
    with pytest.raises(ValueError, match="two observables are called 'rollout'"):
        Recorder([Rollout(), Rollout("mean")])
    recorder = Recorder([Rollout("mean"), HiddenStates(1, name="one")], backend="reference")
    with pytest.raises(KeyError, match="nothing called 'entropy'"):
        recorder["entropy"]
    with pytest.raises(RuntimeError, match="no batch has begun"):
        recorder.attend(attention(0))
    with pytest.raises(ValueError, match=r"kind must have shape \(39,\), got \(3,\)"):
        recorder.begin(2, PACKING, kind=torch.zeros(3))
    recorder.begin(2, PACKING)
    with pytest.raises(RuntimeError, match="layer 1 of 2 was reported where layer 0"):
        recorder.attend(attention(1))
    recorder.attend(attention(0))
    with pytest.raises(RuntimeError, match="1 of the model's 2 layers"):
        recorder.finish()
    recorder.attend(attention(1))
    with pytest.raises(RuntimeError, match="layer 2 of 2 was reported"):
        recorder.attend(attention(2))
    with pytest.raises(ValueError, match=r"packed as \[39, d\]"):
        recorder.hidden(1, torch.zeros(2, 3, 4))
    with pytest.raises(RuntimeError, match=r"no hidden state for \[1\]"):
        recorder.finish()
    with pytest.raises(ValueError, match="HiddenStates layer 3 does not exist"):
        Recorder([HiddenStates(3)]).begin(2, PACKING)
    with pytest.raises(ValueError, match="pool='max' is unknown"):
        HiddenStates(pool="max")
