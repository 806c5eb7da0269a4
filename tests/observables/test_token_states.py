"""TokenStates: several readouts of every layer, against the states themselves."""

from __future__ import annotations

import pytest
import torch

from scfast.attention.recorder import Recorder
from scfast.observables import HiddenStates, TokenStates
from tests.toy import toy_adata, toy_source

ADATA, SOURCE = toy_adata(), toy_source(cls=True)
TOKENS = SOURCE.tokenize(ADATA.X, ADATA.var)


def record(*observables):
    recorder = Recorder(list(observables), keep=False, check=True)
    with torch.inference_mode():
        SOURCE.forward(TOKENS, recorder)
    return recorder.batch


def test_equal_weighted_states():
    weights = torch.rand(3, TOKENS.n_tokens)
    weights[1] = 0
    starts = list(TOKENS.packing.starts_q)
    weights[1, starts[:-3]] = 1.0  # the last cells lack this readout
    found = record(TokenStates(weights), HiddenStates())
    states, expected = found["token_states"], found["hidden_states"]
    assert states.shape == (23, 4, 3, 16)
    assert states.dtype == torch.float32
    for cell, (start, length) in enumerate(zip(starts, TOKENS.lengths, strict=True)):
        here = slice(start, start + length)
        for readout in range(3):
            if readout == 1 and cell >= 20:
                assert states[cell, :, 1].isnan().all()
                continue
            mine = torch.einsum("t,ktd->kd", weights[readout, here].double(), expected[:, here].double())
            torch.testing.assert_close(states[cell, :, readout].double(), mine, rtol=1e-5, atol=1e-6)


def test_some_layers_in_their_order():
    weights = torch.ones(1, TOKENS.n_tokens)
    some = record(TokenStates(weights, [3, 0]))["token_states"]
    every = record(TokenStates(weights))["token_states"]
    torch.testing.assert_close(some, every[:, [3, 0]], rtol=0, atol=0)


def test_bad_weights_and_layers():
    with pytest.raises(ValueError, match="finite and"):
        TokenStates(torch.ones(4))
    with pytest.raises(ValueError, match="over 5 tokens"):
        record(TokenStates(torch.ones(1, 5)))
    with pytest.raises(ValueError, match="layer 4 does not exist"):
        record(TokenStates(torch.ones(1, TOKENS.n_tokens), [4]))


def test_states_that_are_nan_are_refused():
    recorder = Recorder([TokenStates(torch.ones(2, TOKENS.n_tokens))], keep=False, check=False)
    with torch.inference_mode():
        SOURCE.forward(TOKENS, recorder)
    packed = recorder.batch["token_states"].clone()
    packed[2, 3, 1, 0] = torch.nan
    with pytest.raises(ValueError, match=r"after layers \[3\] are nan or infinite in 1 of 23 cells"):
        recorder.check({"token_states": packed})
