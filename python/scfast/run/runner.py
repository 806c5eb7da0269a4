"""Cells in, results out: tokens are surveyed, then run batch by batch. It knows nothing of what is computed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from scfast.analyses.base import Accumulator, RowWriter
from scfast.models.base import AttentionSource, TokenKind, Tokens
from scfast.observables.base import Observable
from scfast.run.ahead import THREADS, in_order, token_threads
from scfast.run.collect import Collector
from scfast.run.counts import Counts
from scfast.run.loop import Loop, Piece
from scfast.run.plan import Plan
from scfast.run.stages import stage
from scfast.run.transfer import transfer_to

#: Tokens that are made at once, by all threads together: 35 MB of them, at most.
AHEAD_TOKENS = 2**20
#: Parts in which they are made, by as many threads or one after the other: what arrays come and go stays in the caches.
PARTS = THREADS


@dataclass(frozen=True, eq=False)
class TokenSurvey:
    """What tokenising every cell said, before any model ran.

    Attributes
    ----------
    lengths
        int32 [cells]: tokens of each cell.
    gene_tokens
        int32 [cells]: those that stand for a gene.
    holds
        bool [cells]: whether the cell has a token of the gene, or of one of the genes, asked about.
    tokens
        The tokens, where there were few enough to keep.
    fingerprint
        Of which gene stands where in every cell: two models with the same fingerprint read the same sequences.
    repeats
        Whether any cell has several tokens of one gene.
    """

    lengths: np.ndarray
    gene_tokens: np.ndarray
    holds: np.ndarray
    tokens: Tokens | None
    fingerprint: str
    repeats: bool


def survey(
    source: AttentionSource, counts: Counts, *, gene: int | Sequence[int] | None = None
) -> TokenSurvey:
    """Tokenise all cells once, to know their lengths.

    Parameters
    ----------
    source
        The model, whose tokeniser is used.
    counts
        The cells.
    gene
        Column of a gene to look for in every cell, or of several of which a cell needs one.

    Returns
    -------
    TokenSurvey
        Lengths, and what was asked of every cell.

    Examples
    --------
    >>> import scfast
    >>> adata, model = scfast.datasets.toy()
    >>> found = survey(model, Counts(adata.X, adata.var))
    >>> len(found.lengths), bool((found.lengths == adata.X.getnnz(1)).all())
    (60, True)
    """
    n_cells, step = counts.n_cells, _rows_ahead(source)
    lengths, gene_tokens = np.zeros(n_cells, dtype=np.int32), np.zeros(n_cells, dtype=np.int32)
    holds = np.zeros(n_cells, dtype=bool)
    repeats, kept = False, None

    def look(rows: np.ndarray) -> bytes:
        """Fill in what is asked of some cells, which are nobody else's; the marks of their tokens."""
        nonlocal repeats, kept
        _, tokens = counts.tokenize(source, rows)
        with stage("tokenising"):
            lengths[rows] = tokens.lengths
            column, here = tokens.gene_index.numpy(), lengths[rows]
            # NumPy would compare an enum number by number.
            is_gene = tokens.kind.numpy() == int(TokenKind.GENE)
            is_gene &= column >= 0
            gene_tokens[rows] = here - _per_cell(~is_gene, here)
            if not (repeats or source.distinct_genes):
                cell = np.repeat(rows, here)[is_gene]
                pairs = np.sort(cell * np.int64(counts.var.shape[0]) + column[is_gene])
                if (pairs[1:] == pairs[:-1]).any():
                    repeats = True
            if gene is not None:
                holds[rows] = _per_cell(is_gene & np.isin(column, gene), here) > 0
            if n_cells <= step:
                kept = tokens
            return _marks(column, tokens.positions.numpy(), here).tobytes()

    threads = 1 if n_cells <= step else token_threads(source)
    at_once = max(1, n_cells if n_cells <= step else step // PARTS)  # few cells: all their tokens are kept
    blocks = (np.arange(first, min(first + at_once, n_cells)) for first in range(0, n_cells, at_once))
    digest = hashlib.blake2b(digest_size=16)
    for marks in in_order(look, blocks, threads):
        digest.update(marks)
    digest.update(lengths.data)
    return TokenSurvey(lengths, gene_tokens, holds, kept, digest.hexdigest(), repeats)


def _per_cell(which: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """int64 [cells]: how many of each cell's tokens are among ``which``, bool [T]; few are, mostly."""
    cell = np.searchsorted(np.cumsum(lengths), np.flatnonzero(which), side="right")
    return np.bincount(cell, minlength=len(lengths))


def _marks(columns: np.ndarray, positions: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """int64 [cells]: a number for the sequence of columns in each cell, by a sum of products with random numbers.

    Two sequences of one length have the same number once in 2^63; several times as fast as a digest of the sequences.
    """
    random = np.random.default_rng(0).integers(-(2**63), 2**63, size=int(lengths.max(initial=0)))
    products = random[positions]
    products *= columns  # both wrap
    marks, full = np.zeros(len(lengths), dtype=np.int64), np.flatnonzero(lengths)
    if len(full):
        marks[full] = np.add.reduceat(products, (np.cumsum(lengths) - lengths)[full])
    return marks


class Results(dict[str, Any]):
    """The result of every analysis by name, and the plan as it was run.

    Attributes
    ----------
    plan
        The plan that was given; where memory ran out, with the batches that were run in its place.
    left_out
        (first, last + 1) of rows that could not be run, and why: of runs in shards.
    """

    plan: Plan
    left_out: Mapping[tuple[int, int], str] = {}


def run(
    source: AttentionSource,
    counts: Counts,
    analyses: Mapping[str, Accumulator | RowWriter],
    plan: Plan,
    observables: Callable[[Tokens], Sequence[Observable]],
    *,
    tokens: Tokens | None = None,
    backend: str = "auto",
    kept: Mapping[str, int] | None = None,
    progress: bool | None = None,
    label: str | None = None,
    gradients: bool = False,
) -> Results:
    """Run the model over the cells of a plan, on the device that the model is on.

    A batch for which there is too little memory after all is run in halves, which may be halved again, and one cell in
    smaller and smaller blocks of tokens; nothing of a batch is counted before it is complete, and no other changes.

    Parameters
    ----------
    source
        The model; see ``source.to(device)``.
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
    kept
        ``layers_kept`` and what else :func:`~scfast.run.memory.bytes_per_token` takes, to say what a cell needs that
        is too large. Default: q and k of all layers.
    progress
        Show a bar. Default: on a terminal.
    label
        What the bar is called.
    gradients
        Whether observables have a target, which is then differentiated.

    Returns
    -------
    Results
        The result of every analysis, by name; row writers give [cells, columns] in the order of the data. Its
        ``plan`` holds the batches that were run.

    Raises
    ------
    MemoryError
        When one cell does not fit by itself, nor in the smallest blocks; the message says what it needs.

    Examples
    --------
    Attention received, gene by gene, as a matrix of cells x genes:

    >>> import scfast
    >>> from scfast.analyses import CellScores
    >>> from scfast.observables import Received
    >>> from scfast.run import make_plan
    >>> adata, model = scfast.datasets.toy()
    >>> counts = Counts(adata.X, adata.var)
    >>> plan = make_plan(survey(model, counts).lengths, token_budget=1000)
    >>> results = run(model, counts, {"received": CellScores(40, "received")}, plan, lambda tokens: [Received()])
    >>> results["received"].shape
    (60, 40)
    """
    visited = visit(
        source, counts, analyses, plan, observables, tokens=tokens, backend=backend, kept=kept, progress=progress,
        label=label, gradients=gradients,
    )  # fmt: skip
    holders: Mapping[str, Any] = {**analyses, **visited.collectors}
    results = Results((name, holders[name].result()) for name in analyses)
    results.plan = visited.plan
    return results


class Visited(NamedTuple):
    """What is left of a run beside its accumulators: the row writers' collectors, and the plan as it was run."""

    collectors: dict[str, Collector]
    plan: Plan


def visit(
    source: AttentionSource,
    counts: Counts,
    analyses: Mapping[str, Accumulator | RowWriter],
    plan: Plan,
    observables: Callable[[Tokens], Sequence[Observable]],
    *,
    tokens: Tokens | None = None,
    backend: str = "auto",
    kept: Mapping[str, int] | None = None,
    progress: bool | None = None,
    label: str | None = None,
    gradients: bool = False,
    done: Callable[[int], object] | None = None,
    revised: Callable[[Sequence[int], Mapping[int, int]], object] = lambda cuts, blocks: None,
) -> Visited:
    """As :func:`run`, without its results.

    With ``done``, which is called with the number of cells of each finished batch, there is no bar. ``revised`` is
    called with all that :meth:`~scfast.run.plan.Plan.revised` takes whenever memory ran out.
    """
    first, last = int(plan.shard_rows[0]), int(plan.shard_rows[-1])
    collectors = {
        name: Collector(x, last - first, first) for name, x in analyses.items() if isinstance(x, RowWriter)
    }
    # None: tqdm looks whether this is a terminal
    disable = True if done is not None else None if progress is None else not progress
    with (
        torch.no_grad() if gradients else torch.inference_mode(),  # of inference tensors there is no gradient
        tqdm(total=plan.n_cells, unit="cell", desc=label or source.name, disable=disable) as bar,
    ):
        loop = Loop(
            source, analyses, collectors, observables, backend=backend, done=bar.update if done is None else done,
            transfer=transfer_to(source.device), block_tokens=plan.block_tokens,
            kept={"layers_kept": source.n_layers} if kept is None else kept, revised=revised,
        )  # fmt: skip
        loop.run(_pieces(source, counts, plan, tokens))
    return Visited(collectors, plan.revised(loop.cuts, loop.blocks))


def _rows_ahead(source: AttentionSource) -> int:
    """Cells whose tokens are made at once."""
    return max(1, AHEAD_TOKENS // source.max_tokens)


def _pieces(source: AttentionSource, counts: Counts, plan: Plan, tokens: Tokens | None) -> Iterator[Piece]:
    """The batches of the plan, with counts and tokens; several batches are tokenised at once."""
    starts, blocks = plan.offsets.tolist(), dict(plan.cells_in_blocks)
    if tokens is not None:
        for start, rows in zip(starts, plan.batches(), strict=False):
            yield Piece(start, rows, counts.take(rows)[0], tokens.select(rows), blocks.get(start, 0))
        return
    threads = token_threads(source)
    groups = _groups(plan, max(1, _rows_ahead(source) // PARTS))

    def make(group: list[tuple[int, np.ndarray]]) -> list[Piece]:
        block, made = counts.tokenize(source, np.concatenate([rows for _, rows in group]))
        pieces, done = [], 0
        for start, rows in group:
            here = slice(done, done + len(rows))
            part = made if len(group) == 1 else made.select(np.arange(here.start, here.stop))
            pieces.append(Piece(start, rows, block[here], part, blocks.get(start, 0)))
            done = here.stop
        return pieces

    for pieces in in_order(make, groups, threads):
        while pieces:
            yield pieces.pop(0)


def _groups(plan: Plan, n_rows: int) -> Iterator[list[tuple[int, np.ndarray]]]:
    """Batches, each with its start, that are tokenised together: as few as make up so many rows, of one shard."""
    group: list[tuple[int, np.ndarray]] = []
    ends = set(plan.shard_starts.tolist())  # so that cells of two shards are not needed at once
    starts = plan.offsets.tolist()
    for number, rows in enumerate(plan.batches()):
        group.append((starts[number], rows))
        if sum(len(batch) for _, batch in group) >= n_rows or starts[number + 1] in ends:
            yield group
            group = []
