"""Training of a BioFormers to predict perturbed cells from control cells, and its scores beside the baselines'."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy

from scfast.models.base import TokenKind, Tokens
from scfast.models.bioformers import BioformersSource
from scfast.models.bioformers_network import BioformersNetwork
from scfast.train.bioformers import BioformersSchedule, Trainable
from scfast.train.checkpoint import write_atomically
from scfast.train.early_stopping import EarlyStopping
from scfast.train.fit import (
    BASELINE,
    HELD_OUT,
    MASKING,
    Epochs,
    Progress,
    adamw,
    claim,
    fingerprint,
    finish,
    finished_log,
    fit,
    identity,
    remove_run,
    rng,
)
from scfast.train.masked_values import MaskedValues
from scfast.train.masking import random_batches
from scfast.train.perturbation_baselines import predictions
from scfast.train.perturbation_scores import correlations, halves, most_changed, table_of
from scfast.train.perturbed_cells import PerturbedCells, Split, under
from scfast.train.precision import autocast
from scfast.train.split import TEST, TRAIN, VALIDATION

#: Entries of a gene in a bin that its own mean level is outweighed by that of the bin.
SHRINKAGE = 10.0


@dataclass(frozen=True, kw_only=True)
class Settings(BioformersSchedule):
    """Everything that decides the result, given the cells.

    ``held_out`` are the perturbations that are not trained on; ``forget`` is the share of the cells whose perturbation
    is told by its marked genes alone; ``patience`` the epochs without a lower validation loss after which training
    ends; ``validation`` the share of the cells that these are of.
    """

    held_out: tuple[str, ...]
    forget: float
    patience: int
    validation: float


def train(
    source: BioformersSource,
    cells: PerturbedCells,
    split: Split,
    folder: Path,
    settings: Settings,
    *,
    notes: dict[str, Any] | None = None,
    resume: bool = True,
    progress: Progress | None = None,
    stop_after: int | None = None,
) -> dict[str, Any]:
    """Train; write the model, ``perturbation.json``, ``levels.safetensors``, scores and predictions into ``folder``.

    Every step pairs perturbed cells with random control cells of their context: from the control's bins and the
    perturbation the bins of the perturbed cell are guessed, cross-entropy over every gene. Unperturbed cells are
    guessed from other ones. After each epoch fixed pairs of the validation part are scored; the weights of the lowest
    loss are kept. Killed runs continue as those of :func:`scfast.train.bioformers.train` do.

    Parameters
    ----------
    source
        The model with its fresh weights.
    cells, split
        The data, and what of them is held out.
    folder
        Where the model goes; created when missing.
    settings
        See :class:`Settings`.
    notes
        Written into ``perturbation.json``.
    resume
        Continue the run found in ``folder``; False starts again.
    progress
        Called after each epoch.
    stop_after
        Stop, with a checkpoint, after this many steps in all: a rehearsal of a kill.

    Returns
    -------
    The training log: ``settings``, ``genes``, ``history``, ``best`` (the entry whose weights are kept) and ``scores``,
    rows as those of ``scores.csv``.
    """
    tokens, design = cells.tokens, cells.design
    assert tokens.values is not None
    log: dict[str, Any] = identity(
        settings,
        data=fingerprint(np.array(tokens.lengths), tokens.ids.numpy(), tokens.values.numpy()),
        labels=fingerprint(design.perturbation, design.context, cells.part),
    )
    claim(folder, log)
    if not resume:
        remove_run(folder)
    if (finished := finished_log(folder, log)) is not None:
        return finished
    counted = {name: int((cells.part == part).sum()) for name, part in _PARTS.items()}
    log |= {**counted, "genes": list(source.genes), "history": [], "seconds": 0.0, "finished": False}
    train_rows, lengths = np.flatnonzero(cells.part == TRAIN), np.array(tokens.lengths)
    model, device = Trainable(source.network), source.device

    def losses(batch: MaskedValues) -> torch.Tensor:
        with autocast(settings.precision, device):
            logits = model(batch.to(device)).float()
        return cross_entropy(logits, batch.targets.to(device))

    def loss(step: int, rows: np.ndarray) -> torch.Tensor:
        draws = rng(settings.seed, MASKING, step)
        return losses(cells.examples(train_rows[rows], draws, settings.forget))

    validation = _validation(cells, settings)

    @torch.no_grad()
    def evaluate() -> dict[str, float]:
        sizes = np.array([len(batch.targets) for batch in validation])
        return {
            "validation_loss": float(
                np.average([float(losses(batch)) for batch in validation], weights=sizes)
            )
        }

    stopping = EarlyStopping(
        model, folder / "checkpoints" / "best.safetensors", settings.patience, "validation_loss"
    )
    log, ended = fit(
        model,
        adamw(model.parameters(), settings.lr, settings.weight_decay),
        folder,
        settings,
        log,
        epochs=Epochs(lengths[train_rows], settings.batch_tokens, settings.seed),
        loss=loss,
        evaluate=evaluate,
        progress=progress,
        stop_after=stop_after,
        enough=stopping,
    )
    if not ended:
        return log
    stopping.restore()
    trained = source.with_network(_detached(model))
    levels = level_table(cells, source.network.shape.n_bins)
    scores, genes = _judged(trained, cells, split, levels, settings)
    scores.to_csv(folder / "scores.csv", index=False, float_format="%.6g")
    genes.to_csv(folder / "predictions.csv", index=False, float_format="%.6g")
    save_file({"levels": torch.from_numpy(levels)}, folder / "levels.safetensors")
    write_atomically(folder / "perturbation.json", json.dumps(notes or {}, indent=1))
    records = json.loads(scores.to_json(orient="records", double_precision=15))
    log |= {"best": stopping.best(log["history"]), "scores": records}
    return finish(folder, log, model, write=lambda _, into: trained.save(into))


_PARTS = {"train_cells": TRAIN, "validation_cells": VALIDATION, "test_cells": TEST}


def _detached(model: Trainable) -> BioformersNetwork:
    tensors = {name: tensor.detach() for name, tensor in model.network().tensors.items()}
    return BioformersNetwork(model.shape, tensors)


def _validation(cells: PerturbedCells, settings: Settings) -> list[MaskedValues]:
    """Fixed pairs, told as they will be: by their marks alone as often as in training."""
    rows, draws = np.flatnonzero(cells.part == VALIDATION), rng(settings.seed, HELD_OUT)
    batches = random_batches(np.array(cells.tokens.lengths)[rows], settings.batch_tokens, draws)
    return [cells.examples(rows[batch], draws, settings.forget) for batch in batches]


def level_table(cells: PerturbedCells, n_bins: int) -> np.ndarray:
    """Mean expression float32 [G + 1, n_bins] of each gene in each bin, over the cells that may be learned from.

    Where a gene has few entries in a bin, it is drawn to the mean of all genes there (:data:`SHRINKAGE` entries of it);
    a bin that no cell has is worth as much as the next below it.
    """
    n_genes = cells.levels.shape[1]
    total, entries = np.zeros((n_genes + 1, n_bins)), np.zeros((n_genes + 1, n_bins))
    rows = np.flatnonzero(cells.part != TEST)
    for block in np.array_split(rows, max(1, len(rows) // 1024)):
        tokens, dense = cells.tokens.select(block), cells.levels[block].toarray()
        assert tokens.values is not None
        gene = tokens.kind.numpy() == TokenKind.GENE
        cell, ids = tokens.packing.cell_of_query().numpy()[gene], tokens.ids.numpy()[gene]
        at = (ids, tokens.values.numpy()[gene].astype(np.int64))
        np.add.at(total, at, dense[cell, ids - 1])
        np.add.at(entries, at, 1)
    there = entries.sum(0)
    overall = np.divide(total.sum(0), there, out=np.zeros(n_bins), where=there > 0)
    overall = np.maximum.accumulate(overall)
    return ((total + SHRINKAGE * overall) / (entries + SHRINKAGE)).astype(np.float32)


@torch.no_grad()
def predict(
    source: BioformersSource,
    controls: Tokens,
    rows: Sequence[int],
    marked: Sequence[int],
    levels: np.ndarray,
    *,
    batch_tokens: int = 16_384,
    precision: str = "float32",
) -> np.ndarray:
    """Mean expression that the model expects of control cells under a perturbation.

    Parameters
    ----------
    source
        The trained model.
    controls
        Tokens of unperturbed cells, without external ones.
    rows, marked
        External tokens of the perturbation, and ``ids`` of the genes that it marks.
    levels
        [G + 1, n_bins], of :func:`level_table`: each bin counts with its probability.
    batch_tokens, precision
        Tokens at once, and in which precision products are taken.

    Returns
    -------
    float64 [G], genes in the order of the vocabulary.
    """
    model, device = Trainable(source.network), source.device
    worth = torch.from_numpy(levels).double()
    total = torch.zeros(len(levels), dtype=torch.float64)
    at_once = max(1, batch_tokens // max(controls.lengths))
    for start in range(0, controls.n_cells, at_once):
        part = controls.select(np.arange(start, min(start + at_once, controls.n_cells)))
        n = part.n_cells
        part = under(part, [rows] * n, [marked] * n, source.inputs.n_conditions)
        chosen = torch.from_numpy(np.flatnonzero(part.kind.numpy() == TokenKind.GENE))
        batch = MaskedValues(part, chosen, torch.zeros(len(chosen), dtype=torch.int64))
        with autocast(precision, device):
            shares = model(batch.to(device)).float().softmax(-1).double().cpu()
        total.index_add_(0, part.ids[chosen], (shares * worth[part.ids[chosen]]).sum(1))
    return total.numpy()[1:] / controls.n_cells


def _judged(
    source: BioformersSource, cells: PerturbedCells, split: Split, levels: np.ndarray, settings: Settings
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Scores of the model and the baselines; and every gene as predicted and as measured."""
    scores: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
    genes = []
    baselines = predictions(cells, split.scored, settings.seed, settings.forget)
    for number, context in split.scored:
        rows, controls = cells.design.rows(number, context), cells.controls(context)
        perturbed, unperturbed = (cells.levels[of].toarray().astype(np.float64) for of in (rows, controls))
        top, measured, control = most_changed(perturbed, unperturbed), perturbed.mean(0), unperturbed.mean(0)
        ours = predict(
            source, cells.tokens.select(controls), cells.rows[number], cells.marked[number], levels,
            precision=settings.precision,
        )  # fmt: skip
        found = {"model": ours} | baselines[number, context]
        names = cells.design.names[number], cells.design.contexts[context]
        draws = rng(0, BASELINE, number)
        scores[names] = {
            method: correlations(predicted, measured, control, top) for method, predicted in found.items()
        } | halves(perturbed, unperturbed, top, draws)
        place = np.full(len(measured), 0)
        place[top] = np.arange(1, len(top) + 1)
        genes.append(
            pd.DataFrame({"perturbation": names[0], "context": names[1], "gene": source.genes}).assign(
                top=place, measured=measured, control=control, **{name: found[name] for name in found}
            )
        )
    return table_of(scores, settings.seed), pd.concat(genes, ignore_index=True)
