"""Training of a BioFormers: from tokenised cells to a folder that ``models.load`` reads."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from scfast.attention import Recorder
from scfast.models.base import Tokens
from scfast.models.bioformers import BioformersSource
from scfast.models.bioformers_network import BioformersNetwork
from scfast.train.checkpoint import write_atomically
from scfast.train.early_stopping import EarlyStopping
from scfast.train.fit import (
    BASELINE,
    HELD_OUT,
    MASKING,
    SPLIT,
    Epochs,
    Progress,
    Schedule,
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
from scfast.train.masked_values import MaskedValues, bin_frequencies, mask_values, score
from scfast.train.masking import random_batches
from scfast.train.precision import autocast

#: Mask ratio and non-zero share of the fixed mask that held-out cells are scored on, whatever was trained with.
HELD_OUT_MASK = {"rate": 0.1, "nonzero": 0.5}
#: Masks of each training cell that the cell-blind baseline is counted over, and tokens of a batch of these.
BASELINE_PASSES, BASELINE_TOKENS = 10, 1 << 17
#: Scores beside all baselines, which :func:`scfast.tl.expression_modelling` leaves in the folder of a model.
SCORES = "expression_modelling.csv"


@dataclass(frozen=True, kw_only=True)
class BioformersSchedule(Schedule):
    """What the settings of every training of a BioFormers begin with.

    Attributes
    ----------
    model
        The content of its ``config.json``, and its sizes.
    precision
        Of products: "float32" or "bf16"; weights and moments are float32 in either.
    weight_decay
        Of all weights but biases and layer norms.
    """

    model: dict[str, Any]
    precision: str = "float32"
    weight_decay: float = 0.01


@dataclass(frozen=True, kw_only=True)
class Settings(BioformersSchedule):
    """Everything that decides the result, given the cells; a run is resumed only under equal settings.

    ``mask`` is the share of genes that are hidden, ``nonzero`` the share of these above 0; ``held_out`` the share of
    the cells that are not trained on; ``accumulate`` the parts that the cells of a step go through the model in;
    ``patience`` the evaluations without a lower held-out loss after which training ends with the weights of the lowest,
    None: all steps, and the last weights; ``train_share`` the share of the cells not held out that are trained on:
    those of a smaller share are among those of a larger one; ``evaluations`` those of the held-out cells, and
    checkpoints, over all steps.
    """

    mask: float
    nonzero: float
    held_out: float
    accumulate: int = 1
    patience: int | None = None
    train_share: float = 1.0
    evaluations: int = 20


class Trainable(torch.nn.Module):
    """The weights of a BioFormers as parameters; its forward is the packed one that analyses run.

    Examples
    --------
    >>> from scfast.models.bioformers import create
    >>> model = Trainable(create(["CD3D", "NKG7"]).network)
    >>> sum(p.numel() for p in model.parameters()) == sum(t.numel() for t in model.network().tensors.values())
    True
    """

    def __init__(self, network: BioformersNetwork) -> None:
        super().__init__()
        self.shape = network.shape
        for name, tensor in network.tensors.items():
            self.register_parameter(name.replace(".", "/"), torch.nn.Parameter(tensor.clone()))

    def network(self) -> BioformersNetwork:
        """The network of the present parameters, without a copy."""
        tensors = {name.replace("/", "."): parameter for name, parameter in self.named_parameters()}
        return BioformersNetwork(self.shape, tensors, recompute=False)

    def forward(self, batch: MaskedValues) -> torch.Tensor:
        """Logits [M, n_bins] of the hidden values."""
        network, recorder = self.network(), _LastStates([])
        recorder.begin(self.shape.n_layers, batch.tokens.packing)
        # Of the last layer only what is guessed: causal maps count queries by their place, so they run whole.
        rows = None if self.shape.causal else batch.chosen
        states = network.forward(batch.tokens, recorder, rows=rows)
        recorder.finish()
        assert states is not None
        return network.bin_logits(states if rows is not None else states[batch.chosen])


class _LastStates(Recorder):
    """Observes nothing, and has the model run to its last states."""

    @property
    def needs_output(self) -> bool:
        return True


def train(
    source: BioformersSource,
    cells: Tokens,
    folder: Path,
    settings: Settings,
    *,
    resume: bool = True,
    progress: Progress | None = None,
    stop_after: int | None = None,
) -> dict[str, Any]:
    """Train; write the model, ``training_log.json`` and ``metrics.csv`` into ``folder``.

    AdamW with linear warm-up and cosine decay, cross-entropy over bins. Held-out cells are scored under one fixed mask,
    half of it non-zero, beside each gene's bin frequencies under the masks of the training cells: the guess that sees
    no cell. Checkpoints are written at every evaluation; a run that was killed continues, and on the same machine
    with the same thread count ends with the weights of an uninterrupted one. It runs where the model is; weights and
    moments are float32 in either precision.

    Parameters
    ----------
    source
        The model with its fresh weights.
    cells
        Its tokens of all cells.
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
    The training log: ``settings``, ``data``, ``baseline`` and ``history`` (figures of :func:`score`), ``finished``, and
    with patience ``best``, the entry of the history whose weights are kept.

    Raises
    ------
    ValueError
        If ``folder`` holds a run on other cells or with other settings, or too few cells have genes.
    """
    log: dict[str, Any] = identity(settings, data=cells_fingerprint(cells))
    claim(folder, log)
    if not resume:
        remove_run(folder)
        (folder / SCORES).unlink(missing_ok=True)
    if (finished := finished_log(folder, log)) is not None:
        return finished
    train_cells, held_out_cells = (cells.select(rows) for rows in split(cells, settings))
    last_exact = source.inputs.binning.last_exact
    held_out = held_out_batches(held_out_cells, settings)
    targets = torch.cat([batch.targets for batch in held_out])
    log |= {
        "train_cells": train_cells.n_cells,
        "held_out_cells": held_out_cells.n_cells,
        "baseline": _baseline(source, train_cells, held_out, targets, settings),
        "history": [],
        "seconds": 0.0,
        "finished": False,
    }
    model, device = Trainable(source.network), source.device
    stopping = None
    if settings.patience is not None:
        best = folder / "checkpoints" / "best.safetensors"
        stopping = EarlyStopping(model, best, settings.patience, "held_out_loss")

    def logits(batch: MaskedValues) -> torch.Tensor:
        with autocast(settings.precision, device):
            return model(batch.to(device)).float()

    def loss(step: int, rows: np.ndarray) -> Iterator[torch.Tensor]:
        draws, parts = rng(settings.seed, MASKING, step), np.array_split(rows, settings.accumulate)
        batches = [_masked(train_cells.select(part), draws, settings) for part in parts if part.size]
        hidden = sum(len(batch.targets) for batch in batches)
        for batch in batches:
            yield cross_entropy(logits(batch), batch.targets.to(device), reduction="sum") / hidden

    @torch.no_grad()
    def evaluate() -> dict[str, float]:
        found = score([logits(batch).cpu() for batch in held_out], targets, last_exact)
        return {f"held_out_{name}": value for name, value in found.items()}

    log, ended = fit(
        model,
        adamw(model.parameters(), settings.lr, settings.weight_decay),
        folder,
        settings,
        log,
        epochs=Epochs(np.array(train_cells.lengths), settings.batch_tokens, settings.seed),
        loss=loss,
        evaluate=evaluate,
        every=max(1, settings.steps // settings.evaluations),
        progress=progress,
        stop_after=stop_after,
        enough=stopping,
    )
    if not ended:
        return log
    if stopping is not None:
        stopping.restore()
        log["best"] = stopping.best(log["history"])
    write_atomically(folder / "metrics.csv", _csv(log["history"]))
    return finish(folder, log, model, write=lambda _, into: source.with_network(model.network()).save(into))


def cells_fingerprint(cells: Tokens) -> str:
    """SHA-256 of tokens, values and conditions."""
    assert cells.values is not None
    parts = [cells.ids, cells.values] + ([] if cells.external is None else [cells.external])
    return fingerprint(np.array(cells.lengths), *(part.numpy() for part in parts))


def split(cells: Tokens, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the training cells and of the held-out cells, of those that have genes."""
    usable = np.flatnonzero(np.array(cells.lengths) > 1)
    n_held_out = max(1, round(settings.held_out * usable.size))
    if usable.size - n_held_out < 1:
        raise ValueError(
            f"{usable.size} cells have tokens and {n_held_out} are to be held out: none is left to train on; "
            "give more cells, or check that the vocabulary holds the data's genes"
        )
    order = rng(settings.seed, SPLIT).permutation(usable)
    n_train = max(1, round(settings.train_share * (usable.size - n_held_out)))
    return np.sort(order[n_held_out : n_held_out + n_train]), np.sort(order[:n_held_out])


def _masked(tokens: Tokens, draws: np.random.Generator, settings: Settings, **mask: float) -> MaskedValues:
    mask = {"rate": settings.mask, "nonzero": settings.nonzero, **mask}
    return mask_values(tokens, draws, **mask, behind=settings.model["architecture"] == "decoder")


def _masked_batches(
    cells: Tokens, settings: Settings, stream: int, number: int, batch_tokens: int, **mask: float
) -> list[MaskedValues]:
    draws = rng(settings.seed, stream, number)
    rows = random_batches(np.array(cells.lengths), batch_tokens, draws)
    return [_masked(cells.select(batch), draws, settings, **mask) for batch in rows]


def held_out_batches(cells: Tokens, settings: Settings) -> list[MaskedValues]:
    """The held-out cells under their fixed mask."""
    return _masked_batches(cells, settings, HELD_OUT, 0, settings.batch_tokens, **HELD_OUT_MASK)


def mask_passes(cells: Tokens, settings: Settings) -> list[list[MaskedValues]]:
    """The training cells under masks like that of the held-out cells, several times over: for baselines."""
    return [
        _masked_batches(cells, settings, BASELINE, number, BASELINE_TOKENS, **HELD_OUT_MASK)
        for number in range(BASELINE_PASSES)
    ]


def _baseline(
    source: BioformersSource,
    cells: Tokens,
    held_out: list[MaskedValues],
    targets: torch.Tensor,
    settings: Settings,
) -> dict[str, float]:
    """Scores of each gene's bin frequencies, counted under masks like those of the held-out cells."""
    seen = [batch for once in mask_passes(cells, settings) for batch in once]
    frequencies = bin_frequencies(seen, len(source.genes), source.network.shape.n_bins)
    logits = [frequencies[batch.tokens.ids[batch.chosen]] for batch in held_out]
    return score(logits, targets, source.inputs.binning.last_exact)


def _csv(history: list[dict[str, float]]) -> str:
    text = io.StringIO()
    columns = dict.fromkeys(name for entry in history for name in entry)  # a share of nothing is left out
    writer = csv.DictWriter(text, list(columns), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()


def settings_for(source: BioformersSource, **options: Any) -> Settings:
    """Settings of a run of ``source``; ``options`` are the other fields of :class:`Settings`."""
    return Settings(model=asdict(source.network.shape) | source.config(), **options)
