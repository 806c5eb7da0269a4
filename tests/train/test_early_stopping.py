"""The weights of the lowest figure are kept, and training ends when it is not undercut in time."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from scfast.train.early_stopping import EarlyStopping


def test_the_best_weights_come_back_and_patience_ends_the_run(tmp_path: Path) -> None:
    model = torch.nn.Linear(1, 1)
    model.bias.requires_grad_(False)
    stopping = EarlyStopping(model, tmp_path / "new" / "best.safetensors", 2, "loss")
    history: list[dict[str, float]] = []
    ended = []
    for weight, loss in ((1.0, 3.0), (2.0, math.nan), (3.0, 2.0), (4.0, 2.0), (5.0, 2.5)):
        torch.nn.init.constant_(model.weight, weight)
        history.append({"loss": loss})
        ended.append(stopping(history))
    assert ended == [False, False, False, False, True]
    bias = model.bias.clone()
    stopping.restore()
    assert model.weight.item() == 3.0
    assert torch.equal(model.bias, bias)
    assert stopping.best(history) is history[2]
