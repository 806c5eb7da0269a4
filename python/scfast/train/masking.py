"""Masked-gene training examples: which cells make a batch, and which of their tokens the model must guess."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from scfast.packing import Packing


@dataclass(frozen=True)
class TokenisedCells:
    """The gene tokens of many cells, one cell after another.

    Attributes
    ----------
    ids
        int64 [T]: token ids, each cell's genes in rank order, without padding.
    offsets
        int64 [B + 1]: where each cell starts; the last entry is T.
    counts, weights
        float64 [T]: each token's count, and what it is multiplied by to be ranked (one over the gene's
        median). For :meth:`reranked`.
    """

    ids: np.ndarray
    offsets: np.ndarray
    counts: np.ndarray | None = None
    weights: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.offsets.size == 0 or self.offsets[0] != 0 or self.offsets[-1] != self.ids.size:
            raise ValueError(
                f"offsets must run from 0 to the number of tokens ({self.ids.size}); "
                f"got {self.offsets[:1].tolist()} to {self.offsets[-1:].tolist()}"
            )
        if (np.diff(self.offsets) < 0).any():
            raise ValueError("offsets must not decrease")

    @property
    def n_cells(self) -> int:
        """Number of cells, B."""
        return self.offsets.size - 1

    @property
    def lengths(self) -> np.ndarray:
        """int64 [B]: tokens per cell."""
        return np.diff(self.offsets)

    def cell(self, i: int) -> np.ndarray:
        """Tokens of cell ``i``."""
        return self.ids[self.offsets[i] : self.offsets[i + 1]]

    def reranked(self, rows: np.ndarray, rng: np.random.Generator, share: float = 1.0) -> TokenisedCells:
        """The given cells, a share of them (each drawn with that chance) ranked anew with counting noise.

        There a count c is replaced by a draw from Gamma(c), the uncertainty of a rate of which c events were
        seen. Genes of one count otherwise always stand in the order of their medians, whatever the cell, and
        a hidden gene can be told from its neighbours' place in that order without looking at the cell.
        """
        if self.counts is None or self.weights is None:
            raise ValueError("ranking anew needs the counts and weights of the tokens")
        parts = []
        for row in rows:
            tokens = slice(self.offsets[row], self.offsets[row + 1])
            if rng.random() >= share:
                parts.append(self.ids[tokens])
                continue
            values = rng.standard_gamma(self.counts[tokens]) * self.weights[tokens]
            parts.append(self.ids[tokens][np.argsort(-values, kind="stable")])
        return _concatenated(parts)

    def select(self, cells: np.ndarray) -> TokenisedCells:
        """The given cells, in the given order."""
        tokens = [slice(self.offsets[i], self.offsets[i + 1]) for i in cells]
        picked = _concatenated([self.ids[part] for part in tokens])
        if self.counts is None or self.weights is None or not tokens:
            return picked
        counts, weights = (np.concatenate([x[part] for part in tokens]) for x in (self.counts, self.weights))
        return TokenisedCells(picked.ids, picked.offsets, counts, weights)


def _concatenated(parts: list[np.ndarray]) -> TokenisedCells:
    offsets = np.concatenate([[0], np.cumsum([part.size for part in parts])]).astype(np.int64)
    return TokenisedCells(np.concatenate(parts) if parts else np.empty(0, dtype=np.int64), offsets)


@dataclass(frozen=True)
class MaskedBatch:
    """Cells laid end to end, without padding, with some genes hidden.

    Attributes
    ----------
    ids
        int64 [T]: what the model sees.
    packing
        Where the cells lie.
    chosen
        int64 [M]: positions in ``ids`` that the model must guess.
    targets
        int64 [M]: the genes that stood there.
    """

    ids: torch.Tensor
    packing: Packing
    chosen: torch.Tensor
    targets: torch.Tensor


def random_batches(lengths: np.ndarray, batch_tokens: int, rng: np.random.Generator) -> list[np.ndarray]:
    """One epoch of batches: every cell once, in random order, as many as ``batch_tokens`` hold.

    A cell that is longer makes a batch of its own.
    """
    batches: list[list[int]] = []
    room = 0
    for cell in rng.permutation(lengths.size):
        if not batches or lengths[cell] > room:
            batches.append([])
            room = batch_tokens
        batches[-1].append(int(cell))
        room -= int(lengths[cell])
    return [np.array(batch) for batch in batches]


def mask_batch(
    cells: TokenisedCells,
    rows: np.ndarray,
    rng: np.random.Generator,
    *,
    rate: float,
    vocabulary_size: int,
    mask: int,
    n_special: int,
    hide_all: bool = False,
) -> MaskedBatch:
    """Choose gene tokens at ``rate``; hide 80 % of the chosen, swap 10 %, leave 10 % as they are.

    The rule of BERT (Devlin et al. 2019), which Geneformer (Theodoris et al. 2023) trains with. At least one
    token per batch is chosen. Token ids below ``n_special`` are never chosen and never swapped in.

    Parameters
    ----------
    cells, rows
        The cells, and which of them make this batch.
    rng
        Source of all choices: the same generator state gives the same batch.
    hide_all
        Replace every chosen token by the mask, for a held-out loss that never shows the answer.
    """
    seen = np.concatenate([cells.cell(int(row)) for row in rows]).astype(np.int64)
    candidates = np.flatnonzero(seen >= n_special)
    chosen = candidates[rng.random(candidates.size) < rate]
    if chosen.size == 0:
        chosen = rng.choice(candidates, size=1)
    targets = seen[chosen].copy()
    fate = rng.random(chosen.size)
    swapped = rng.integers(n_special, vocabulary_size, size=chosen.size)
    if hide_all:
        seen[chosen] = mask
    else:
        seen[chosen] = np.where(fate < 0.8, mask, np.where(fate < 0.9, swapped, targets))
    packing = Packing.from_lengths(cells.lengths[rows].tolist())
    return MaskedBatch(torch.from_numpy(seen), packing, torch.from_numpy(chosen), torch.from_numpy(targets))
