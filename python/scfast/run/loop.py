"""The loop over batches: computed, copied back, added up; made smaller where memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import sparse

from scfast.analyses.base import Accumulator, Batch, RowWriter
from scfast.attention.recorder import Recorder
from scfast.models.base import AttentionSource, Tokens
from scfast.observables.base import Observable
from scfast.run.collect import Collector
from scfast.run.memory import bytes_per_token, smaller_block
from scfast.run.out_of_memory import cell_too_large, is_out_of_memory
from scfast.run.stages import stage
from scfast.run.transfer import Transfer

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Piece:
    """Cells that are computed together: a batch of the plan, or a part of one.

    Attributes
    ----------
    start
        Place of the first cell in the plan.
    rows
        int64 [B]: row numbers of the cells in the data.
    counts, tokens
        Theirs, on the host.
    block_tokens
        Tokens of the blocks in which the model runs them; 0: in the form it was given.
    """

    start: int
    rows: np.ndarray
    counts: sparse.csr_matrix
    tokens: Tokens
    block_tokens: int = 0

    def halves(self) -> tuple[Piece, Piece]:
        """Two pieces of two or more cells, as equal in tokens as can be; the order stays."""
        ends = np.cumsum(self.tokens.lengths)
        cut = 1 + int(np.argmin(np.maximum(ends[:-1], ends[-1] - ends[:-1])))
        return self._part(0, cut), self._part(cut, len(self.rows))

    def _part(self, start: int, stop: int) -> Piece:
        tokens = self.tokens.select(np.arange(start, stop))
        return Piece(self.start + start, self.rows[start:stop], self.counts[start:stop], tokens)


@dataclass(eq=False)
class _Running:
    """A piece that was handed to the device, and its results on their way."""

    piece: Piece
    recorder: Recorder
    results: Callable[[], dict[str, torch.Tensor]]


class Loop:
    """Runs pieces through a model and adds up what is observed, in the order of the pieces.

    Where memory runs out in a piece, wherever that is, nothing of it has been added: it is run in halves, one cell in
    smaller and smaller blocks of tokens, and the pieces before and after it are as they were.

    Parameters
    ----------
    source
        The model.
    analyses, collectors
        What takes the results; each row writer has a collector of its name.
    observables
        Makes what is recorded of a piece.
    backend
        Of the ops.
    transfer
        To the model's device and back.
    block_tokens
        Tokens of the blocks in which the model was given; 0: whole.
    kept
        ``layers_kept`` and what else :func:`~scfast.run.memory.bytes_per_token` takes, for the message about a cell
        that is too large.
    done
        Called with the number of cells of each finished piece.
    revised
        Called with :attr:`cuts` and :attr:`blocks` when memory ran out, before anything is tried again.

    Attributes
    ----------
    cuts
        Places in the plan where a batch was cut in two.
    blocks
        Tokens of a block, for cells that were run in smaller ones, by their place in the plan.
    """

    def __init__(
        self,
        source: AttentionSource,
        analyses: Mapping[str, Accumulator | RowWriter],
        collectors: Mapping[str, Collector],
        observables: Callable[[Tokens], Sequence[Observable]],
        *,
        backend: str,
        transfer: Transfer,
        block_tokens: int,
        kept: Mapping[str, int],
        done: Callable[[int], object],
        revised: Callable[[Sequence[int], Mapping[int, int]], object] = lambda cuts, blocks: None,
    ) -> None:
        self._source, self._observables, self._backend = source, observables, backend
        self._writers = {name: x for name, x in analyses.items() if isinstance(x, RowWriter)}
        rest = {name: x for name, x in analyses.items() if name not in self._writers}
        self._accumulators = {name: x for name, x in rest.items() if isinstance(x, Accumulator)}
        for name in rest.keys() - self._accumulators.keys():
            raise TypeError(
                f"{name!r} is a {type(rest[name]).__name__}, neither an Accumulator nor a RowWriter: it lacks one of"
                " their methods (scfast.analyses.base)"
            )
        self._collectors = collectors
        self._transfer, self._block_tokens, self._kept, self._done = transfer, block_tokens, kept, done
        self.cuts: list[int] = []
        self.blocks: dict[int, int] = {}
        self._revised = revised
        self._reason = ""
        self._takes_blocks = True

    def run(self, pieces: Iterator[Piece]) -> None:
        """Run all pieces. While a GPU computes one, the host fetches the next and adds up the one before."""
        with self._transfer.active():
            before: _Running | None = None
            piece = next(pieces, None)
            tokens = self._upload(piece)
            while piece is not None:
                with stage("model"):
                    running = self._start(piece, tokens)
                following = next(pieces, None)
                tokens = self._upload(following)
                if before is not None:
                    self._finish(before)
                    before = None
                if running is None:
                    self._retry(piece)
                elif self._transfer.overlaps:
                    before = running
                else:
                    self._finish(running)
                piece = following
            if before is not None:
                self._finish(before)

    def _upload(self, piece: Piece | None) -> Callable[[], Tokens] | None:
        """Start the copy of a piece's tokens; without memory for that, it waits until the piece is started."""
        if piece is None:
            return None
        try:
            return self._transfer.upload(piece.tokens)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return None

    def _start(self, piece: Piece, tokens: Callable[[], Tokens] | None) -> _Running | None:
        """Hand a piece to the device; None when memory ran out."""
        try:
            recorder = Recorder(
                self._observables(piece.tokens), backend=self._backend, keep=False, check=False
            )
            arrived = (self._transfer.upload(piece.tokens) if tokens is None else tokens)()
            self._takes_blocks = recorder.takes_blocks
            self._form(piece).forward(arrived, recorder)
            return _Running(piece, recorder, self._transfer.download(recorder.batch))
        except Exception as error:
            self._note(error)
        # The error is gone here, and with it the frames that held on to the piece's tensors.
        return None

    def _form(self, piece: Piece) -> AttentionSource:
        """The model as the piece is run on it."""
        form = self._source.in_blocks(piece.block_tokens) if piece.block_tokens else self._source
        if form is None:
            raise ValueError(
                f"the plan runs the cell in row {piece.rows[0]} in blocks of tokens, which {self._source.name} cannot"
            )
        return form

    def _finish(self, running: _Running) -> None:
        """Add a piece up once its results are on the host; run it in smaller ones where memory runs out."""
        with stage("analyses"):
            added = self._add_up(running)
        if not added:
            piece = running.piece
            del running.recorder, running.results  # their memory is needed
            self._retry(piece)

    def _add_up(self, running: _Running) -> bool:
        """Add a piece to all analyses, or to none: False when memory ran out."""
        piece = running.piece
        try:
            with stage("model"):  # what is left of it
                results = running.results()
            running.recorder.check(results)
            batch = Batch(piece.rows, piece.tokens, results, piece.counts)
            additions = {name: x.additions(batch) for name, x in self._accumulators.items()}
            placed = [self._collectors[name].prepare(x.rows(batch)) for name, x in self._writers.items()]
        except Exception as error:
            self._note(error)
            return False
        # No array is allocated from here on, so that nothing can stop half way.
        for name, addition in additions.items():
            self._accumulators[name].add(addition)
        for place in placed:
            place()
        self._done(len(piece.rows))
        return True

    def _note(self, error: Exception) -> None:
        """Remember what the allocator said, as text; any other error is raised."""
        if not is_out_of_memory(error):
            raise error
        self._reason = (str(error) or type(error).__name__).splitlines()[0]

    def _retry(self, piece: Piece) -> None:
        """Run a piece again in less memory: two halves, one after the other, or one cell in smaller blocks."""
        self._transfer.release()
        for part in self._blocks(piece) if len(piece.rows) == 1 else self._halves(piece):
            with stage("model"):
                running = self._start(part, None)
            if running is None:
                self._retry(part)
            else:
                self._finish(running)

    def _halves(self, piece: Piece) -> tuple[Piece, ...]:
        _LOG.warning(
            "%s: %d cells with %d tokens ran out of memory and are run in two halves (%s)",
            self._source.name, len(piece.rows), piece.tokens.n_tokens, self._reason,
        )  # fmt: skip
        halves = piece.halves()
        self.cuts.append(halves[1].start)
        self._revised(self.cuts, self.blocks)
        return halves

    def _blocks(self, piece: Piece) -> tuple[Piece, ...]:
        """The piece of one cell in the next smaller blocks."""
        (length,) = piece.tokens.lengths
        size = smaller_block(length, piece.block_tokens or self._block_tokens)
        if not size or not self._takes_blocks or self._source.in_blocks(size) is None:
            form = self._form(piece)
            raise cell_too_large(
                form, int(piece.rows[0]), length, bytes_per_token(form, **self._kept), self._reason,
                block_tokens=piece.block_tokens or self._block_tokens,
            )  # fmt: skip
        _LOG.warning(
            "%s: a cell with %d tokens ran out of memory and is run in blocks of %d (%s)",
            self._source.name, length, size, self._reason,
        )  # fmt: skip
        self.blocks[piece.start] = size
        self._revised(self.cuts, self.blocks)
        return (replace(piece, block_tokens=size),)
