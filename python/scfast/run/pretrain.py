"""Masked-gene pretraining of a Geneformer: from tokenised cells to a folder in Geneformer's own format."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from scfast.run import checkpoint
from scfast.run.masked_loss import evaluate, gain_over_unigram, log_frequencies, masked_loss, unigram_loss
from scfast.run.masking import MaskedBatch, TokenisedCells, mask_batch, random_batches

#: Special tokens of Geneformer V1; genes follow.
PAD, MASK, N_SPECIAL = 0, 1, 2
#: Evaluations of the held-out loss, and checkpoints, over a whole run.
EVALUATIONS = 20
#: Random streams; a step's numbers depend on (seed, stream, step) alone, so a resumed run repeats them.
SPLIT, EPOCH, MASKING, DROPOUT, HELD_OUT = range(5)


@dataclass(frozen=True)
class Preset:
    """Size of a Geneformer, and how it is trained unless told otherwise.

    ``steps`` or ``epochs`` is set; ``batch_tokens`` is the number of tokens per step; ``count_noise`` is the
    share of the cells that are ranked anew in every batch (see :meth:`TokenisedCells.reranked`).
    """

    layers: int
    heads: int
    width: int
    ffn: int
    context: int
    batch_tokens: int
    lr: float
    steps: int | None = None
    epochs: int | None = None
    dropout: float = 0.02
    weight_decay: float = 0.001
    count_noise: float = 0.0


#: ``tiny`` trains in about a minute on two cores, on few cells: hence dropout, decay, count noise and an early end.
#: ``v1-10m`` has the shape and the regularisation of Geneformer V1-10M.
PRESETS = {
    "tiny": Preset(
        *(2, 4, 128, 256, 512), batch_tokens=2048, lr=3e-3, steps=500,
        dropout=0.1, weight_decay=0.01, count_noise=0.5,
    ),
    "small": Preset(*(4, 4, 256, 512, 1024), batch_tokens=8192, lr=1e-3, epochs=10, count_noise=0.5),
    "v1-10m": Preset(*(6, 4, 256, 512, 2048), batch_tokens=24576, lr=1e-3, epochs=3),
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """Everything that decides the result, given the cells; a run is resumed only under equal settings."""

    preset: Preset
    vocabulary_size: int
    steps: int
    mask: float
    batch_tokens: int
    lr: float
    seed: int
    held_out: float
    warmup: float = 0.1
    clip: float = 1.0


#: Called at each evaluation with the new entry of the log's history.
Progress = Callable[[dict[str, float]], None]


def new_model(preset: Preset, vocabulary_size: int, seed: int) -> torch.nn.Module:
    """A fresh ``BertForMaskedLM`` of Geneformer's kind: ReLU, post-layer-norm, learned positions."""
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=vocabulary_size,
        num_hidden_layers=preset.layers,
        num_attention_heads=preset.heads,
        hidden_size=preset.width,
        intermediate_size=preset.ffn,
        max_position_embeddings=preset.context,
        hidden_act="relu",
        hidden_dropout_prob=preset.dropout,
        # Attention that holds no map takes no dropout of it; the original uses 0.02 here too.
        attention_probs_dropout_prob=0.0,
        pad_token_id=PAD,
    )
    config._attn_implementation = "scfast"  # cells are packed: no padding is computed
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BertForMaskedLM(config)


def pretrain(
    cells: TokenisedCells,
    folder: Path,
    settings: Settings,
    *,
    resume: bool = True,
    progress: Progress | None = None,
    stop_after: int | None = None,
) -> dict[str, Any]:
    """Train; write ``config.json``, ``model.safetensors`` and ``training_log.json`` into ``folder``.

    AdamW with linear warm-up and cosine decay. The held-out loss is the cross-entropy, in nats, of the genes
    hidden in cells never trained on, under one fixed mask; the unigram loss is that of the training cells'
    gene frequencies (add-one smoothed) at the same positions. Checkpoints are written at every evaluation; a
    run that was killed continues, and on the same machine with the same thread count ends with the weights of
    an uninterrupted one.

    Parameters
    ----------
    cells
        Token ids: 0 pads, 1 masks, genes from 2.
    folder
        Where the model goes; created when missing.
    settings
        See :class:`Settings`.
    resume
        Continue the run found in ``folder``; False starts again.
    progress
        Called at each evaluation.
    stop_after
        Stop, with a checkpoint, after this many steps in all: a rehearsal of a kill.

    Returns
    -------
    The training log: ``settings``, ``data``, ``unigram_loss``, ``history``, ``finished``; when finished, ``gain``
    (unigram loss minus held-out loss at the same hidden genes) and ``gain_se``, its standard error between cells.

    Raises
    ------
    ValueError
        If ``folder`` holds a run on other cells or with other settings, or too few cells have tokens.
    """
    identity = {"settings": _as_json(settings), "data": fingerprint(cells)}
    log_file = folder / "training_log.json"
    if not resume:
        for leftover in (folder / "checkpoints", log_file, folder / "model.safetensors"):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink(missing_ok=True)
    finished = _finished(log_file, identity, folder)
    if finished is not None:
        return finished
    train, held_out = _split(cells, settings)
    held_out_batches = _held_out_batches(held_out, settings)
    frequencies = log_frequencies(train, settings.vocabulary_size, N_SPECIAL)
    log: dict[str, Any] = {
        **identity,
        "train_cells": train.n_cells,
        "held_out_cells": held_out.n_cells,
        "unigram_loss": unigram_loss(held_out_batches, frequencies),
        "history": [],
        "seconds": 0.0,
        "finished": False,
    }
    model = new_model(settings.preset, settings.vocabulary_size, settings.seed)
    optimiser = _optimiser(model, settings)
    record = checkpoint.load(folder / "checkpoints", model, optimiser)
    step = 0
    if record is not None:
        _require_same(identity, record["log"], folder)
        step, log = record["step"], record["log"]
    every = max(1, settings.steps // EVALUATIONS)
    epoch = _Epoch(train.lengths, settings)
    epoch.skip(step)
    started, loss_sum, loss_count = time.perf_counter(), 0.0, 0
    seconds_before = log["seconds"]
    with torch.random.fork_rng(devices=[]):
        while step < settings.steps:
            rows = epoch.next()
            batch = _training_batch(train, rows, _rng(settings.seed, MASKING, step), settings)
            torch.manual_seed(int(_rng(settings.seed, DROPOUT, step).integers(2**62)))
            loss_sum += _train_step(model, optimiser, batch, _lr(step, settings), settings.clip)
            loss_count += 1
            step += 1
            killed = stop_after is not None and step >= stop_after
            if step % every == 0 or step == settings.steps or killed:
                entry = {
                    "step": step,
                    "steps": settings.steps,
                    "epoch": epoch.number,
                    "train_loss": loss_sum / loss_count,
                    "held_out_loss": evaluate(model, held_out_batches),
                    "unigram_loss": log["unigram_loss"],
                    "seconds": seconds_before + time.perf_counter() - started,
                }
                loss_sum, loss_count = 0.0, 0
                log["history"].append(entry)
                log["seconds"] = entry["seconds"]
                checkpoint.save(folder / "checkpoints", step, model, optimiser, {"log": log})
                if progress is not None:
                    progress(entry)
            if killed:
                return log
    gain, error = gain_over_unigram(model, held_out_batches, frequencies)
    log |= {"gain": gain, "gain_se": error, "finished": True}
    write_model(model, folder)
    checkpoint.write_atomically(log_file, json.dumps(log, indent=1))
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


def fingerprint(cells: TokenisedCells) -> str:
    """SHA-256 of the tokens, to tell whether a run in a folder saw the same cells."""
    digest = hashlib.sha256(np.ascontiguousarray(cells.offsets, dtype="<i8").tobytes())
    digest.update(np.ascontiguousarray(cells.ids, dtype="<i8").tobytes())
    return digest.hexdigest()


def steps_of_epochs(lengths: np.ndarray, batch_tokens: int, epochs: int) -> int:
    """Optimiser steps of that many passes over cells of these lengths, about: batches vary with the order."""
    usable = lengths[lengths > 0]
    return epochs * len(random_batches(usable, batch_tokens, _rng(0, EPOCH)))


class _Epoch:
    """Endless batches, a new seeded order each time all cells were seen."""

    def __init__(self, lengths: np.ndarray, settings: Settings):
        self.lengths, self.settings = lengths, settings
        self.number = 0
        self._batches: Iterator[np.ndarray] = iter(())

    def next(self) -> np.ndarray:
        for batch in self._batches:
            return batch
        rng = _rng(self.settings.seed, EPOCH, self.number)
        self._batches = iter(random_batches(self.lengths, self.settings.batch_tokens, rng))
        self.number += 1
        return next(self._batches)

    def skip(self, steps: int) -> None:
        for _ in range(steps):
            self.next()


def _rng(seed: int, stream: int, number: int = 0) -> np.random.Generator:
    return np.random.default_rng([seed, stream, number])


def _split(cells: TokenisedCells, settings: Settings) -> tuple[TokenisedCells, TokenisedCells]:
    usable = np.flatnonzero(cells.lengths > 0)
    n_held_out = max(1, round(settings.held_out * usable.size))
    if usable.size - n_held_out < 1:
        raise ValueError(
            f"{usable.size} cells have tokens and {n_held_out} are to be held out: none is left to train on; "
            "give more cells, or check that the vocabulary holds the data's genes"
        )
    order = _rng(settings.seed, SPLIT).permutation(usable)
    return cells.select(np.sort(order[n_held_out:])), cells.select(np.sort(order[:n_held_out]))


def _training_batch(
    train: TokenisedCells, rows: np.ndarray, rng: np.random.Generator, settings: Settings
) -> MaskedBatch:
    if settings.preset.count_noise == 0:
        return _mask(train, rows, rng, settings)
    reranked = train.reranked(rows, rng, settings.preset.count_noise)
    return _mask(reranked, np.arange(rows.size), rng, settings)


def _mask(
    cells: TokenisedCells,
    rows: np.ndarray,
    rng: np.random.Generator,
    settings: Settings,
    hide_all: bool = False,
) -> MaskedBatch:
    return mask_batch(
        cells,
        rows,
        rng,
        rate=settings.mask,
        vocabulary_size=settings.vocabulary_size,
        mask=MASK,
        n_special=N_SPECIAL,
        hide_all=hide_all,
    )


def _held_out_batches(cells: TokenisedCells, settings: Settings) -> list[MaskedBatch]:
    rng = _rng(settings.seed, HELD_OUT)
    batches = random_batches(cells.lengths, settings.batch_tokens, rng)
    return [_mask(cells, rows, rng, settings, hide_all=True) for rows in batches]


def _optimiser(model: torch.nn.Module, settings: Settings) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]  # biases and layer norms: no decay
    groups = [
        {"params": matrices, "weight_decay": settings.preset.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.98), foreach=True)


def _lr(step: int, settings: Settings) -> float:
    warmup = max(1, round(settings.warmup * settings.steps))
    if step < warmup:
        return settings.lr * (step + 1) / warmup
    done = (step - warmup) / max(1, settings.steps - warmup)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * done))


def _train_step(
    model: torch.nn.Module, optimiser: torch.optim.Optimizer, batch: MaskedBatch, lr: float, clip: float
) -> float:
    model.train()
    for group in optimiser.param_groups:
        group["lr"] = lr
    optimiser.zero_grad(set_to_none=True)
    loss = masked_loss(model, batch)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimiser.step()
    return float(loss.detach())


def _as_json(settings: Settings) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(settings)))


def _finished(log_file: Path, identity: dict[str, Any], folder: Path) -> dict[str, Any] | None:
    if not log_file.exists():
        return None
    log = json.loads(log_file.read_text())
    _require_same(identity, log, folder)
    return log


def _require_same(identity: dict[str, Any], log: dict[str, Any], folder: Path) -> None:
    here, there = identity["settings"], log["settings"]
    changed = [
        f"{key} ({there.get(key)} there, {here.get(key)} now)" for key in here if here[key] != there.get(key)
    ]
    if identity["data"] != log["data"]:
        changed.append("the tokens of the cells")
    if changed:
        raise ValueError(
            f"{folder} holds a training run that differs in {', '.join(changed)}; "
            "give another folder, the same settings, or resume=False (--restart) to start again"
        )
