"""The loss of guessing hidden genes, and the loss of gene frequencies that it must beat."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from scfast.train.fit import packed_states
from scfast.train.masking import MaskedBatch, TokenisedCells


def masked_loss(model: torch.nn.Module, batch: MaskedBatch, reduction: str = "mean") -> torch.Tensor:
    """Cross-entropy, in nats, of the hidden genes of a batch; logits only where one must be guessed."""
    states = packed_states(model.get_submodule("bert"), batch.ids, batch.packing)  # [T, d]
    logits = model.get_submodule("cls")(states[batch.chosen])  # [M, V]: only where a gene must be guessed
    return cross_entropy(logits, batch.targets, reduction=reduction)


@torch.no_grad()
def evaluate(model: torch.nn.Module, batches: list[MaskedBatch]) -> float:
    """Mean cross-entropy, in nats, over all chosen positions of the batches."""
    model.eval()
    total = sum(float(masked_loss(model, batch, reduction="sum")) for batch in batches)
    return total / sum(batch.targets.numel() for batch in batches)


def log_frequencies(train: TokenisedCells, vocabulary_size: int, n_special: int) -> np.ndarray:
    """Log share of each token id among the training tokens, add-one smoothed; special tokens have none."""
    counts = np.bincount(train.ids, minlength=vocabulary_size) + 1.0
    counts[:n_special] = 0.0
    with np.errstate(divide="ignore"):
        return np.log(counts / counts.sum())


def unigram_loss(batches: list[MaskedBatch], log_frequencies: np.ndarray) -> float:
    """Cross-entropy of gene frequencies alone, in nats, at the hidden genes of the batches."""
    targets = torch.cat([batch.targets for batch in batches]).numpy()
    return float(-log_frequencies[targets].mean())


@torch.no_grad()
def gain_over_unigram(
    model: torch.nn.Module, batches: list[MaskedBatch], log_frequencies: np.ndarray
) -> tuple[float, float]:
    """Unigram loss minus held-out loss, at the same hidden genes, and its standard error between cells."""
    model.eval()
    gains, cells, seen = [], [], 0
    for batch in batches:
        loss = masked_loss(model, batch, reduction="none").double().numpy()
        gains.append(-log_frequencies[batch.targets.numpy()] - loss)
        cells.append(batch.packing.cell_of_query().numpy()[batch.chosen.numpy()] + seen)
        seen += batch.packing.n_cells
    gain, cell = np.concatenate(gains), np.concatenate(cells)
    mean = float(gain.mean())
    of_cells = np.bincount(cell, gain - mean, minlength=seen)
    return mean, float(np.sqrt((of_cells**2).sum()) / gain.size)
