"""Guessing the bins of hidden counts: which are hidden, how guesses are scored, and what a cell-blind guess knows."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from scfast.models.base import TokenKind, Tokens
from scfast.models.bioformers_network import MASKED


@dataclass(frozen=True)
class MaskedValues:
    """Cells with some of their values hidden.

    Attributes
    ----------
    tokens
        What the model sees.
    chosen
        int64 [M]: tokens whose bin the model must guess.
    targets
        int64 [M]: these bins.
    """

    tokens: Tokens
    chosen: torch.Tensor
    targets: torch.Tensor

    def to(self, device: torch.device | str) -> MaskedValues:
        """The same on ``device``."""
        return MaskedValues(self.tokens.to(device), self.chosen.to(device), self.targets.to(device))


def mask_values(
    tokens: Tokens, draws: np.random.Generator, *, rate: float, nonzero: float, behind: bool = False
) -> MaskedValues:
    """Hide the values of a share ``rate`` of each cell's genes, a share ``nonzero`` of those above 0.

    A cell that has too few genes of one kind hides fewer of them. At least one gene of the batch is hidden.

    Parameters
    ----------
    tokens
        The batch, with values.
    draws
        Source of all choices: the same state of the generator gives the same batch.
    rate, nonzero
        m and p of Amara-Belgadi et al. 2023.
    behind
        Put hidden genes behind the others of their cell, in random order, before a <cls> at its end. Where genes lie by
        falling count, a causal model would read a hidden count from its place.
    """
    assert tokens.values is not None
    values, gene = tokens.values.numpy(), tokens.kind.numpy() == TokenKind.GENE
    cell = np.repeat(np.arange(tokens.n_cells), tokens.lengths)
    wanted = np.rint(rate * np.bincount(cell[gene], minlength=tokens.n_cells))
    wanted_above = np.rint(nonzero * wanted)
    u = draws.random(tokens.n_tokens)
    chosen = np.concatenate(
        [
            _fewest(gene & (values > 0), u, cell, wanted_above),
            _fewest(gene & (values == 0), u, cell, wanted - wanted_above),
        ]
    )
    if chosen.size == 0:
        chosen = draws.choice(np.flatnonzero(gene), size=1)
    hidden = np.zeros(tokens.n_tokens, dtype=bool)
    hidden[chosen] = True
    seen = torch.where(torch.from_numpy(hidden), float(MASKED), tokens.values)
    masked, targets = replace(tokens, values=seen), tokens.values
    if behind:
        place = np.where(hidden, u, np.arange(tokens.n_tokens))
        order = torch.from_numpy(np.lexsort((place, np.where(gene, hidden, 2), cell)))
        masked, targets = _reordered(masked, order), targets[order]
        hidden = hidden[order.numpy()]
    at = torch.from_numpy(np.flatnonzero(hidden))
    return MaskedValues(masked, at, targets[at].long())


def _fewest(which: np.ndarray, u: np.ndarray, cell: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Of the tokens ``which``, those with the smallest ``u``: ``wanted`` [B] of each cell."""
    at = np.flatnonzero(which)
    at = at[np.lexsort((u[at], cell[at]))]
    there = np.bincount(cell[at], minlength=len(wanted))
    rank = np.arange(at.size) - (np.cumsum(there) - there)[cell[at]]
    return at[rank < wanted[cell[at]]]


def _reordered(tokens: Tokens, order: torch.Tensor) -> Tokens:
    """Tokens in another order within their cells; positions and cells stay."""
    moved = {
        field.name: part[order]
        for field in fields(tokens)
        if field.name in ("ids", "gene_index", "kind", "values", "external")
        and (part := getattr(tokens, field.name)) is not None
    }
    return replace(tokens, **moved)


def bin_frequencies(batches: list[MaskedValues], n_genes: int, n_bins: int) -> torch.Tensor:
    """Log share [n_genes + 1, n_bins] of each bin among a gene's hidden values, add-one smoothed: it sees no cell."""
    counts = torch.ones(n_genes + 1, n_bins, dtype=torch.float64)
    for batch in batches:
        at = (batch.tokens.ids[batch.chosen], batch.targets)
        counts.index_put_(at, torch.ones(len(batch.targets), dtype=torch.float64), accumulate=True)
    return (counts / counts.sum(1, keepdim=True)).log()


def score(logits: list[torch.Tensor], targets: torch.Tensor, last_exact: int | None) -> dict[str, float]:
    """How well bins are guessed.

    Parameters
    ----------
    logits
        [M, n_bins], in parts.
    targets
        int64 [M].
    last_exact
        The bin of the cut-off, where bins have one.

    Returns
    -------
    ``loss`` (cross-entropy, nats), ``sensitivity`` (share of the bins above 0 that are guessed exactly), ``npv``
    (share of guesses of 0 that are right: NPV-50 where half of the hidden values are 0) and, with ``last_exact``,
    ``hel_sensitivity`` (share of the bins above it that are guessed up to one bin). A share of nothing is left out.
    """
    scores = torch.cat(logits)
    guessed, above = scores.argmax(-1), targets > 0
    right = {
        "sensitivity": (guessed == targets)[above],
        "npv": (~above)[guessed == 0],
    }
    if last_exact is not None:
        right["hel_sensitivity"] = ((guessed - targets).abs() <= 1)[targets > last_exact]
    shares = {name: float(hits.double().mean()) for name, hits in right.items() if hits.numel()}
    return {"loss": float(cross_entropy(scores.double(), targets)), **shares}
