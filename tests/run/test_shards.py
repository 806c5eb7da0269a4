"""A run in shards: the same bits however often it is stopped, whoever runs them, whatever happens to its files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from scfast.analyses import CellScores, Embedding, GroupScores, Strata
from scfast.observables import HiddenStates, Rollout
from scfast.run import (
    Counts,
    Ledger,
    OtherRunError,
    PartDone,
    ShardedRun,
    Stopped,
    make_plan,
    resumable,
    run,
    survey,
)
from scfast.run.array_files import DamagedFileError
from tests.toy import BACKEND, toy_adata, toy_source

ADATA = toy_adata()
COUNTS = Counts(ADATA.X, ADATA.var)
LENGTHS = survey(toy_source(), COUNTS).lengths
N_SHARDS = 4


def analyses():
    strata = Strata.from_codes(np.arange(ADATA.n_obs) % 3 - 1, 2)
    return {
        "scores": GroupScores(strata, ADATA.n_vars, name="rollout", row=-1),
        "cells": CellScores(ADATA.n_vars),
        "vectors": Embedding(16),
    }


def observe(tokens):
    return [Rollout("mean"), HiddenStates(-1, pool="mean")]


def sharded(*, budget=60, seed=0, spoil=None, observables=observe, rows=None):
    """A run of four shards; ``spoil`` is called with the rows of each batch."""

    class Spoiled(Embedding):
        def rows(self, batch):
            if spoil is not None:
                spoil(batch.rows)
            return super().rows(batch)

    kept = analyses() | {"vectors": Spoiled(16)}
    plan = make_plan(
        LENGTHS, token_budget=budget, rows=rows, seed=seed, shard_cells=-(-ADATA.n_obs // N_SHARDS)
    )
    options = {"backend": BACKEND, "kept": {"layers_kept": 3}}
    return ShardedRun(toy_source(), COUNTS, kept, plan, observables, options, "toy", progress=False)


def go(folder, *, part=(0, 1), tries=3, **options):
    this = sharded(**options)
    return this.execute(Ledger.open(folder, this.identity(), this.plan.n_shards), part, tries)


def bits(results):
    """Everything that a run gave, as bytes."""
    told = []
    for name in sorted(results):
        value = results[name]
        if sparse.issparse(value):
            parts = [value.data, value.indices.astype(np.int64), value.indptr.astype(np.int64)]
        elif isinstance(value, np.ndarray):
            parts = [value]
        else:
            parts = [x for x in value if isinstance(x, np.ndarray)]
        told += [part.tobytes() for part in parts]
    return b"|".join(told)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return bits(go(tmp_path_factory.mktemp("whole")))


def test_shards_add_up_to_the_run_in_one(tmp_path):
    plan = make_plan(LENGTHS, token_budget=60)
    once = run(toy_source(), COUNTS, analyses(), plan, observe, backend=BACKEND)
    parts = go(tmp_path)
    assert len(list(tmp_path.glob("shard-*"))) == N_SHARDS
    np.testing.assert_allclose(parts["scores"].mean, once["scores"].mean, rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(parts["cells"].indices, once["cells"].indices)
    np.testing.assert_allclose(parts["cells"].data, once["cells"].data, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(parts["vectors"], once["vectors"], rtol=1e-5, atol=1e-6)
    assert not parts.left_out


def test_finished_shards_are_not_run_again(tmp_path, whole):
    go(tmp_path)
    seen = []
    assert bits(go(tmp_path, spoil=seen.append)) == whole
    assert seen == []


@settings(max_examples=25, deadline=None)
@given(stops=st.lists(st.integers(1, 30), max_size=6))
def test_stopped_at_any_batch_and_continued(stops, whole, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")

    def stop_after(batches):
        left = [batches]

        def spoil(rows):
            left[0] -= 1
            if left[0] == 0:
                raise KeyboardInterrupt

        return spoil

    for batches in stops:
        try:
            go(folder, spoil=stop_after(batches), tries=2)
        except KeyboardInterrupt:
            continue
    assert bits(go(folder, tries=2)) == whole


@pytest.mark.parametrize("workers", [2, 3, 5])
def test_parts_by_several_workers(workers, tmp_path, whole):
    for index in reversed(range(1, workers)):
        with pytest.raises(PartDone, match="left to other workers"):
            go(tmp_path, part=(index, workers))
    assert bits(go(tmp_path, part=(0, workers))) == whole  # the last one merges
    assert bits(go(tmp_path)) == whole


def test_a_signal_stops_between_batches(tmp_path, whole):
    seen = []

    def spoil(rows):
        seen.append(rows)
        if len(seen) == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="SIGTERM"):
        go(tmp_path, spoil=spoil)
    assert len(seen) == 5
    assert signal.getsignal(signal.SIGTERM) is before
    assert bits(go(tmp_path, tries=1)) == whole  # being stopped is no failed attempt


def test_an_out_of_memory_revision_is_kept(tmp_path):
    def fails_once():
        fail = [True]

        def spoil(rows):
            if fail and len(rows) > 2 and 0 in rows:
                fail.clear()
                raise MemoryError("no room")

        return spoil

    first = go(tmp_path, spoil=fails_once())
    again = go(tmp_path)
    assert first.plan.n_batches == again.plan.n_batches == sharded().plan.n_batches + 1
    assert bits(first) == bits(again)


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "swapped", "other rows"])
def test_damaged_shards_are_set_aside_and_run_again(damage, tmp_path, whole, caplog):
    go(tmp_path)
    path = tmp_path / "shard-000002"
    data = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        data[-100] ^= 1
        path.write_bytes(data)
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "swapped":
        path.write_bytes((tmp_path / "shard-000001").read_bytes())
    else:
        ledger = Ledger(tmp_path, N_SHARDS)
        arrays, note = ledger.load(2)
        path.unlink()
        ledger.store(2, arrays | {"rows": arrays["rows"][:-1]}, note)
    assert bits(go(tmp_path)) == whole
    assert "set aside" in caplog.text
    assert "shard-000002" in caplog.text
    assert [p.name for p in tmp_path.glob("damaged-*")] == ["damaged-1-shard-000002"]


def test_a_shard_that_always_fails_is_left_out_and_said(tmp_path, whole):
    bounds = sharded().plan.shard_rows
    poisoned = int(bounds[2])
    seen = []

    def spoil(rows):
        seen.append(rows)
        if poisoned in rows:
            raise RuntimeError("a cell\nof gold")

    results = go(tmp_path, spoil=spoil, tries=2)
    assert results.left_out == {(poisoned, int(bounds[3])): "RuntimeError: a cell of gold"}
    vectors = results["vectors"]
    assert np.isnan(vectors[bounds[2] : bounds[3]]).all()
    assert not np.isnan(vectors[: bounds[2]]).any()
    assert results["cells"][bounds[2] : bounds[3]].nnz == 0
    count = len(seen)
    go(tmp_path, spoil=spoil, tries=2)
    assert len(seen) == count  # it had its attempts
    Ledger(tmp_path, N_SHARDS).forgive()
    assert bits(go(tmp_path)) == whole


def test_what_fails_from_the_first_is_an_error_of_the_run(tmp_path):
    def spoil(rows):
        raise RuntimeError("nothing works")

    with pytest.raises(RuntimeError, match="nothing works"):
        go(tmp_path, spoil=spoil)
    assert Ledger(tmp_path, N_SHARDS).finished() == []


def test_another_run_is_refused(tmp_path):
    go(tmp_path)
    with pytest.raises(
        OtherRunError, match=r"holds another run: .*seed was 0, now 1.*or give another folder"
    ):
        go(tmp_path, seed=1)
    with pytest.raises(OtherRunError, match="token_budget was 60, now 48"):
        go(tmp_path, budget=48)
    with pytest.raises(OtherRunError, match="analysis was"):
        go(tmp_path, observables=lambda _: [Rollout("mean", layers=(1, 2)), HiddenStates(-1, pool="mean")])
    with pytest.raises(OtherRunError, match="cells was"):
        go(tmp_path, rows=np.arange(ADATA.n_obs - 1))


@pytest.mark.parametrize("text", ["", "[]", "{", "{}", '{"shards": "four"}', "[" * 10**5])
def test_a_damaged_manifest_is_named(text, tmp_path):
    go(tmp_path)
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(DamagedFileError, match=r"run\.json is damaged: remove"):
        go(tmp_path)


def test_what_killed_writers_left_is_swept(tmp_path):
    (tmp_path / ".shard-000000.77-abcd.part").write_bytes(b"half")
    go(tmp_path)
    assert not list(tmp_path.glob(".*"))


def test_tools_continue_inside_resumable(tmp_path, monkeypatch):
    import scfast

    def rollout():
        adata = toy_adata()
        with resumable(tmp_path / "run", shard_cells=7):
            scfast.tl.rollout(adata, toy_source(), groupby="type", null="untrained", progress=False)
        return adata

    first, alone = rollout(), toy_adata()
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["1-rollout", "2-untrained"]
    stored = json.loads((tmp_path / "run" / "1-rollout" / "run.json").read_text())
    assert stored["shards"] == -(-alone.n_obs // 7)
    monkeypatch.setattr("scfast.run.shards.visit", None)  # nothing is run again
    second = rollout()
    scfast.tl.rollout(alone, toy_source(), groupby="type", null="untrained", progress=False)
    for adata in (second, alone):
        np.testing.assert_allclose(
            adata.varm["rollout"].to_numpy(), first.varm["rollout"].to_numpy(), rtol=1e-6, atol=1e-9
        )
    assert (second.layers["rollout"] != first.layers["rollout"]).nnz == 0


def test_a_tool_warns_of_rows_left_out(tmp_path, monkeypatch):
    import scfast
    from scfast.run import shards

    real = shards.visit

    def visit(source, counts, analyses, plan, *rest, **options):
        if plan.shard_rows[0] == 7:
            raise RuntimeError("cosmic rays")
        return real(source, counts, analyses, plan, *rest, **options)

    monkeypatch.setattr(shards, "visit", visit)
    adata = toy_adata()
    with (
        resumable(tmp_path, shard_cells=7, tries=1),
        pytest.warns(
            UserWarning,
            match="rows 7 to 13 could not be run and are left out of rollout: RuntimeError: cosmic",
        ),
    ):
        scfast.tl.rollout(adata, toy_source(), null=None, progress=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shard_cells": 0}, "shard_cells=0 must be at least 1"),
        ({"part": (2, 2)}, r"part=\(2, 2\) must be \(i, n\)"),
        ({"tries": 0}, "tries=0"),
    ],
)
def test_bad_arguments_are_named(options, message, tmp_path):
    with pytest.raises(ValueError, match=message), resumable(tmp_path, **options):
        pass


def test_no_warning_without_need(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        go(tmp_path)


def test_killed_at_every_step_and_at_random_moments(tmp_path):
    script = [sys.executable, "-m", "tests.run.killed", str(tmp_path), "20", "1"]
    done = subprocess.run(script, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["wrong"] == []
    assert told["steps"] > 10 * N_SHARDS
    assert told["moments"] == 20
