"""Masked-gene pretraining of a Geneformer: from tokenised cells to a folder in Geneformer's own format."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scfast.train.fit import (
    HELD_OUT,
    MASKING,
    SPLIT,
    Epochs,
    Progress,
    Schedule,
    adamw,
    claim,
    fingerprint_cells,
    finish,
    finished_log,
    fit,
    identity,
    remove_run,
    rng,
)
from scfast.train.masked_loss import evaluate, gain_over_unigram, log_frequencies, masked_loss, unigram_loss
from scfast.train.masking import MaskedBatch, TokenisedCells, mask_batch, random_batches

#: Special tokens of Geneformer V1; genes follow.
PAD, MASK, N_SPECIAL = 0, 1, 2
#: Evaluations of the held-out loss, and checkpoints, over a whole run.
EVALUATIONS = 20


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


#: ``tiny`` trains in a minute and a half on two cores, on few cells. What those teach about hidden genes is faint, so
#: its batches are large; and all of them are ranked anew, because otherwise it learns the order of rare counts instead.
#: ``v1-10m`` has the shape and the regularisation of Geneformer V1-10M.
PRESETS = {
    "tiny": Preset(
        *(2, 4, 64, 128, 512), batch_tokens=8192, lr=4e-3, steps=600,
        dropout=0.0, weight_decay=0.01, count_noise=1.0,
    ),
    "small": Preset(*(4, 4, 256, 512, 1024), batch_tokens=8192, lr=1e-3, epochs=10, count_noise=0.5),
    "v1-10m": Preset(*(6, 4, 256, 512, 2048), batch_tokens=24576, lr=1e-3, epochs=3),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Settings(Schedule):
    """Everything that decides the result, given the cells; a run is resumed only under equal settings."""

    preset: Preset
    vocabulary_size: int
    mask: float
    held_out: float


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
    log: dict[str, Any] = identity(settings, data=fingerprint_cells(cells))
    claim(folder, log)
    if not resume:
        remove_run(folder)
    if (finished := finished_log(folder, log)) is not None:
        return finished
    train, held_out = _split(cells, settings)
    held_out_batches = _held_out_batches(held_out, settings)
    frequencies = log_frequencies(train, settings.vocabulary_size, N_SPECIAL)
    unigram = unigram_loss(held_out_batches, frequencies)
    log |= {
        "train_cells": train.n_cells,
        "held_out_cells": held_out.n_cells,
        "unigram_loss": unigram,
        "history": [],
        "seconds": 0.0,
        "finished": False,
    }
    model = new_model(settings.preset, settings.vocabulary_size, settings.seed)

    def loss(step: int, rows: np.ndarray) -> torch.Tensor:
        return masked_loss(model, _training_batch(train, rows, rng(settings.seed, MASKING, step), settings))

    log, ended = fit(
        model,
        adamw(model.parameters(), settings.lr, settings.preset.weight_decay),
        folder,
        settings,
        log,
        epochs=Epochs(train.lengths, settings.batch_tokens, settings.seed),
        loss=loss,
        evaluate=lambda: {"held_out_loss": evaluate(model, held_out_batches), "unigram_loss": unigram},
        every=max(1, settings.steps // EVALUATIONS),
        progress=progress,
        stop_after=stop_after,
    )
    if not ended:
        return log
    gain, error = gain_over_unigram(model, held_out_batches, frequencies)
    return finish(folder, {**log, "gain": gain, "gain_se": error}, model)


def _split(cells: TokenisedCells, settings: Settings) -> tuple[TokenisedCells, TokenisedCells]:
    usable = np.flatnonzero(cells.lengths > 0)
    n_held_out = max(1, round(settings.held_out * usable.size))
    if usable.size - n_held_out < 1:
        raise ValueError(
            f"{usable.size} cells have tokens and {n_held_out} are to be held out: none is left to train on; "
            "give more cells, or check that the vocabulary holds the data's genes"
        )
    order = rng(settings.seed, SPLIT).permutation(usable)
    return cells.select(np.sort(order[n_held_out:])), cells.select(np.sort(order[:n_held_out]))


def _training_batch(
    train: TokenisedCells, rows: np.ndarray, draws: np.random.Generator, settings: Settings
) -> MaskedBatch:
    if settings.preset.count_noise == 0:
        return _mask(train, rows, draws, settings)
    reranked = train.reranked(rows, draws, settings.preset.count_noise)
    return _mask(reranked, np.arange(rows.size), draws, settings)


def _mask(
    cells: TokenisedCells,
    rows: np.ndarray,
    draws: np.random.Generator,
    settings: Settings,
    hide_all: bool = False,
) -> MaskedBatch:
    return mask_batch(
        cells,
        rows,
        draws,
        rate=settings.mask,
        vocabulary_size=settings.vocabulary_size,
        mask=MASK,
        n_special=N_SPECIAL,
        hide_all=hide_all,
    )


def _held_out_batches(cells: TokenisedCells, settings: Settings) -> list[MaskedBatch]:
    draws = rng(settings.seed, HELD_OUT)
    batches = random_batches(cells.lengths, settings.batch_tokens, draws)
    return [_mask(cells, rows, draws, settings, hide_all=True) for rows in batches]
