"""The loop over batches: tokens in, results out. It knows nothing of what is computed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import sparse
from tqdm import tqdm

from scfast.analyses.base import Accumulator, Batch, RowWriter
from scfast.attention.recorder import Recorder
from scfast.models.base import AttentionSource, TokenKind, Tokens
from scfast.observables.base import Observable
from scfast.run.collect import Collector
from scfast.run.counts import Counts
from scfast.run.plan import Plan

#: Tokens made ahead of the model, at most: 35 MB of them.
AHEAD_TOKENS = 2**20


@dataclass(frozen=True, eq=False)
class TokenSurvey:
    """What tokenising every cell said, before any model ran.

    Attributes
    ----------
    lengths
        int64 [cells]: tokens of each cell.
    gene_tokens
        int64 [cells]: those that stand for a gene.
    holds
        bool [cells]: whether the cell has a token of the gene that was asked about.
    tokens
        The tokens, where there were few enough to keep.
    """

    lengths: np.ndarray
    gene_tokens: np.ndarray
    holds: np.ndarray
    tokens: Tokens | None


def survey(source: AttentionSource, counts: Counts, *, gene: int | None = None) -> TokenSurvey:
    """Tokenise all cells once, to know their lengths.

    Parameters
    ----------
    source
        The model, whose tokeniser is used.
    counts
        The cells.
    gene
        Column of a gene to look for in every cell.
    """
    n_cells, step = counts.n_cells, _rows_ahead(source)
    lengths, gene_tokens = np.zeros((2, n_cells), dtype=np.int64)
    holds = np.zeros(n_cells, dtype=bool)
    tokens = None
    for start in range(0, n_cells, step):
        rows = np.arange(start, min(start + step, n_cells))
        block, totals = counts.take(rows)
        tokens = _tokenize(source, block, counts, totals)
        lengths[rows] = tokens.lengths
        cell = np.repeat(rows, tokens.lengths)
        column = tokens.gene_index.numpy()
        is_gene = (tokens.kind.numpy() == TokenKind.GENE) & (column >= 0)
        np.add.at(gene_tokens, cell[is_gene], 1)
        if gene is not None:
            holds[cell[is_gene & (column == gene)]] = True
    return TokenSurvey(lengths, gene_tokens, holds, tokens if n_cells <= step else None)


def run(
    source: AttentionSource,
    counts: Counts,
    analyses: Mapping[str, Accumulator | RowWriter],
    plan: Plan,
    observables: Callable[[Tokens], Sequence[Observable]],
    *,
    tokens: Tokens | None = None,
    backend: str = "auto",
    progress: bool | None = None,
    label: str | None = None,
) -> dict[str, Any]:
    """Run the model over the cells of a plan.

    Parameters
    ----------
    source
        The model.
    counts
        The cells.
    analyses
        Accumulators, which are updated in place, and row writers.
    plan
        Which cells, in which batches.
    observables
        Makes what is recorded of a batch; called for each batch, so that nothing outlives it.
    tokens
        Tokens of all rows of ``counts``, where they are at hand already.
    backend
        Of the ops.
    progress
        Show a bar. Default: on a terminal.
    label
        What the bar is called.

    Returns
    -------
    dict
        The result of every analysis, by name; row writers give [cells, columns] in the order of the data.
    """
    collectors = {
        name: Collector(x, counts.n_cells) for name, x in analyses.items() if isinstance(x, RowWriter)
    }
    disable = None if progress is None else not progress  # None: tqdm looks whether this is a terminal
    with (
        torch.inference_mode(),
        tqdm(total=plan.n_cells, unit="cell", desc=label or source.name, disable=disable) as bar,
    ):
        for rows, block, batch_tokens in _batches(source, counts, plan, tokens):
            recorder = Recorder(observables(batch_tokens), backend=backend, keep=False)
            source.forward(batch_tokens, recorder)
            batch = Batch(rows, batch_tokens, recorder.batch, block)
            for name, analysis in analyses.items():
                if name in collectors:
                    collectors[name].add(analysis.rows(batch))  # type: ignore[union-attr]
                else:
                    analysis.update(batch)  # type: ignore[union-attr]
            bar.update(len(rows))
    sources: Mapping[str, Any] = {**analyses, **collectors}
    return {name: sources[name].result() for name in analyses}


def _tokenize(
    source: AttentionSource, block: sparse.csr_matrix, counts: Counts, totals: np.ndarray | None
) -> Tokens:
    """Tokens of a block of cells, without a warning per block about values that were looked at as a whole."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*recover_counts", category=UserWarning)
        return source.tokenize(block, counts.var, totals)


def _rows_ahead(source: AttentionSource) -> int:
    """Cells whose tokens are made at once."""
    return max(1, AHEAD_TOKENS // source.max_tokens)


def _batches(
    source: AttentionSource, counts: Counts, plan: Plan, tokens: Tokens | None
) -> Iterator[tuple[np.ndarray, sparse.csr_matrix, Tokens]]:
    """(rows, counts, tokens) of each batch of the plan; several batches are tokenised at once."""
    if tokens is not None:
        for rows in plan.batches():
            yield rows, counts.take(rows)[0], tokens.select(rows)
        return
    waiting: list[np.ndarray] = []
    for number, rows in enumerate(plan.batches(), start=1):
        waiting.append(rows)
        if sum(map(len, waiting)) < _rows_ahead(source) and number < plan.n_batches:
            continue
        ahead = np.concatenate(waiting)
        block, totals = counts.take(ahead)
        made = _tokenize(source, block, counts, totals)
        start = 0
        for batch in waiting:
            here = np.arange(start, start + len(batch))
            yield batch, block[start : start + len(batch)], made.select(here)
            start += len(batch)
        waiting = []
