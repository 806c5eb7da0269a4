"""Seconds of a run by its stages: none is counted twice, and what runs beside the model is told apart."""

from __future__ import annotations

import json
import threading
import time

import numpy as np
import pytest

import scfast
from scfast.run.stages import STAGES_FILE, Clock, Times, beside, note_times, noted_times, stage
from tests.toy import toy_adata, toy_source


def test_a_stage_within_another_is_not_counted_twice():
    clock = Clock()
    with stage("analyses"):
        time.sleep(0.02)
        with stage("model"):
            time.sleep(0.05)
    times = clock.times()
    assert times.here["model"] >= 0.05
    assert 0.02 <= times.here["analyses"] < 0.05
    assert sum(times.here.values()) <= times.wall
    assert not times.beside


def test_what_fails_is_counted_too():
    clock = Clock()

    def fail():
        with stage("model"):
            time.sleep(0.01)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert clock.times().here["model"] >= 0.01


def test_threads_beside_are_told_apart():
    clock = Clock()

    def read():
        beside()
        with stage("reading"):
            time.sleep(0.02)

    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    assert clock.times().beside["reading"] >= 0.02
    assert not clock.times().here


def test_times_are_added_by_name():
    both = Times(1.0, {"model": 0.5}, {"reading": 2.0}) + Times(3.0, {"model": 1.0, "writing": 1.0})
    assert both == Times(4.0, {"model": 1.5, "writing": 1.0}, {"reading": 2.0})
    assert Times.from_dict(both.as_dict()) == both
    assert both.describe() == "model 38 %, writing 25 %, the rest 38 % of 4.0 s; beside it reading 50 %"
    assert Times().describe() == ""


def test_a_tool_has_stages(tmp_path):
    toy_adata().write_h5ad(tmp_path / "cells.h5ad")
    clock = Clock()
    with scfast.run.resumable(tmp_path / "run", shard_cells=9):
        scfast.tl.rollout(scfast.io.open(tmp_path / "cells.h5ad"), toy_source(), progress=False)
    times = clock.times()
    assert {"reading", "waiting for counts", "tokenising", "model", "analyses", "writing", "merging"} == set(
        times.here
    )
    assert sum(times.here.values()) <= times.wall
    assert np.all(np.array(list(times.here.values())) > 0)


def test_shards_of_other_processes_count_too(tmp_path):
    note_times(tmp_path, Times(1.0, {"model": 0.5}))
    other = {"process": "another", **Times(2.0, {"model": 1.5}).as_dict()}
    with (tmp_path / STAGES_FILE).open("a") as file:
        file.write(json.dumps(other) + '\n{"process": "killed", "wa')
    assert noted_times(tmp_path) == Times(3.0, {"model": 2.0})
    assert noted_times(tmp_path, by_others=True) == Times(2.0, {"model": 1.5})
    assert noted_times(tmp_path / "none") == Times()
