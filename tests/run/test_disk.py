"""Disks that are full or read-only, and processes that work on the same shard: nothing is lost or counted twice."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from scfast.cli import main
from scfast.run import Ledger, PartDone
from scfast.run.attempts import in_vain, writer
from scfast.run.disk import FullDiskError, ReadOnlyError, RunGoneError, output_folder, writing
from tests.run.test_shards import N_SHARDS, bits, go
from tests.test_cli import data, model
from tests.test_cli_keeping import arguments

__all__ = ["data", "model"]  # fixtures


@contextmanager
def room_for(n_bytes: int):
    """No file may be longer: the system cuts a write short, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def read_only(folder: Path):
    """Nothing may be written to a folder; an administrator, whom this would not stop, is somebody else meanwhile."""
    folder.mkdir(exist_ok=True)
    folder.chmod(0o500)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
        folder.chmod(0o700)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return bits(go(tmp_path_factory.mktemp("whole")))


def test_a_full_disk_costs_neither_results_nor_attempts(tmp_path, whole):
    with pytest.raises(PartDone):
        go(tmp_path, part=(0, N_SHARDS))
    for _ in range(4):  # more often than a shard is tried
        with (
            room_for(2000),
            pytest.raises(FullDiskError, match=r"cannot be written: File too large\. Make room"),
        ):
            go(tmp_path)
    assert Ledger(tmp_path, N_SHARDS).finished() == [0]
    assert not list(tmp_path.glob(".*"))  # no half of a file is left
    assert bits(go(tmp_path, tries=1)) == whole


def test_a_folder_that_takes_no_files(tmp_path):
    with read_only(tmp_path / "run"), pytest.raises(ReadOnlyError, match="Give a folder that can be written"):
        go(tmp_path / "run" / "1")


def test_a_run_that_became_read_only_goes_on_later(tmp_path, whole):
    with pytest.raises(PartDone):
        go(tmp_path / "run", part=(0, N_SHARDS))
    with read_only(tmp_path / "run"), pytest.raises(ReadOnlyError):
        go(tmp_path / "run")
    assert bits(go(tmp_path / "run")) == whole


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError("file write failed: time = now, errno = 28, error message = 'No space'"), FullDiskError),
        (RuntimeError("Can't decrement id ref count (errno = 28, error message = ...)"), FullDiskError),
        (OSError(30, "Read-only file system"), ReadOnlyError),
        (FileNotFoundError(2, "No such file"), FileNotFoundError),
        (RuntimeError("something else"), RuntimeError),
    ],
)
def test_what_libraries_say_of_disks(error, expected):
    with pytest.raises(expected), writing(Path("out")):
        raise error


def test_exit_codes_of_disks(data, model, capsys, tmp_path):
    def code(*words: str) -> int:
        with pytest.raises(SystemExit) as stop:
            main(arguments(data, model, tmp_path / "out", *words))
        return stop.value.code

    with room_for(1500):
        assert code() == 74
    assert "Make room and give the same command again" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "out")
    (tmp_path / "out").write_text("no folder")
    assert code() == 1


def test_the_output_folder_is_tried_before_anything_is_run(tmp_path):
    with output_folder(tmp_path / "new" / "folder"):
        pass
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    with (
        read_only(tmp_path / "closed"),
        pytest.raises(ReadOnlyError, match="closed cannot be written: Permission"),
        output_folder(tmp_path / "closed"),
    ):
        pass


@pytest.mark.parametrize("results", [[], ["genes.csv"]])
def test_an_output_folder_without_anything_does_not_outlive_a_failure(results, tmp_path):
    folder = tmp_path / "new"

    def fail():
        with output_folder(folder):
            for name in results:
                (folder / name).touch()
            raise ValueError("no cells")

    with pytest.raises(ValueError, match="no cells"):
        fail()
    assert folder.exists() == bool(results)


def test_two_processes_on_one_shard(tmp_path, whole):
    """While one is in the middle of a shard, another runs the whole."""
    other = []

    def spoil(rows):
        if not other:
            other.append(None)
            other[0] = bits(go(tmp_path))

    assert bits(go(tmp_path, spoil=spoil)) == whole
    assert other == [whole]
    assert Ledger(tmp_path, N_SHARDS).finished() == list(range(N_SHARDS))


def test_a_run_that_another_process_finished_and_removed(tmp_path):
    def spoil(rows):
        shutil.rmtree(tmp_path, ignore_errors=True)

    with pytest.raises(RunGoneError, match="another process has finished the same run"):
        go(tmp_path, spoil=spoil)
    assert not tmp_path.exists()


def test_processes_that_still_run_use_up_no_attempts(tmp_path, whole):
    others = [subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) for _ in range(3)]
    host = writer().rpartition(":")[0]
    try:
        go(tmp_path)
        ledger = Ledger(tmp_path, N_SHARDS)
        ledger.path(1).unlink()
        lines = [f"begun {host}:{process.pid}" for process in others]
        (tmp_path / "attempts-000001").write_text("\n".join(lines) + "\n")
        assert ledger.attempts(1) == 0
        assert bits(go(tmp_path)) == whole
    finally:
        for process in others:
            process.communicate()
    ledger.path(1).unlink()
    assert ledger.attempts(1) == 4  # and one of this process
    assert set(go(tmp_path).left_out) == {(6, 12)}


def test_attempts_of_one_name_are_told_apart(tmp_path):
    me, dead = writer(), "elsewhere:7"
    assert (
        in_vain([f"begun {dead}", f"begun {dead}"], tmp_path) == 2
    )  # a container gives every process the same number
    assert (
        in_vain(
            [f"begun {dead}", f"failed {dead} for a reason", f"begun {dead}", f"stopped {dead}"], tmp_path
        )
        == 1
    )
    assert in_vain([f"begun {me}"], tmp_path) == 1
    assert in_vain([f"begun {dead}", "stopped"], tmp_path) == 0
    assert in_vain(["stopped", "", "nonsense"], tmp_path) == 0
