"""Processes of several machines on one run: who is there gives signs of life, and who is silent has tried in vain."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from scfast.run import attempts
from scfast.run.attempts import SILENT, alive, in_vain, writer
from scfast.run.disk import ReadOnlyError, RunGoneError
from scfast.run.ledger import Ledger
from tests.run.test_shards import N_SHARDS, bits, go

BEGUN = [f"begun node{i}:7" for i in range(3)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return bits(go(tmp_path_factory.mktemp("whole")))


def sign(folder, name, monkeypatch, age=0.0):
    """What another machine's process left, so many seconds ago."""
    host, _, number = name.partition(":")
    with monkeypatch.context() as other:
        other.setattr("socket.gethostname", lambda: host)
        other.setattr("os.getpid", lambda: int(number))
        with alive(folder):
            (left,) = folder.glob(f"{attempts.ALIVE}-{host}-*")
    left.touch()
    then = left.stat().st_mtime - age
    os.utime(left, (then, then))
    return left


def test_who_works_elsewhere_uses_up_no_attempts(tmp_path, monkeypatch, whole):
    go(tmp_path)
    ledger = Ledger(tmp_path, N_SHARDS)
    ledger.path(1).unlink()
    (tmp_path / "attempts-000001").write_text("\n".join(BEGUN) + "\n")
    for line in BEGUN:
        sign(tmp_path, line.split()[1], monkeypatch, age=SILENT - 60)
    assert ledger.attempts(1) == 0
    assert bits(go(tmp_path)) == whole  # three attempts in vain would have left the shard out
    assert not list(tmp_path.glob(f"{attempts.ALIVE}-*"))


def test_who_is_silent_has_tried_in_vain(tmp_path, monkeypatch):
    assert in_vain(BEGUN, tmp_path) == 3  # never heard of
    signs = [sign(tmp_path, line.split()[1], monkeypatch) for line in BEGUN]
    assert in_vain(BEGUN, tmp_path) == 0
    now = signs[0].stat().st_mtime
    os.utime(signs[0], (now - SILENT - 60,) * 2)
    assert in_vain(BEGUN, tmp_path) == 1
    assert in_vain([*BEGUN, "begun node1:7"], tmp_path) == 2  # started again under its name


@pytest.mark.parametrize("off", [-86400, 86400])
def test_machines_need_not_agree_on_the_time(off, tmp_path, monkeypatch):
    for name, age in (("node0:7", 0), ("node1:7", SILENT + 60)):
        sign(tmp_path, name, monkeypatch, age)
    here = time.time
    monkeypatch.setattr("time.time", lambda: here() + off)
    assert in_vain(BEGUN[:2], tmp_path) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alive-node0-7", "alive-node1-7"]


def test_who_may_only_look_uses_the_clock_at_hand(tmp_path, monkeypatch):
    sign(tmp_path, "node0:7", monkeypatch)

    def refused(self, *args, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "touch", refused)
    assert in_vain(BEGUN[:1], tmp_path) == 0
    with pytest.raises(ReadOnlyError), alive(tmp_path):
        pytest.fail("nobody would see it")


def test_signs_are_given_as_long_as_the_work_takes(tmp_path, monkeypatch):
    monkeypatch.setattr(attempts, "BEAT", 0.001)
    with alive(tmp_path):
        (given,) = tmp_path.iterdir()
        os.utime(given, (0, 0))
        until = time.monotonic() + 30
        while given.stat().st_mtime == 0 and time.monotonic() < until:
            time.sleep(0.001)
        assert given.stat().st_mtime > 0
        given.unlink()  # as when the folder is removed: the thread goes on, and makes nothing there
        time.sleep(0.01)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_gone_is_named(tmp_path):
    with pytest.raises(RunGoneError), Ledger(tmp_path / "gone", 1).working():
        pytest.fail("there is no folder")


def test_names_stay_within_the_folder(tmp_path):
    outside = tmp_path / "alive-outside"
    outside.touch()
    (tmp_path / "run").mkdir()
    assert in_vain(["begun ../alive-outside:7", "begun x/../../alive:outside"], tmp_path / "run") == 2


def test_a_cluster_says_who_is_lost(tmp_path, monkeypatch):
    ledger = Ledger(tmp_path, 1)
    (tmp_path / "attempts-000000").write_text("begun node0:7\n")
    sign(tmp_path, "node0:7", monkeypatch)
    assert ledger.attempts(0) == 0
    ledger.lost(0)
    assert ledger.attempts(0) == 1
    ledger.begin(0)
    assert ledger.attempts(0) == 2
    assert writer() in (tmp_path / "attempts-000000").read_text()
