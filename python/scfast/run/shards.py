"""A run shard by shard, each kept on disk as it is finished, and all of them merged in order."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from scipy import sparse
from tqdm import tqdm

from scfast.analyses.base import Accumulator, RowWriter
from scfast.models.base import AttentionSource, Tokens
from scfast.observables.base import Observable
from scfast.run.array_files import DamagedFileError
from scfast.run.budget import Budget
from scfast.run.collect import Collector
from scfast.run.counts import Counts
from scfast.run.disk import writing
from scfast.run.fingerprint import fingerprint
from scfast.run.ledger import Ledger
from scfast.run.plan import Plan, surroundings
from scfast.run.row_files import HeldRows, RowFile
from scfast.run.runner import AHEAD_TOKENS, Results, Visited, visit
from scfast.run.stages import Clock, note_times, stage
from scfast.run.stopping import Stopped, stop_on_signal

_LOG = logging.getLogger(__name__)

#: Seconds between two looks at what other workers have finished.
LOOK = 0.2

Analyses = Mapping[str, Accumulator | RowWriter]
#: Has shards of a run, which its ledger keeps, run by others; each is tried so often.
Elsewhere: TypeAlias = "Callable[[ShardedRun, Ledger, Sequence[int], int], None]"


class PartDone(BaseException):
    """A worker has run its shards; others have not finished theirs, so there is nothing to merge yet."""


@dataclass(frozen=True, eq=False)
class ShardedRun:
    """What is run of every shard.

    Attributes
    ----------
    source, counts, analyses, plan, observables
        As for :func:`scfast.run.run`; ``analyses`` have seen nothing.
    options
        Its other arguments.
    label
        What the bar is called.
    progress
        Show a bar. Default: on a terminal.
    lengths
        int64 [cells]: tokens of each row of the data; for an estimate of the time.
    budget
        The memory for which the plan was made; noted beside it.
    rows_on_disk
        Whether the results of row writers may stay on disk where the counts do:
        :class:`scfast.run.row_files.RowFile`.
    """

    source: AttentionSource
    counts: Counts
    analyses: Analyses
    plan: Plan
    observables: Callable[[Tokens], Sequence[Observable]]
    options: Mapping[str, Any]
    label: str
    progress: bool | None = None
    lengths: np.ndarray | None = None
    budget: Budget | None = None
    rows_on_disk: bool = False

    def fresh(self) -> dict[str, Accumulator | RowWriter]:
        """The analyses, of which accumulators have seen nothing."""
        return {name: _fresh(x) if isinstance(x, Accumulator) else x for name, x in self.analyses.items()}

    def parts(self) -> dict[str, int]:
        """Bytes of every part of the budget: see :meth:`scfast.run.budget.Budget.parts`."""
        if self.budget is None:
            return {}
        tokens = 0
        if self.lengths is not None and self.plan.n_batches:
            tokens = int(np.add.reduceat(self.lengths[self.plan.rows], self.plan.offsets[:-1]).max())
        ahead = 0 if self.lengths is None else min(AHEAD_TOKENS, int(self.lengths[self.plan.rows].sum()))
        return self.budget.parts(self.source, tokens, self.options["kept"], ahead)

    def identity(self) -> dict[str, Any]:
        """What the results depend on."""
        _, tokens = self.counts.tokenize(self.source, self.plan.rows[:1])
        kept = {
            name: (type(x), x.state() if isinstance(x, Accumulator) else vars(x))
            for name, x in self.analyses.items()
        }
        return {
            **surroundings(self.source.device),
            **self.plan.conditions(),
            "plan": self.plan.hash,
            "model": self.source.name,
            "weights": fingerprint(self.source),
            "cells and genes": fingerprint(self.counts),
            "analysis": fingerprint(kept, self.observables(tokens)),
            "backend": self.options.get("backend", "auto"),
        }

    def to(self, device: torch.device | str) -> ShardedRun:
        """The same run with the model on another device."""
        return replace(self, source=self.source.to(device))

    def execute(
        self,
        ledger: Ledger,
        part: tuple[int, int] = (0, 1),
        tries: int = 3,
        *,
        wait: bool = False,
        elsewhere: Elsewhere | None = None,
    ) -> Results:
        """Run what is missing, and merge.

        Parameters
        ----------
        ledger
            Of this run.
        part
            (i, n): run shards i, i + n, ... only.
        tries
            A shard that failed so often is left out.
        wait
            Wait for other workers' shards as long as the process that started this one is there.
        elsewhere
            What has shards run by others, such as :func:`scfast.run.cluster.share`. Default: they are run here.

        Returns
        -------
        Results
            Of all shards. ``left_out`` says which rows are missing, and why.

        Raises
        ------
        PartDone
            When other workers' shards are missing, and this one does not wait.
        Stopped
            When the process was asked to stop; what is finished is kept.
        """
        (index, count), parent = part, os.getppid()
        while True:
            missing = ledger.missing()
            others = [shard for shard in missing if ledger.attempts(shard) < tries]
            mine = [shard for shard in others if shard % count == index]
            if not mine:
                if others and wait and os.getppid() == parent:
                    time.sleep(LOOK)
                    continue
                if others:
                    raise PartDone(f"{len(others)} of {ledger.n_shards} shards are left to other workers")
                try:
                    with stage("merging"):
                        return self._merge(ledger, missing)
                except DamagedFileError as error:
                    _LOG.warning("%s; it was set aside, and is run again", error)
                    continue
            if elsewhere is None:
                self._run(ledger, mine)
            else:
                elsewhere(self, ledger, mine, tries)

    def _run(self, ledger: Ledger, shards: Sequence[int]) -> None:
        """Run shards, one after the other."""
        cells = np.diff(self.plan.shard_starts)
        total, ready = self.plan.n_cells, int(cells[ledger.finished()].sum())
        disable = None if self.progress is None else not self.progress
        with (
            stop_on_signal() as stop,
            tqdm(total=total, initial=ready, unit="cell", desc=self.label, disable=disable) as bar,
        ):

            def done(n: int) -> None:
                bar.update(n)
                stop.check()

            for shard in shards:
                reason = self.run_shard(ledger, shard, done)
                if reason:
                    _LOG.warning("shard %d failed (attempt %d): %s", shard, ledger.attempts(shard), reason)
                stop.check()

    def run_shard(self, ledger: Ledger, shard: int, done: Callable[[int], object] = lambda n: None) -> str:
        """Run one shard, unless it is finished.

        Parameters
        ----------
        ledger
            Where it is kept.
        shard
            Which.
        done
            Called with the number of cells of each batch.

        Returns
        -------
        str
            Why it failed, which is noted; empty where it did not. The first of all shards raises: then it is the run
            that is wrong.
        """
        if ledger.path(shard).exists():
            return ""
        clock = Clock()
        with ledger.working():
            reason = self._attempt(ledger, shard, done)
        if not reason:
            with writing(ledger.folder):
                note_times(ledger.folder, clock.times())
        return reason

    def _attempt(self, ledger: Ledger, shard: int, done: Callable[[int], object]) -> str:
        """Run one shard, and note how it ended; why it failed, or nothing."""
        ledger.begin(shard)
        try:
            visited = self._visit(ledger, shard, done)
        except (KeyboardInterrupt, Stopped):
            ledger.take_back(shard)
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            ledger.failed(shard, reason)
            if not ledger.finished():
                raise
            return reason
        try:
            with stage("writing"):
                ledger.store(shard, *visited)
        except OSError:  # of the disk, not of the shard
            with suppress(OSError):
                ledger.take_back(shard)
            raise
        return ""

    def _visit(
        self, ledger: Ledger, shard: int, done: Callable[[int], object]
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The arrays and the note of one shard, run as it was when memory ran out before."""
        fresh = self.fresh()
        plan, first = self.plan.shard(shard), int(self.plan.shard_starts[shard])
        cuts, blocks = ledger.revision(shard)

        def revised(more_cuts: Sequence[int], more_blocks: Mapping[int, int]) -> None:
            here = {first + at: size for at, size in more_blocks.items()}
            ledger.revise(shard, [*cuts, *(first + at for at in more_cuts)], blocks | here)

        visited = visit(
            self.source, self.counts, fresh, self.plan.revised(cuts, blocks).shard(shard), self.observables,
            done=done, revised=revised, **self.options,
        )  # fmt: skip
        arrays: dict[str, np.ndarray] = {"rows": plan.rows}
        for name, analysis in fresh.items():
            kept = (
                self._changed(name, analysis) if isinstance(analysis, Accumulator) else _rows(visited, name)
            )
            arrays |= {f"{name}/{key}": array for key, array in kept.items()}
        smaller = set(visited.plan.cells_in_blocks) - set(plan.cells_in_blocks)
        note = {
            "plan": self.plan.hash,
            "cuts": (np.setdiff1d(visited.plan.offsets, plan.offsets) + first).tolist(),
            "blocks": sorted([first + at, size] for at, size in smaller),
        }
        return arrays, note

    def _changed(self, name: str, analysis: Accumulator) -> dict[str, np.ndarray]:
        """What cells added to the state: not what says which cells and genes there are."""
        empty = self.analyses[name].state()  # type: ignore[union-attr]
        return {
            key: array
            for key, array in analysis.state().items()
            if not (key in empty and _same(array, empty[key]))
        }

    def _merge(self, ledger: Ledger, missing: Sequence[int]) -> Results:
        """Add up the shards in their order, once it is known that each holds the rows that it should."""
        total = {name: _fresh(x) for name, x in self.analyses.items() if isinstance(x, Accumulator)}
        empty = {name: x.state() for name, x in total.items()}
        writers = {name: x for name, x in self.analyses.items() if isinstance(x, RowWriter)}
        on_disk = self.rows_on_disk and self.counts.on_disk and bool(writers)
        kept = RowFile(writers, ledger.folder) if on_disk else HeldRows(writers)
        cuts: list[int] = []
        in_blocks: dict[int, int] = {}
        left_out: dict[tuple[int, int], str] = {}
        for shard in range(ledger.n_shards):
            first, last = (int(row) for row in self.plan.shard_rows[shard : shard + 2])
            if shard in missing and not ledger.path(shard).exists():
                left_out[first, last] = ledger.reason(shard)
                for name, writer in writers.items():
                    kept.append(name, Collector(writer, last - first).result())
                continue
            arrays, note = self._load(ledger, shard)
            cuts += note["cuts"]
            in_blocks |= {int(at): int(size) for at, size in note["blocks"]}
            parts: dict[str, dict[str, np.ndarray]] = {name: {} for name in self.analyses}
            for key, array in arrays.items():
                name, _, inner = key.partition("/")
                if inner:
                    parts[name][inner] = array
            for name, accumulator in total.items():
                accumulator.merge(type(accumulator).from_state({**empty[name], **parts[name]}))
            for name, writer in writers.items():
                kept.append(name, _block(parts[name], last - first, writer.n_columns))
        for name, accumulator in total.items():
            self.analyses[name].merge(accumulator)  # type: ignore[union-attr]
        results = Results()
        for name, analysis in self.analyses.items():
            results[name] = kept.result(name) if name in writers else analysis.result()  # type: ignore[union-attr]
        results.plan = self.plan.revised(cuts, in_blocks)
        results.left_out = left_out
        ledger.sweep()
        return results

    def _load(self, ledger: Ledger, shard: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """What a shard gave; where that is not of its rows under this plan, it is damaged."""
        try:
            arrays, note = ledger.load(shard)
            rows, found = self.plan.shard(shard).rows, arrays.get("rows", np.empty(0))
            if note.get("plan") != self.plan.hash or not np.array_equal(found, rows):
                raise DamagedFileError(
                    f"{ledger.path(shard)} does not hold the rows of shard {shard} of this plan"
                )
        except DamagedFileError:
            ledger.set_aside(shard)
            raise
        except FileNotFoundError:
            raise ledger.gone() from None
        return arrays, note


def _fresh(analysis: Accumulator) -> Accumulator:
    """One like it, which can be added to while it stays as it is."""
    return type(analysis).from_state(analysis.state())


def _same(first: np.ndarray, second: np.ndarray) -> bool:
    return first is second or np.array_equal(first, second, equal_nan=first.dtype.kind == "f")


def _rows(visited: Visited, name: str) -> dict[str, np.ndarray]:
    """The result of a row writer as named arrays."""
    result = visited.collectors[name].result()
    if isinstance(result, np.ndarray):
        return {"values": result}
    return {"data": result.data, "indices": result.indices, "indptr": result.indptr}


def _block(arrays: Mapping[str, np.ndarray], n_rows: int, n_columns: int) -> sparse.csr_matrix | np.ndarray:
    if "values" in arrays:
        return arrays["values"]
    return sparse.csr_matrix((arrays["data"], arrays["indices"], arrays["indptr"]), shape=(n_rows, n_columns))
