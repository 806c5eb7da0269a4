"""``scfast plan``, and what ``scfast run --dry-run`` and ``scfast status`` say of a plan."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click import Option

from scfast.cli.plan import command as plan_command
from scfast.cli.run import command as run_command
from tests.test_cli import data, failure, invoke, model
from tests.test_cli_keeping import arguments

__all__ = ["data", "model"]  # fixtures


def words(data: Path, model: Path, out: Path, *more: str) -> list[str]:
    """As for a run, with little time to calibrate."""
    return ["plan", *arguments(data, model, out)[1:], "--seconds", "0.05", *more]


def test_plan_takes_the_options_of_run():
    def options(command):
        return {
            option.name: option.opts for option in command.params if isinstance(option, Option)
        }  # fmt: skip

    run, plan = options(run_command), options(plan_command)
    assert run.keys() - plan.keys() == {"dry_run"}
    assert plan.keys() - run.keys() == {"seconds"}
    assert {name: run[name] for name in plan if name in run} == {
        name: plan[name] for name in plan if name in run
    }


def test_plan_says_where_time_and_memory_go(data, model, tmp_path):
    out = tmp_path / "none"
    text = invoke(*words(data, model, out, "--memory", "1GB", "--text"))
    assert "40 cells x 25 genes" in text
    assert "share of the cells with at most" in text
    assert "1-rollout" in text
    assert "2-untrained" in text
    assert "Memory: 1.00 GB on cpu" in text
    assert "activations of the model" in text
    assert "beside it: weights" in text
    assert "about " in text
    assert "each is told by the others to" in text or "pieces could be timed" in text
    assert not out.exists()
    halved = invoke(*words(data, model, out, "--workers", "2", "--text"))
    assert "2 workers, if none waits for another" in halved


def test_plan_for_a_program(data, model, tmp_path):
    start, plan = map(json.loads, invoke(*words(data, model, tmp_path / "none", "--json")).splitlines())
    assert (start["event"], start["command"], plan["event"]) == ("start", "plan", "plan")
    assert [run["shards_to_run"] for run in plan["runs"]] == [4, 4]
    assert plan["runs"][0]["plan"]["cells"] == 40
    assert sum(plan["runs"][0]["memory"].values()) == 2 * 10**9
    total = plan["preparation_seconds"] + sum(run["run_seconds"] for run in plan["runs"])
    assert plan["total_seconds"] == pytest.approx(total)
    assert len(plan["runs"][0]["cost"]["samples"]) >= 1


def test_what_is_done_already_is_said_before_and_during(data, model, tmp_path):
    invoke(*arguments(data, model, tmp_path, "--part", "1/2"))
    (event,) = (
        event
        for event in map(
            json.loads, invoke(*arguments(data, model, tmp_path, "--dry-run", "--json")).splitlines()
        )
        if event["event"] == "plan"
    )
    first, second = event["runs"]
    assert (first["shards_finished"], first["shards_to_run"]) == (2, 2)
    assert (second["shards_finished"], second["shards_to_run"]) == (0, 4)
    assert event["total_seconds"] is None
    text = invoke(*arguments(data, model, tmp_path, "--dry-run", "--text"))
    assert "not timed" in text
    status = invoke("status", tmp_path, "--text")
    assert f"plan {first['plan']['hash'][:12]}: " in status
    assert "tokens, within 2 GB; float32 on " in status
    told = json.loads(invoke("status", tmp_path, "--json").splitlines()[0])["run"]
    assert told["plan"]["plan"] == first["plan"]["hash"]
    assert told["plan"]["memory"] == 2 * 10**9
    assert told["revised"] == []
    other = invoke(*arguments(data, model, tmp_path, "--layers", "0-0", "--dry-run", "--text"))
    assert "1-rollout is there already, and would be refused: analysis was" in other
    forgotten = invoke(*arguments(data, model, tmp_path, "--layers", "0-0", "--fresh", "--dry-run", "--text"))
    assert "refused" not in forgotten
    assert (tmp_path / "run").exists()  # a dry run forgets nothing


def test_a_plan_that_cannot_be_is_refused(data, model, capsys, tmp_path):
    told = failure(capsys, *words(data, model, tmp_path / "none", "--memory", "10KB"))
    assert "memory=0.01MB is too little: the longest cell has" in told


def test_workers_of_dask_on_this_machine_share_the_time(data, model, tmp_path):
    text = invoke(*words(data, model, tmp_path / "none", "--dask", "local:3", "--text"))
    assert "3 workers, if none waits for another" in text
