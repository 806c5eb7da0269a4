"""Memory that runs out, at any step of any batch: that batch is halved, and every cell counts once."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from scfast.analyses import CellScores, Embedding, GroupExpression, GroupScores, LayerScores, Strata
from scfast.observables import HiddenStates, Rollout
from scfast.run import Counts, make_plan, run
from scfast.run.collect import Collector
from scfast.run.out_of_memory import is_out_of_memory
from scfast.run.transfer import Transfer
from tests.same import assert_same
from tests.toy import BACKEND, ToySource, toy_adata

ADATA = toy_adata(7)
COUNTS = Counts(ADATA.X, ADATA.var)
STRATA = Strata.from_codes(np.arange(7) % 3, 3)
GENES = list(ADATA.var_names)
TOKENS = ToySource(GENES).tokenize(ADATA.X, ADATA.var)
LENGTHS = np.array(TOKENS.lengths)
#: Batches of two, three and two cells.
OFFSETS = np.array([0, 2, 5, 7])


def torch_cpu_error() -> BaseException:
    """What torch's allocator on a CPU really raises."""
    with pytest.raises(RuntimeError) as raised:
        torch.empty(2**50)
    return RuntimeError(str(raised.value))


ERRORS: dict[str, Callable[[], BaseException]] = {
    "torch": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    "cpu": torch_cpu_error,
    "numpy": lambda: MemoryError("Unable to allocate 1.00 GiB for an array"),
    "pinned": lambda: RuntimeError("CUDA error: out of memory"),
}


class Fuse:
    """Raises at the n-th call of those that are counted, and at all that follow if ``blown``; never for n = 0."""

    def __init__(self, at: int = 0, error: Callable[[], BaseException] = ERRORS["torch"]) -> None:
        self.at, self.error, self.calls, self.blown = at, error, 0, False

    def __call__(self) -> None:
        self.calls += 1
        if self.calls == self.at or (self.blown and self.calls > self.at):
            raise self.error()


class EveryOperation(TorchDispatchMode):
    """Counts every operation of torch, which is where memory is allocated."""

    def __init__(self, fuse: Fuse) -> None:
        super().__init__()
        self.fuse = fuse

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.fuse()
        return func(*args, **(kwargs or {}))


class Source(ToySource):
    """Counts forwards, and every operation within them."""

    def __init__(self, fuse: Fuse | None = None) -> None:
        super().__init__(GENES, n_layers=2)
        self.fuse, self.forwards = fuse or Fuse(), []

    def forward(self, tokens, recorder):
        self.forwards.append(tokens.n_cells)
        with EveryOperation(self.fuse):
            super().forward(tokens, recorder)


def analyses() -> dict:
    """Accumulators and row writers, dense and sparse."""
    return {
        "scores": GroupScores(STRATA, 40, row=-1),
        "expression": GroupExpression(STRATA, 40),
        "layers": LayerScores(STRATA, 40, 2),
        "cells": CellScores(40),
        "vectors": Embedding(16),
    }


def observe(tokens):
    return [Rollout("mean", layers="prefix"), HiddenStates(-1, pool="mean")]


def the_plan():
    return replace(make_plan(LENGTHS, token_budget=10**6), offsets=OFFSETS)


def go(source, plan=None, observables=observe):
    plan = the_plan() if plan is None else plan
    return run(source, COUNTS, analyses(), plan, observables, tokens=TOKENS, backend=BACKEND)


def assert_same_results(got, expected, *, exact=True):
    for name, value in expected.items():
        fields = zip(got[name], value, strict=True) if isinstance(value, tuple) else [(got[name], value)]
        for mine, theirs in fields:
            if exact:
                assert_same(mine, theirs, name)
            else:
                mine, theirs = (x.toarray() if hasattr(x, "toarray") else x for x in (mine, theirs))
                np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.fixture(scope="module")
def undisturbed():
    source = Source()
    results = go(source)
    assert source.forwards == [2, 3, 2]
    assert results.plan.hash == the_plan().hash
    return results, source.fuse.calls


def check_one_halving(source, got, undisturbed):
    """One retry; no cell twice or lost; other batches as they were; the bits of the plan as it was run."""
    (cut,) = set(got.plan.offsets.tolist()) - set(OFFSETS.tolist())
    assert got.plan.offsets.tolist() == sorted([*OFFSETS, cut])
    assert len(source.forwards) == len(OFFSETS) + 1  # the batch that failed, and its halves
    np.testing.assert_array_equal(got["scores"].cells, [3, 2, 2])
    np.testing.assert_array_equal(got["scores"].detecting, undisturbed["scores"].detecting)
    assert_same_results(got, undisturbed, exact=False)
    assert_same_results(got, as_planned(cut))


@cache
def as_planned(cut):
    """What the plan with this cut gives when it is run from the start, without any trouble."""
    return go(Source(), the_plan().revised([cut]))


def test_at_every_operation_of_the_model_and_the_observables(undisturbed):
    expected, operations = undisturbed
    assert operations > 150
    for at in range(1, operations + 1):
        source = Source(Fuse(at))
        check_one_halving(source, go(source), expected)


@pytest.mark.parametrize("function", ["flatnonzero", "bincount"])
def test_at_every_array_of_the_analyses(function, undisturbed, monkeypatch):
    expected, _ = undisturbed
    real, fuse = getattr(np, function), Fuse()

    def counted(*args, **kwargs):
        fuse()
        return real(*args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(np, function, counted)
        go(Source())
    calls = fuse.calls
    assert calls > 10
    for at in range(1, calls + 1):
        fuse = Fuse(at, ERRORS["numpy"])
        source = Source()
        with monkeypatch.context() as patched:
            patched.setattr(np, function, counted)
            got = go(source)
        check_one_halving(source, got, expected)


@pytest.mark.parametrize("at", range(1, 7))
def test_where_the_rows_of_a_batch_are_placed(at, undisturbed, monkeypatch):
    real, fuse = Collector.prepare, Fuse(at, ERRORS["numpy"])

    def counted(collector, block):
        fuse()
        return real(collector, block)

    monkeypatch.setattr(Collector, "prepare", counted)
    source = Source()
    check_one_halving(source, go(source), undisturbed[0])


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("stage", ["begin", "check", "observables"])
def test_every_kind_of_error_at_every_stage(kind, stage, undisturbed):
    fuse = Fuse(2, ERRORS[kind])

    class Fused(Rollout):
        def begin(self, batch):
            if stage == "begin":
                fuse()
            super().begin(batch)

        def check(self, packed):
            if stage == "check":
                fuse()
            super().check(packed)

    def observables(tokens):
        if stage == "observables":
            fuse()
        return [Fused("mean", layers="prefix"), HiddenStates(-1, pool="mean")]

    source = Source()
    got = go(source, observables=observables)
    if stage == "observables":
        source.forwards.append(0)  # it failed before its forward
    check_one_halving(source, got, undisturbed[0])


class Exact(ToySource):
    """Scores that are sums of few powers of two: any order of additions gives the same bits."""

    def forward(self, tokens, recorder):
        recorder.begin(self.n_layers, tokens.packing, kind=tokens.kind, gene_index=tokens.gene_index)
        recorder.hidden(0, (tokens.ids * 64 + tokens.positions)[:, None] / 4096)
        recorder.finish()


class Value(HiddenStates):
    """The first state of every token as its score."""

    def finish(self):
        return super().finish()[:, 0]


@pytest.mark.parametrize("at", range(1, 4))
def test_the_bits_of_an_undisturbed_run(at):
    def scores(fuse):
        class Fused(Value):
            def finish(self):
                fuse()
                return super().finish()

        found = {"scores": GroupScores(STRATA, 40), "cells": CellScores(40)}
        source = Exact(GENES)
        return run(source, COUNTS, found, the_plan(), lambda _: [Fused(0, name="rollout")], tokens=TOKENS)

    got, expected = scores(Fuse(at)), scores(Fuse())
    assert got.plan.n_batches == expected.plan.n_batches + 1
    assert_same_results(got, expected)


@pytest.mark.parametrize("most", [24, 30, 50])
def test_a_device_of_any_size_that_holds_the_longest_cell(most, undisturbed, caplog):
    class Small(Source):
        def forward(self, tokens, recorder):
            if tokens.n_tokens > most:
                raise ERRORS["torch"]()
            super().forward(tokens, recorder)

    source = Small()
    assert LENGTHS.max() <= most
    got = go(source)
    assert all(LENGTHS[rows].sum() <= most for rows in got.plan.batches())
    assert got.plan.n_batches > len(OFFSETS) - 1
    assert "ran out of memory and are run in two halves (CUDA out of memory." in caplog.text
    assert_same_results(got, undisturbed[0], exact=False)
    assert_same_results(got, go(Source(), got.plan))


def test_a_cell_that_does_not_fit_by_itself():
    class TooSmall(Source):
        def forward(self, tokens, recorder):
            if max(tokens.lengths) > 15:
                raise ERRORS["torch"]()
            super().forward(tokens, recorder)

    source = TooSmall()
    row = int(np.argsort(-LENGTHS, kind="stable")[0])
    text = (
        rf"the cell in row {row} has {LENGTHS[row]} tokens, for which toy needs about 1 MB on cpu; it ran out of "
        r"memory with no other cell beside it \(CUDA out of memory. Tried to allocate 20.00 MiB.\)"
    )
    with pytest.raises(MemoryError, match=text):
        go(source)


@pytest.mark.parametrize("error", [RuntimeError("boom"), ValueError("no"), KeyboardInterrupt("stop")])
def test_other_errors_pass_through(error):
    class Broken(Source):
        def forward(self, tokens, recorder):
            raise error

    with pytest.raises(type(error), match=str(error)) as raised:
        go(Broken())
    assert raised.value is error


def test_what_the_failed_batch_held_is_let_go_before_it_is_tried_again(monkeypatch):
    events, held = [], []

    class Watched(Source):
        def forward(self, tokens, recorder):
            gc.collect()
            assert all(reference() is None for reference in held), (
                "the retry starts with the old tensors held"
            )
            events.append(tokens.n_cells)
            states = torch.ones(1000)
            held.append(weakref.ref(states))
            if len(events) == 1:
                raise ERRORS["torch"]()
            super().forward(tokens, recorder)

    class Spy(Transfer):
        def release(self):
            events.append("released")

    monkeypatch.setattr("scfast.run.runner.transfer_to", lambda device: Spy())
    go(Watched())
    assert events == [2, "released", 1, 1, 3, 2]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        *((make, True) for make in ERRORS.values()),
        (lambda: RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"), True),
        (lambda: RuntimeError("shape mismatch"), False),
        (lambda: ValueError("CUDA error: out of memory"), False),
        (KeyboardInterrupt, False),
    ],
)
def test_what_counts_as_out_of_memory(error, expected):
    assert is_out_of_memory(error()) == expected
