"""Memory that runs out on one cell by itself, at any step: it is run in blocks of tokens, smaller and smaller."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

import scfast
from scfast import models
from scfast.analyses import CellScores, Embedding, Strata
from scfast.analyses import GroupScores as Scores
from scfast.models.geneformer import GeneformerSource
from scfast.observables import AttentionNorms, HiddenStates, Rollout
from scfast.run import Counts, Plan, Results, make_plan, run
from scfast.run.memory import cell_bytes
from tests.models import fixtures
from tests.run.test_out_of_memory import ERRORS, EveryOperation, Fuse
from tests.same import assert_same

#: Tokens of the cells, two of them special; each is a batch by itself.
LENGTHS = np.array([12, 42, 20])


@pytest.fixture(scope="module", autouse=True)
def small_blocks(module_patch: pytest.MonkeyPatch) -> None:
    module_patch.setattr("scfast.run.memory.BLOCK_TOKENS", (32, 16, 8))


@pytest.fixture(scope="module")
def module_patch() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


class Source(GeneformerSource):
    """Counts every operation of a forward; where a forward keeps too much, memory runs out."""

    fuse = Fuse()
    #: Most bytes that a cell may be said to take, and the forms that were tried.
    most: float = np.inf
    tried: list[int]

    def forward(self, tokens: Any, recorder: Any) -> None:
        self.tried.append(self.block_tokens or 0)
        if cell_bytes(self, tokens.n_tokens, layers_kept=self.n_layers) > self.most:
            raise ERRORS["torch"]()
        with EveryOperation(self.fuse):
            super().forward(tokens, recorder)

    def in_blocks(self, tokens: int) -> Source:
        return copied(super().in_blocks(tokens), fuse=self.fuse, most=self.most, tried=self.tried)


def copied(source: GeneformerSource, **attributes: Any) -> Source:
    """``source`` as a :class:`Source`."""
    made = object.__new__(Source)
    vars(made).update(vars(source) | attributes)
    return made


@pytest.fixture(scope="module")
def geneformer(tmp_path_factory: pytest.TempPathFactory) -> GeneformerSource:
    return models.load("geneformer", fixtures.write_v2(tmp_path_factory.mktemp("v2"), num_hidden_layers=2))


@pytest.fixture
def source(geneformer: GeneformerSource) -> Callable[..., Source]:
    return lambda at=0, **attributes: copied(geneformer, fuse=Fuse(at), tried=[], **attributes)


@cache
def counts() -> Counts:
    rng = np.random.default_rng(0)
    matrix = np.zeros((3, 40), dtype=np.float32)
    for row, n in zip(matrix, LENGTHS - 2, strict=True):
        row[:n] = 1 + rng.poisson(3, n)
    return Counts(sparse.csr_matrix(matrix), pd.DataFrame(index=list(fixtures.GENES)))


def the_plan() -> Plan:
    return replace(make_plan(LENGTHS, token_budget=42), offsets=np.arange(4))


def go(source: GeneformerSource, plan: Plan | None = None) -> Results:
    analyses = {
        "scores": Scores(Strata.from_codes(np.array([0, 1, 0]), 2), 40),
        "cells": CellScores(40),
        "vectors": Embedding(32),
    }
    observe = lambda _: [Rollout("cls"), HiddenStates(-1, pool="mean")]  # noqa: E731
    return run(source, counts(), analyses, the_plan() if plan is None else plan, observe)


def assert_same_results(got: Results, expected: Results) -> None:
    for name in expected:
        pairs = (
            zip(got[name], expected[name], strict=True) if name == "scores" else [(got[name], expected[name])]
        )
        for mine, theirs in pairs:
            assert_same(mine, theirs, name)


def test_at_every_operation_of_the_model_and_the_observables(source: Callable[..., Source]) -> None:
    """One retry; every cell once; the bits of the plan as it was run."""
    calm = source()
    go(calm)
    assert calm.tried == [0, 0, 0]
    operations = calm.fuse.calls
    assert operations > 150
    as_planned: dict[tuple[tuple[int, int], ...], Results] = {}
    for at in range(1, operations + 1):
        tried = source(at)
        got = go(tried)
        assert len(tried.tried) == 4
        ((place, size),) = revision = got.plan.cells_in_blocks
        assert size == {0: 32, 1: 16, 2: 8}[place]  # cells of 42, 20 and 12 tokens
        assert tried.tried == [0] * (place + 1) + [size] + [0] * (2 - place)
        assert got.plan.offsets.tolist() == [0, 1, 2, 3]
        if revision not in as_planned:
            as_planned[revision] = go(source(), got.plan)
            assert as_planned[revision].plan.hash == got.plan.hash != the_plan().hash
        assert_same_results(got, as_planned[revision])
    assert len(as_planned) == 3


def test_blocks_are_halved_until_the_cell_fits(
    source: Callable[..., Source], geneformer: GeneformerSource, caplog: pytest.LogCaptureFixture
) -> None:
    most = cell_bytes(geneformer.in_blocks(8), 42, layers_kept=2)
    small = source(most=most)
    got = go(small)
    assert small.tried[:4] == [0, 32, 16, 8]
    assert dict(got.plan.cells_in_blocks)[0] == 8
    assert (
        "a cell with 42 tokens ran out of memory and is run in blocks of 8 (CUDA out of memory."
        in caplog.text
    )
    assert got.plan.conditions()["cells_in_blocks"] == len(got.plan.cells_in_blocks)
    again = source(most=most)
    assert_same_results(go(again, got.plan), got)
    assert again.tried == [dict(got.plan.cells_in_blocks).get(place, 0) for place in range(3)]


def test_batches_are_halved_before_cells_are_cut(source: Callable[..., Source]) -> None:
    """Out of memory at every attempt until the cell of 42 tokens runs in blocks of 16."""
    small = source(most=0)

    class Patient(Source):
        def forward(self, tokens: Any, recorder: Any) -> None:
            self.most = np.inf if self.block_tokens == 16 or tokens.lengths == (12,) else 0
            super().forward(tokens, recorder)

        def in_blocks(self, tokens: int) -> Source:
            made = super().in_blocks(tokens)
            made.__class__ = Patient
            return made

    small.__class__ = Patient
    got = go(small, replace(the_plan(), offsets=np.array([0, 3])))
    assert got.plan.offsets.tolist() == [0, 1, 2, 3]
    assert got.plan.cells_in_blocks == ((0, 16), (1, 16))


def test_a_cell_too_large_for_the_smallest_blocks(
    source: Callable[..., Source], geneformer: GeneformerSource
) -> None:
    needed = -(-int(cell_bytes(geneformer.in_blocks(8), 42, layers_kept=2) / 0.8) // 10**6)
    text = (
        rf"the cell in row 1 has 42 tokens, for which geneformer:\S+ needs about {needed} MB in blocks of 8 tokens, "
        r"the smallest on cpu; it ran out of memory with no other cell beside it \(CUDA out of memory"
    )
    small = source(most=0)
    with pytest.raises(MemoryError, match=text):
        go(small)
    assert small.tried == [0, 32, 16, 8]


def test_what_needs_whole_layers_is_not_run_in_blocks(source: Callable[..., Source]) -> None:
    small = source(most=0)
    with pytest.raises(
        MemoryError, match=r"needs about \d+ MB on cpu; it ran out of memory with no other cell"
    ):
        run(
            small, counts(), {"cells": CellScores(40)}, the_plan(), lambda _: [AttentionNorms(name="rollout")]
        )
    assert small.tried == [0]


def test_a_model_without_blocks_refuses_a_plan_with_them(geneformer: GeneformerSource) -> None:
    class Whole(Source):
        def in_blocks(self, tokens: int) -> None:  # type: ignore[override]
            return None

    whole = copied(geneformer, tried=[])
    whole.__class__ = Whole
    with pytest.raises(
        ValueError, match="the plan runs the cell in row 1 in blocks of tokens, which geneformer"
    ):
        go(whole, the_plan().revised([], {0: 8}))


def test_a_tool_notes_the_cells_that_ran_in_blocks(
    source: Callable[..., Source], geneformer: GeneformerSource
) -> None:
    plain, tight = (AnnData(counts().matrix.copy(), var=counts().var) for _ in range(2))
    whole = cell_bytes(geneformer, 42, layers_kept=2)
    for adata, model in ((plain, source()), (tight, source(most=whole - 1))):
        scfast.tl.rollout(adata, model, memory="2GB")
    plans = [adata.uns["rollout"]["params"]["plan"] for adata in (plain, tight)]
    assert [plan["cells_in_blocks"] for plan in plans] == [0, 1]
    assert plans[0]["hash"] != plans[1]["hash"]
