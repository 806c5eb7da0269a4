"""Tiles are timed on a real GPU, a few of them."""

from __future__ import annotations

import tomllib

import pytest
import torch

from scfast.bench import tune

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("visit", ["colsum", "backward keys"])
def test_cuda_tiles_are_timed_and_right(visit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SIDES": (32, 64), "WARPS": (4,), "STAGES": (1, 2), "ROUNDS": 3}.items():
        monkeypatch.setattr(tune, name, value)
    device = torch.device("cuda", 0)
    gpu = tune.gpu_to_tune(device)
    shape = tune.Shape(visit, torch.bfloat16, 64)
    found = tune.tune(shape, gpu, tune.Bench(shape, device, lengths=[512] * 4), tune.machine(device))
    assert 0 < found.seconds <= found.present_seconds
    assert not [reason for reason in found.refused.values() if "off by" in reason]
    (row,) = tomllib.loads(found.row())["row"]
    assert row["gpus"] == [gpu]
