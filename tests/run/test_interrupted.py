"""Every accumulator and row writer in one run, killed, damaged, shared and resumed: the bytes stay the same."""

from __future__ import annotations

import inspect
import pkgutil
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

import scfast.analyses
from scfast.analyses import (
    Batch,
    CellEdges,
    CellScores,
    CellTokens,
    Embedding,
    GeneEdges,
    GeneStateTotals,
    RowBlock,
)
from scfast.analyses._arrays import ArrayAccumulator
from scfast.analyses.base import Accumulator, Addition, RowWriter
from scfast.run import Counts, Ledger, PartDone, ShardedRun, make_plan, shards
from scfast.run.collect import Collector
from scfast.run.runner import Visited
from tests.analyses import test_accumulators as sums
from tests.analyses import test_gene_edges as edges
from tests.analyses import test_similarity_sums as similarities
from tests.run.killed import CALLS, TRIES
from tests.run.test_shards import bits
from tests.toy import toy_source

ADATA, N_SHARDS = sums.ADATA, 3
COUNTS = Counts(ADATA.X, ADATA.var)
EDGES = torch.rand(ADATA.n_obs, 2, 3, generator=torch.Generator().manual_seed(9)).round(decimals=1) * 10 // 4
VECTORS = torch.rand(ADATA.n_obs, 5, generator=torch.Generator().manual_seed(10))
PLAN = make_plan(sums.TOKENS.lengths, token_budget=60, shard_cells=-(-ADATA.n_obs // N_SHARDS))


class Visits(ArrayAccumulator):
    """How often each row of the data was visited."""

    def __init__(self, strata: scfast.analyses.Strata) -> None:
        self.strata, self.sums = strata, {"visits": np.zeros(ADATA.n_obs, dtype=np.int64)}

    def additions(self, batch: Batch) -> list[Addition]:
        return [Addition("visits", batch.rows, np.ones(len(batch.rows), dtype=np.int64))]

    def result(self) -> np.ndarray:
        return self.sums["visits"]


class Rows(Embedding):
    """The number of each row, at its place."""

    def rows(self, batch: Batch) -> RowBlock:
        return RowBlock(batch.rows, batch.rows[:, None].astype(np.float32))


#: Name -> one that has seen nothing: all that there are.
ANALYSES: dict[str, Callable[[], Any]] = {
    **{f"sums, {name}": make for name, make in sums.ACCUMULATORS.items()},
    **{f"similarities, {name}": make for name, make in similarities.ACCUMULATORS.items()},
    "edges": lambda: GeneEdges(edges.everyone(), edges.GENES, edges.SOURCES, 1, 4),
    "totals of states": lambda: GeneStateTotals(edges.everyone(), 1, 3, 5),
    "visits": lambda: Visits(similarities.WHOLE),
    "rows": lambda: Rows(1),
    "scores of cells": lambda: CellScores(ADATA.n_vars),
    "tokens of cells": lambda: CellTokens(ADATA.n_vars),
    "edges of cells": lambda: CellEdges(2),
    "vectors of cells": lambda: Embedding(5),
}


def cells(rows: np.ndarray) -> Batch:
    """What a batch of a model would give, for all of them."""
    batch = sums.cells(rows)
    observed = {"strongest_edges": EDGES[rows], "hidden_states": VECTORS[rows]}
    for each in (sums, similarities, edges):
        observed |= each.cells(rows).observed
    return Batch(batch.rows, batch.tokens, observed, batch.counts)


class Killed(BaseException):
    """The process ends: from here on no call reaches the system."""


@contextmanager
def dying(steps: int | None) -> Iterator[None]:
    """The n-th call to the system, and every later one, kills; None: none does."""
    left = [steps]

    def wrapped(call: Callable[..., Any]) -> Callable[..., Any]:
        def or_die(*arguments: Any, **options: Any) -> Any:
            if left[0] is not None:
                left[0] -= 1
                if left[0] < 0:
                    raise Killed
            return call(*arguments, **options)

        return or_die

    with pytest.MonkeyPatch.context() as patch:
        for owner, name in CALLS:
            patch.setattr(owner, name, wrapped(getattr(owner, name)))
        yield


def go(folder: Path, part: tuple[int, int] = (0, 1), between: Callable[[], None] = lambda: None) -> bytes:
    """Run what is missing of a part, and merge: the bytes of all results. ``between`` is called before each batch."""
    kept = {name: make() for name, make in ANALYSES.items()}

    def visit(
        source: Any, counts: Any, analyses: Any, plan: Any, observables: Any, **options: Any
    ) -> Visited:
        first, last = int(plan.shard_rows[0]), int(plan.shard_rows[-1])
        writers = {name: x for name, x in analyses.items() if isinstance(x, RowWriter)}
        collectors = {name: Collector(writer, last - first, first) for name, writer in writers.items()}
        for rows in plan.batches():
            between()
            batch = cells(rows)
            for name, analysis in analyses.items():
                if name in writers:
                    collectors[name].add(analysis.rows(batch))
                else:
                    analysis.update(batch)
            options["done"](len(rows))
        return Visited(collectors, plan)

    this = ShardedRun(toy_source(), COUNTS, kept, PLAN, lambda _: [], {}, "toy", progress=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "visit", visit)
        results = this.execute(Ledger.open(folder, this.identity(), N_SHARDS), part, TRIES)
    np.testing.assert_array_equal(results["visits"], 1)
    np.testing.assert_array_equal(results["rows"], np.arange(ADATA.n_obs)[:, None])
    states = {name: x.state() for name, x in kept.items() if isinstance(x, Accumulator)}
    told = [(name, key, array.tobytes()) for name, state in states.items() for key, array in state.items()]
    return repr(told).encode() + bits(results)


@pytest.fixture(scope="module", autouse=True)
def whole(tmp_path_factory: pytest.TempPathFactory) -> None:
    Interrupted.whole = go(tmp_path_factory.mktemp("whole"))


class Interrupted(RuleBasedStateMachine):
    """What may happen to the folder of a run; in the end, and whenever it is complete, it gives the same bytes."""

    whole: bytes

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())

    def run(self, part: tuple[int, int] = (0, 1), between: Callable[[], None] = lambda: None) -> None:
        try:
            assert go(self.folder, part, between) == self.whole
        except PartDone:
            assert part[1] > 1

    def finished(self) -> list[Path]:
        return sorted(self.folder.glob("shard-*"))

    @rule(index=st.integers(0, 2), count=st.integers(1, 3))
    def a_part_is_run(self, index: int, count: int) -> None:
        self.run((index % count, count))

    @rule(steps=st.integers(0, 60), index=st.integers(0, 2), count=st.integers(1, 3))
    def a_runner_is_killed_at_a_call(self, steps: int, index: int, count: int) -> None:
        with suppress(Killed), dying(steps):
            self.run((index % count, count))

    @rule(batches=st.integers(0, 12))
    def a_runner_is_stopped_between_batches(self, batches: int) -> None:
        left = [batches]

        def stop() -> None:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt

        with suppress(KeyboardInterrupt):
            self.run(between=stop)

    @rule(batches=st.integers(0, 8), steps=st.none() | st.integers(0, 40), index=st.integers(0, 1))
    def another_runs_while_one_runs(self, batches: int, steps: int | None, index: int) -> None:
        """The other begins, and ends or is killed, inside a shard of the first."""
        left = [batches]

        def other() -> None:
            left[0] -= 1
            if left[0] == -1:
                with suppress(Killed), dying(steps):
                    self.run((index, 2))

        self.run(between=other)

    @precondition(lambda self: self.finished())
    @rule(data=st.data(), how=st.sampled_from(["cut", "flip", "empty", "another's"]))
    def a_finished_shard_is_damaged(self, data: st.DataObject, how: str) -> None:
        path = data.draw(st.sampled_from(self.finished()), label="shard")
        content = bytearray(path.read_bytes())
        if how == "flip" and content:
            content[data.draw(st.integers(0, len(content) - 1), label="byte")] ^= 4
        another = self.finished()[0].read_bytes()
        path.write_bytes(
            {"cut": content[: len(content) // 2], "empty": b"", "another's": another}.get(how, content)
        )

    @rule(shard=st.integers(0, N_SHARDS - 1))
    def half_a_file_is_left(self, shard: int) -> None:
        (self.folder / f".shard-{shard:06d}.1-ab.part").write_bytes(b"scfast arrays 1\n{")
        (self.folder / f"attempts-{shard:06d}").write_bytes(b"beg")

    def teardown(self) -> None:
        try:
            self.run()
            assert not list(self.folder.glob(".*"))
        finally:
            shutil.rmtree(self.folder)


Interrupted.TestCase.settings = settings(max_examples=6, stateful_step_count=8, deadline=None)
TestInterrupted = Interrupted.TestCase


def test_no_analysis_is_missing() -> None:
    """One that is new belongs among the accumulators whose laws are tested, or the writers above."""
    modules = [
        import_module(f"scfast.analyses.{m.name}") for m in pkgutil.iter_modules(scfast.analyses.__path__)
    ]
    kinds = {kind for module in modules for _, kind in inspect.getmembers(module, inspect.isclass)}
    there = {
        kind
        for kind in kinds - {Accumulator, ArrayAccumulator, RowWriter}
        if kind.__module__.startswith("scfast.")
        and kind.__name__[0] != "_"
        and (hasattr(kind, "additions") or callable(getattr(kind, "rows", None)))
    }
    assert there - {type(make()) for make in ANALYSES.values()} == set()
    assert len(there) > 15
