"""Hidden bins of held-out cells, guessed by a trained BioFormers and by what sees less of the cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn.functional import cross_entropy

from scfast.models.base import Tokens
from scfast.models.bioformers import BioformersSource
from scfast.train.bioformers import Settings, Trainable, held_out_batches, mask_passes, split
from scfast.train.linear_guesses import LinearGuesses, fit_complete, fit_masked, most_correlated
from scfast.train.masked_values import MaskedValues, bin_frequencies

MODEL, MODEL_MEAN = "BioFormers", "BioFormers, expected bin"
FREQUENCIES, MEAN = "the gene's bin frequencies", "the gene's mean"
LINEAR, LINEAR_MASKED = "linear regression", "linear regression under masks"


@dataclass(frozen=True)
class Guesses:
    """Guesses of the hidden values.

    Attributes
    ----------
    targets
        int64 [M]: their bins.
    cell
        int64 [M]: number of each one's cell.
    guessed
        Name -> int64 [M].
    loss
        Name -> cross-entropy in nats, of those that give probabilities.
    """

    targets: torch.Tensor
    cell: torch.Tensor
    guessed: dict[str, torch.Tensor]
    loss: dict[str, float]


class _ByGene(NamedTuple):
    """Cells as a matrix: true ``bins`` [B, G], those that are ``hidden`` [B, G], and cell and gene [M] of these."""

    bins: torch.Tensor
    hidden: torch.Tensor
    cell: torch.Tensor
    gene: torch.Tensor


def guess(source: BioformersSource, cells: Tokens, settings: Settings, correlated: int | None) -> Guesses:
    """Guess what the fixed mask hides of the cells that training held out.

    Parameters
    ----------
    source
        The trained model.
    cells
        Tokens of all cells it was trained and scored on.
    settings
        Of its training.
    correlated
        Genes that the regressions look at; None: the model alone.
    """
    train_cells, held_out_cells = (cells.select(rows) for rows in split(cells, settings))
    batches = held_out_batches(held_out_cells, settings)
    targets = torch.cat([batch.targets for batch in batches])
    there = _by_gene(batches, len(source.genes))
    model = Trainable(source.network)
    with torch.no_grad():
        logits = {MODEL: torch.cat([model(batch.to(source.device)).cpu() for batch in batches])}
    last = source.network.shape.n_bins - 1
    shares = logits[MODEL].double().softmax(-1)
    expected = {MODEL_MEAN: shares @ torch.arange(last + 1, dtype=torch.float64)}
    if correlated is not None:
        passes, shape = mask_passes(train_cells, settings), source.network.shape
        seen = [batch for once in passes for batch in once]
        frequencies = bin_frequencies(seen, shape.n_genes, shape.n_bins)
        logits[FREQUENCIES] = frequencies[there.gene + 1]
        every = torch.empty(0, dtype=torch.int64)
        bins = _by_gene([MaskedValues(train_cells, every, every)], shape.n_genes).bins
        expected[MEAN] = bins.double().mean(0)[there.gene]
        neighbours = most_correlated(bins, correlated)
        masked = (_by_gene(once, shape.n_genes)[:2] for once in passes)
        regressions: dict[str, LinearGuesses] = {
            LINEAR: fit_complete(bins, neighbours),
            LINEAR_MASKED: fit_masked(bins.double().mean(0), masked, neighbours),
        }
        for name, regression in regressions.items():
            expected[name] = regression.predict(there.bins, there.hidden)[there.cell, there.gene]
    guessed = {name: scores.argmax(-1) for name, scores in logits.items()}
    guessed |= {name: bins.round().clamp(0, last).long() for name, bins in expected.items()}
    loss = {name: float(cross_entropy(scores.double(), targets)) for name, scores in logits.items()}
    return Guesses(targets, there.cell, guessed, loss)


def _by_gene(batches: list[MaskedValues], n_genes: int) -> _ByGene:
    """Genes that a cell has no token for are 0."""
    n_cells = sum(batch.tokens.n_cells for batch in batches)
    bins, hidden = torch.zeros(n_cells, n_genes + 1), torch.zeros(n_cells, n_genes + 1, dtype=torch.bool)
    first, cells, genes = 0, [], []
    for batch in batches:
        tokens, chosen = batch.tokens, batch.chosen
        assert tokens.values is not None
        cell = tokens.packing.cell_of_query() + first
        bins[cell, tokens.ids] = tokens.values.index_copy(0, chosen, batch.targets.to(tokens.values.dtype))
        hidden[cell[chosen], tokens.ids[chosen]] = True
        cells.append(cell[chosen])
        genes.append(tokens.ids[chosen] - 1)
        first += tokens.n_cells
    return _ByGene(bins[:, 1:], hidden[:, 1:], torch.cat(cells), torch.cat(genes))
