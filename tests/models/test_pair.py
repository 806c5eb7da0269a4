"""A pair of models reports the layers of both, and what is refused."""

from __future__ import annotations

import pytest
import torch

from scfast.attention import Recorder
from scfast.models.pair import ModelPair
from scfast.observables import Entropy, HiddenStates, MapShift, Received, ReceivedShift
from tests.toy import toy_adata, toy_source


def record(source, *observables):
    adata = toy_adata()
    recorder = Recorder(observables)
    with torch.inference_mode():
        source.forward(source.tokenize(adata.X, adata.var), recorder)
    return recorder.batch


@pytest.mark.parametrize("cls", [False, True])
def test_layers_of_both_models(cls):
    first, second = toy_source(cls=cls), toy_source(cls=cls, seed=7)
    pair = ModelPair(first, second)
    got = record(pair, Received(per_layer=True), Entropy(), ReceivedShift(), MapShift())
    parts = [
        record(source, Received(per_layer=True), Entropy(), Received(name="sum"))
        for source in (first, second)
    ]
    for name in ("received", "entropy"):
        assert torch.equal(got[name], torch.cat([part[name] for part in parts]))
    shift = got["received_shift"]
    for row, part in zip(shift, parts, strict=False):
        torch.testing.assert_close(row, part["sum"])
    torch.testing.assert_close(shift[2], shift[1] - shift[0], rtol=1e-4, atol=1e-5)
    assert got["map_shift"].shape == (23, 3, 2, 3)
    assert (pair.n_layers, pair.n_heads, pair.name) == (6, 2, "toy and toy")


def test_memory_is_that_of_the_larger_model():
    first, second = toy_source(), toy_source(seed=7)
    second.bytes_per_token = lambda: {"activations": 5000, "qk_per_layer": 999, "hidden": 1}
    assert ModelPair(first, second).bytes_per_token() == {
        "activations": 5000,
        "qk_per_layer": 128,
        "hidden": 64,
    }


def test_moved_and_untrained():
    pair = ModelPair(toy_source(), toy_source(seed=7))
    assert pair.to("cpu") is pair
    moved = pair.to("meta")
    assert moved.first.device.type == moved.second.device.type == moved.device.type == "meta"
    fresh = pair.untrained(2)
    assert not torch.equal(fresh.first.table, fresh.second.table)
    with pytest.raises(ValueError, match=r"toy is on cpu and toy on meta: move them together"):
        ModelPair(pair.first, moved.second)


def test_hidden_states_are_refused():
    pair = ModelPair(toy_source(), toy_source(seed=7))
    with pytest.raises(ValueError, match="reports attention, not hidden states"):
        record(pair, HiddenStates(1))


def test_a_broken_map_is_refused():
    second = toy_source(seed=7)
    second.weights[0, 0, 0, 0] = torch.nan
    with pytest.raises(RuntimeError, match="not finite"):
        record(ModelPair(toy_source(), second), MapShift())
