"""Runs of the command line that are killed, stopped, shared and continued."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from scfast import _kernels
from scfast.cli import cli
from scfast.cli.keeping import parse_part
from scfast.run.workers import WorkerError, supervise
from tests.test_cli import data, failure, invoke, model

__all__ = ["data", "model"]  # fixtures


def arguments(data: Path, model: Path, out: Path, *more: str) -> list[str]:
    return [
        "run", str(data), "--model", f"geneformer:{model}", "--groupby", "cell_type", "--shard-cells", "10",
        "--threads", "1", "-o", str(out), *more,
    ]  # fmt: skip


def start(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "scfast", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def shards(out: Path) -> int:
    return len(list(out.glob("run/*/shard-*")))


def same_results(one: Path, other: Path) -> bool:
    a, b = (ad.read_h5ad(path / "cells.h5ad") for path in (one, other))
    tables = a.uns["rollout"]["table"].equals(b.uns["rollout"]["table"])
    means = all(
        np.array_equal(a.varm[key].to_numpy(), b.varm[key].to_numpy()) for key in ("rollout", "rollout_null")
    )
    return tables and means and (a.layers["rollout"] != b.layers["rollout"]).nnz == 0


@pytest.fixture(scope="module")
def whole(data, model, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    invoke(*arguments(data, model, out))
    assert not (out / "run").exists()  # nothing is left of a run that ended well
    return out


def test_workers_one_of_which_is_killed(data, model, whole, tmp_path):
    run = start(*arguments(data, model, tmp_path, "--workers", "2"))
    workers: list[str] = []
    while run.poll() is None and not workers:
        time.sleep(0.02)
        if shards(tmp_path):
            told = subprocess.run(["pgrep", "-P", str(run.pid)], capture_output=True, text=True, check=False)
            workers = told.stdout.split()
    assert workers
    victim = int(workers[0])
    os.kill(victim, signal.SIGKILL)
    _, errors = run.communicate(timeout=120)
    assert run.returncode == 0, errors
    assert "killed by SIGKILL and is started again" in errors
    assert same_results(whole, tmp_path)


def test_stopped_by_a_signal_looked_at_and_continued(data, model, whole, capsys, tmp_path):
    run = start(*arguments(data, model, tmp_path, "--shard-cells", "2"))
    while run.poll() is None and shards(tmp_path) < 3:
        time.sleep(0.005)
    run.send_signal(signal.SIGTERM)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 75, errors
    assert "stopped by SIGTERM; the same command goes on from there" in errors
    (told,) = (
        json.loads(line)["run"] for line in invoke("status", tmp_path, "--verify", "--json").splitlines()
    )
    assert told["name"] == "1-rollout"
    assert 3 <= told["n_finished"] < told["n_shards"] == 20
    assert told["damaged"] == []
    assert "1-rollout" in invoke("status", tmp_path, "--text")
    refused = failure(capsys, *arguments(data, model, tmp_path))
    assert "holds another run" in refused
    assert "shards was 20, now 4" in refused
    invoke(*arguments(data, model, tmp_path, "--shard-cells", "2"))
    assert not (tmp_path / "run").exists()


def test_an_unfinished_run_can_be_forgotten(data, model, whole, tmp_path):
    invoke(*arguments(data, model, tmp_path, "--part", "0/3", "--shard-cells", "5"))
    assert shards(tmp_path) == 3
    invoke(*arguments(data, model, tmp_path, "--fresh"))
    assert same_results(whole, tmp_path)


def test_parts_of_an_array_job(data, model, whole, tmp_path):
    for part in ("1/2", "0/2"):
        told = invoke(*arguments(data, model, tmp_path, "--part", part), "--text")
    assert "left to other workers" in told  # those of the untrained model
    invoke(*arguments(data, model, tmp_path))
    assert same_results(whole, tmp_path)


def test_status_without_a_run(capsys, tmp_path):
    assert "holds no unfinished run" in failure(capsys, "status", tmp_path)


@pytest.mark.parametrize("text", ["2/2", "1", "a/b", "-1/3", ""])
def test_parts_that_there_are_not(text):
    if text:
        with pytest.raises(ValueError, match=f"--part {text} must be I/N"):
            parse_part(text)
    else:
        with pytest.raises(ValueError, match="must be I/N"):
            parse_part(text)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--workers", "2"], "--part and --workers exclude"),
        (["--fresh"], "--fresh and --part exclude"),
        (["--retry"], "--retry and --part exclude"),
    ],
)
def test_options_that_exclude_each_other(more, message, data, model, capsys, tmp_path):
    assert message in failure(capsys, *arguments(data, model, tmp_path, "--part", "0/2", *more))


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_an_error_of_a_worker_ends_all(tmp_path):
    path = tmp_path / "survived"
    slow = python(f"import time; time.sleep(30); open({str(path)!r}, 'w')")
    started = time.monotonic()
    with pytest.raises(WorkerError, match="worker 1 ended with code 5: its message is above"):
        supervise([slow, python("raise SystemExit(5)")], restarts=3)
    assert time.monotonic() - started < 20
    assert not path.exists()


def test_workers_that_are_killed_too_often(caplog):
    dies = python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(
        WorkerError, match="worker 0 was killed by SIGKILL, and 2 before it: if memory is short"
    ):
        supervise([dies], restarts=2)
    assert caplog.text.count("started again") == 2


def test_rows_that_could_not_be_run_have_an_exit_code_and_another_chance(
    data, model, whole, tmp_path, monkeypatch
):
    from scfast.run import shards as module

    real = module.visit

    def visit(source, counts, analyses, plan, *rest, **options):
        if plan.shard_rows[0] == 10:
            raise RuntimeError("cosmic rays")
        return real(source, counts, analyses, plan, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, "visit", visit)
        with pytest.warns(UserWarning, match="rows 10 to 19 could not be run"):
            result = CliRunner().invoke(cli, arguments(data, model, tmp_path, "--text"))
    assert result.exit_code == 3, result.output
    assert "2 shards could not be run" in result.output
    assert (tmp_path / "cells.h5ad").exists()
    assert "cosmic rays" in invoke("status", tmp_path, "--text")
    # still, though nothing is wrong any more
    with pytest.warns(UserWarning, match="rows 10 to 19 could not be run"):
        assert CliRunner().invoke(cli, arguments(data, model, tmp_path)).exit_code == 3
    before = {path: path.stat().st_ino for path in tmp_path.glob("run/*/shard-*")}
    seen = []
    with monkeypatch.context() as patch:
        patch.setattr(module, "visit", lambda *given, **options: seen.append(1) or real(*given, **options))
        invoke(*arguments(data, model, tmp_path, "--retry"))
    assert len(before) == 6
    assert len(seen) == 2  # of two models the shard that was left out, and no other
    assert same_results(whole, tmp_path)
    assert not (tmp_path / "run").exists()


def test_another_instruction_set_is_refused(data, model, capsys, tmp_path):
    here, (*_, generic) = _kernels.instruction_set(), _kernels.instruction_sets()
    if here == generic:
        pytest.skip("this machine has one instruction set alone, so there is no other to refuse")
    invoke(*arguments(data, model, tmp_path, "--part", "0/2"))
    for more in (["--part", "1/2"], []):
        _kernels.use_instruction_set(generic)
        try:
            told = failure(capsys, *arguments(data, model, tmp_path, *more))
        finally:
            _kernels.use_instruction_set(here)
        assert f"instruction_set was {here}, now {generic}" in told
        assert "Ask for the same again on the same kind of machine" in told
    assert shards(tmp_path) == 2  # as they were


def test_counts_that_stay_on_disk(data, model, whole, tmp_path):
    invoke("convert", data, tmp_path / "cells.zarr", "--text")
    invoke(*arguments(tmp_path / "cells.zarr", model, tmp_path / "out", "--stream"))
    assert same_results(whole, tmp_path / "out")
    written, full = (ad.read_h5ad(folder / "cells.h5ad") for folder in (tmp_path / "out", whole))
    assert written.X is None
    pd.testing.assert_frame_equal(written.obs, full.obs)  # though few of its columns were read
    stages = json.loads((tmp_path / "out" / "stages.json").read_text())
    assert {"tokenising", "model", "analyses", "writing", "merging"} <= set(stages["here"])
    assert sum(stages["here"].values()) <= stages["wall"]
