"""Atomic checkpoints of a training run: safetensors and JSON only, so that reading one can run nothing."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


def write_atomically(path: Path, text: str) -> None:
    """Write ``text`` so that a reader, or a killed writer, never leaves half a file at ``path``."""
    part = path.with_name(path.name + ".part")
    with part.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def save(
    folder: Path, step: int, model: torch.nn.Module, optimiser: torch.optim.Optimizer, record: dict[str, Any]
) -> None:
    """Write weights, optimiser moments and ``record`` as ``folder/step-<step>``; drop older ones."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".step-{step:08d}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    parameters = dict(model.named_parameters())  # a tied weight appears once
    save_file(
        {name: p.detach().contiguous() for name, p in parameters.items()}, part / "parameters.safetensors"
    )
    moments = {
        f"{name}:{key}": value.detach().contiguous()
        for name, p in parameters.items()
        for key, value in optimiser.state.get(p, {}).items()
    }
    save_file(moments, part / "optimiser.safetensors")
    write_atomically(part / "record.json", json.dumps({"step": step, **record}))
    final = folder / f"step-{step:08d}"
    shutil.rmtree(final, ignore_errors=True)
    part.rename(final)
    for old in sorted(folder.glob("step-*")):
        if old != final:
            shutil.rmtree(old)


def load(folder: Path, model: torch.nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Any] | None:
    """Put the newest checkpoint into ``model`` and ``optimiser``; its record, or None when there is none."""
    newest = max(folder.glob("step-*"), default=None)
    if newest is None:
        return None
    saved = load_file(newest / "parameters.safetensors")
    parameters = dict(model.named_parameters())
    there, here = ({name: tuple(p.shape) for name, p in of.items()} for of in (saved, parameters))
    if there != here:
        difference = sorted({name for name, _ in there.items() ^ here.items()})
        raise ValueError(
            f"the checkpoint {newest} is of another model: it differs in {', '.join(difference[:3])}; "
            "continue with the settings it was started with, or start again with resume=False"
        )
    with torch.no_grad():
        for name, p in parameters.items():
            p.copy_(saved[name])
    moments = load_file(newest / "optimiser.safetensors")
    for name, p in parameters.items():
        own = {key.rpartition(":")[2]: x for key, x in moments.items() if key.rpartition(":")[0] == name}
        # The count of steps is a scalar, which optimisers keep on the host.
        optimiser.state[p] = {key: x.to(p.device) if x.dim() else x for key, x in own.items()}
    return json.loads((newest / "record.json").read_text())
