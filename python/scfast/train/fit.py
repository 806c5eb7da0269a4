"""What every training run does: seeded streams, batches in a new order each epoch, checkpoints, a log."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from safetensors.torch import save_file

from scfast.models.checkpoint import WEIGHT_FILES
from scfast.models.text_files import read_json, shown
from scfast.packing import Packing
from scfast.train import checkpoint
from scfast.train.masking import TokenisedCells, random_batches
from scfast.train.rehearsal import announce

#: Random streams; a step's numbers depend on (seed, stream, step) alone, so a resumed run repeats them.
SPLIT, EPOCH, MASKING, DROPOUT, HELD_OUT, HEAD, BASELINE = range(7)

#: Called at each evaluation with the new entry of the log's history.
Progress = Callable[[dict[str, float]], None]

#: What :func:`fit` descends.
Loss: TypeAlias = Callable[[int, np.ndarray], "torch.Tensor | Iterable[torch.Tensor]"]

#: Part of a run's identity -> what errors call it.
IDENTITY = {
    "data": "the tokens of the cells",
    "labels": "the cells' labels or parts",
    "weights": "the weights it starts from",
}


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """What the settings of every training begin with; with the others they decide the result, given the cells.

    Attributes
    ----------
    steps, batch_tokens
        Optimiser steps of the whole run, and tokens of each.
    lr, warmup
        Largest learning rate, and the share of the steps over which it rises.
    clip
        Largest norm of the gradient.
    seed
        Of everything drawn at random.
    """

    steps: int
    batch_tokens: int
    lr: float
    seed: int
    warmup: float = 0.1
    clip: float = 1.0


def rng(seed: int, stream: int, number: int = 0) -> np.random.Generator:
    """The generator of one stream at one step."""
    return np.random.default_rng([seed, stream, number])


def learning_rate(step: int, schedule: Schedule) -> float:
    """Linear warm-up, then cosine decay to zero."""
    warmup = max(1, round(schedule.warmup * schedule.steps))
    if step < warmup:
        return schedule.lr * (step + 1) / warmup
    done = (step - warmup) / max(1, schedule.steps - warmup)
    return schedule.lr * 0.5 * (1 + math.cos(math.pi * done))


def adamw(parameters: Iterable[torch.nn.Parameter], lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW that does not decay biases and layer norms."""
    parameters = list(parameters)
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), foreach=True)


def packed_states(bert: torch.nn.Module, ids: torch.Tensor, packing: Packing) -> torch.Tensor:
    """Last hidden states [T, d] of a Hugging Face BERT over cells laid end to end, ids [T]: no padding."""
    longest = max(packing.lengths_q)
    output = bert(
        input_ids=ids[None],
        position_ids=packing.position_of_query()[None],
        cu_seq_lens_q=packing.cu_seqlens_q, cu_seq_lens_k=packing.cu_seqlens_k,
        max_length_q=longest, max_length_k=longest,
    )  # fmt: skip
    return output.last_hidden_state[0]


class Epochs:
    """Endless batches of rows, a new seeded order each time all cells were seen.

    Attributes
    ----------
    number
        Epochs begun.
    """

    def __init__(self, lengths: np.ndarray, batch_tokens: int, seed: int):
        self.lengths, self.batch_tokens, self.seed = lengths, batch_tokens, seed
        self.number = 0
        self._left: list[np.ndarray] = []

    def next(self) -> np.ndarray:
        """Rows of the next batch."""
        if not self._left:
            self._left = self._batches(self.number)[::-1]
            self.number += 1
        return self._left.pop()

    @property
    def ended(self) -> bool:
        """Whether all cells were seen as often as each other."""
        return not self._left

    def steps(self, epochs: int) -> int:
        """Batches of the first epochs together; they differ in number, as batches depend on the order."""
        return sum(len(self._batches(number)) for number in range(epochs))

    def _batches(self, number: int) -> list[np.ndarray]:
        return random_batches(self.lengths, self.batch_tokens, rng(self.seed, EPOCH, number))

    def skip(self, steps: int) -> None:
        """Pass over the batches of a run's first steps."""
        for _ in range(steps):
            self.next()


def steps_of_epochs(lengths: np.ndarray, batch_tokens: int, epochs: int) -> int:
    """Optimiser steps of that many passes over cells of these lengths, about: batches vary with the order."""
    usable = lengths[lengths > 0]
    return epochs * len(random_batches(usable, batch_tokens, rng(0, EPOCH)))


def fit(
    model: torch.nn.Module,
    optimiser: torch.optim.Optimizer,
    folder: Path,
    schedule: Schedule,
    log: dict[str, Any],
    *,
    epochs: Epochs,
    loss: Loss,
    evaluate: Callable[[], Mapping[str, float]],
    every: int | None = None,
    progress: Progress | None = None,
    stop_after: int | None = None,
    enough: Callable[[list[dict[str, float]]], bool] | None = None,
) -> tuple[dict[str, Any], bool]:
    """Train, from the newest checkpoint in ``folder/checkpoints`` where there is one.

    Parameters
    ----------
    model, optimiser
        Changed in place.
    folder
        Of the run.
    schedule
        The settings.
    log
        What a fresh run's log holds, its identity (see :func:`identity`), ``history`` and ``seconds`` included.
    epochs
        Gives the rows of each batch.
    loss
        (step, rows) -> loss to descend, a scalar with a graph; or terms of it, each differentiated before the next is
        asked for, so that one graph exists at a time. torch's generator is seeded for the step.
    evaluate
        Figures for the log's history.
    every
        Steps between evaluations, and checkpoints; None: the end of each epoch. The last step has one too.
    progress
        Called with each entry of the history.
    stop_after
        Stop, with a checkpoint, after this many steps in all: a rehearsal of a kill.
    enough
        Looks at the history after each evaluation; True ends the run.

    Returns
    -------
    The log, and whether the run came to its end rather than to ``stop_after``.
    """
    record = checkpoint.load(folder / "checkpoints", model, optimiser)
    step = 0
    if record is not None:
        require_same(log, record["log"], folder)
        step, log = record["step"], record["log"]
    epochs.skip(step)
    started, loss_sum, loss_count = time.perf_counter(), 0.0, 0
    seconds_before, history = log["seconds"], log["history"]
    done = step == schedule.steps or bool(history and enough is not None and enough(history))
    with torch.random.fork_rng(devices=[]):
        while not done:
            rows = epochs.next()
            torch.manual_seed(int(rng(schedule.seed, DROPOUT, step).integers(2**62)))
            loss_sum += _descend(model, optimiser, loss, step, rows, schedule)
            loss_count += 1
            step += 1
            done = step == schedule.steps
            killed = stop_after is not None and step >= stop_after
            due = epochs.ended if every is None else step % every == 0
            if due or done or killed:
                entry: dict[str, float] = {
                    "step": step,
                    "steps": schedule.steps,
                    "epoch": epochs.number,
                    "train_loss": loss_sum / loss_count,
                    **evaluate(),
                    "seconds": seconds_before + time.perf_counter() - started,
                }
                loss_sum, loss_count = 0.0, 0
                history.append(entry)
                log["seconds"] = entry["seconds"]
                done |= enough is not None and enough(history)
                checkpoint.save(folder / "checkpoints", step, model, optimiser, {"log": log})
                if progress is not None:
                    progress(entry)
            if killed:
                return log, False
    return log, True


def _descend(
    model: torch.nn.Module,
    optimiser: torch.optim.Optimizer,
    loss: Loss,
    step: int,
    rows: np.ndarray,
    schedule: Schedule,
) -> float:
    model.train()
    for group in optimiser.param_groups:
        group["lr"] = learning_rate(step, schedule)
    optimiser.zero_grad(set_to_none=True)
    value, parts = 0.0, loss(step, rows)
    for part in [parts] if isinstance(parts, torch.Tensor) else parts:
        part.backward()
        value += float(part.detach())
    torch.nn.utils.clip_grad_norm_(model.parameters(), schedule.clip)
    optimiser.step()
    return value


def identity(settings: Any, **parts: str) -> dict[str, Any]:
    """What tells one run from another: its settings, a dataclass, and fingerprints named in IDENTITY."""
    return {"settings": json.loads(json.dumps(asdict(settings))), **parts}


def fingerprint(*arrays: np.ndarray) -> str:
    """SHA-256 of integers, to tell whether a run in a folder saw the same cells or labels."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array, dtype="<i8").tobytes())
    return digest.hexdigest()


def fingerprint_cells(cells: TokenisedCells) -> str:
    """SHA-256 of the tokens."""
    return fingerprint(cells.offsets, cells.ids)


def fingerprint_weights(model: torch.nn.Module) -> str:
    """SHA-256 of the parameters."""
    digest = hashlib.sha256()
    for name, p in model.named_parameters():
        digest.update(name.encode() + p.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def claim(folder: Path, log: Mapping[str, Any]) -> None:
    """Refuse a folder that holds a model which is no run of this kind, and would be overwritten.

    Raises
    ------
    ValueError
        When there are weights without a log or checkpoints, or the log of another kind of training.
    """
    file = folder / "training_log.json"
    if file.exists():
        if set(read_log(file)["settings"]) != set(log["settings"]):
            raise ValueError(
                f"{folder} holds a training run of another kind, which would be overwritten: give another folder"
            )
    elif not (folder / "checkpoints").exists() and any((folder / name).exists() for name in WEIGHT_FILES):
        raise ValueError(
            f"{folder} holds a model that was not trained there, and would be overwritten: give another folder"
        )
    announce(
        log["settings"],
        "a finished run" if file.exists() else "checkpoints" if (folder / "checkpoints").exists() else None,
    )


def read_log(file: Path) -> dict[str, Any]:
    """The log of a training run.

    Raises
    ------
    ValueError
        When it is none.
    """
    log = read_json(file)
    if not isinstance(log, dict) or not isinstance(log.get("settings"), dict):
        raise ValueError(f"{file} is no log of a training run: remove it, or give another folder")
    return log


def finished_log(folder: Path, log: Mapping[str, Any]) -> dict[str, Any] | None:
    """The log of the run that ended in ``folder``, if any; an error when it is another than ``log``'s."""
    file = folder / "training_log.json"
    if not file.exists():
        return None
    there = read_log(file)
    require_same(log, there, folder)
    return there


def require_same(here: Mapping[str, Any], there: Mapping[str, Any], folder: Path) -> None:
    """Raise a ValueError that names what differs between a run and the one whose log is in ``folder``."""
    now, then = here["settings"], there["settings"]
    changed = [
        f"{key} ({shown(then.get(key))} there, {shown(now[key])} now)"
        for key in now
        if now[key] != then.get(key)
    ]
    changed += [what for key, what in IDENTITY.items() if here.get(key) != there.get(key)]
    if changed:
        raise ValueError(
            f"{folder} holds a training run that differs in {', '.join(changed)}; "
            "give another folder, the same settings, or resume=False (--restart) to start again"
        )


def remove_run(folder: Path) -> None:
    """Take away what a run left in ``folder``, so that it starts again."""
    for leftover in (folder / "checkpoints", folder / "training_log.json", folder / "model.safetensors"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)


def finish(
    folder: Path,
    log: dict[str, Any],
    model: torch.nn.Module,
    write: Callable[[torch.nn.Module, Path], None] | None = None,
) -> dict[str, Any]:
    """Write the model (:func:`write_model` unless told) and the log of a run that came to its end; drop checkpoints."""
    log = {**log, "finished": True}
    (write or write_model)(model, folder)
    checkpoint.write_atomically(folder / "training_log.json", json.dumps(log, indent=1))
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return log


def write_model(model: torch.nn.Module, folder: Path) -> None:
    """Write ``config.json`` and ``model.safetensors`` as Hugging Face does, each in one atomic step."""
    folder.mkdir(parents=True, exist_ok=True)
    # Named parameters: the decoder is tied to the embedding and, as in published files, not stored twice.
    weights = {name: p.detach().contiguous() for name, p in model.named_parameters()}
    with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as part:
        model.config.architectures = [type(model).__name__]  # type: ignore[union-attr]
        model.config.save_pretrained(part)  # type: ignore[operator, union-attr]
        save_file(weights, Path(part) / "model.safetensors", metadata={"format": "pt"})
        for name in ("config.json", "model.safetensors"):
            (Path(part) / name).replace(folder / name)
