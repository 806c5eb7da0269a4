"""What the state machine of test_interrupted.py guards, shown by switching it off.

Each case is a thing that happens to a run, and all the safeguards against it. With all of them off, what the machine
looks at goes wrong: the bytes of every result, the visits of every row, the names in the folder. With any one of them
on it does not, which is why a safeguard that is broken alone may go unnoticed there; each has tests of its own
(test_array_files.py, test_shards.py, test_disk.py).

What no test of results can see: whether bytes are on the disk before their name (fsync: only a loss of power tells),
and which of two complete files of one shard stays (their bytes are the same).
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable

import pytest

from scfast.run import Ledger, OtherRunError, ShardedRun, array_files, make_plan
from tests.run import test_interrupted
from tests.run.test_interrupted import PLAN, Interrupted, sums, whole

__all__ = ["whole"]  # a fixture

Off = Callable[[pytest.MonkeyPatch], None]


def no_digest(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(array_files, "_digest", lambda text, body: "")


def no_check_of_the_archive(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(zipfile.ZipExtFile, "_update_crc", lambda self, data: None)


def no_number_of_the_shard(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Ledger, "load", lambda self, shard: array_files.read_arrays(self.path(shard)))


def no_rows_of_the_shard(patch: pytest.MonkeyPatch) -> None:
    def load(self, ledger, shard):
        try:
            return ledger.load(shard)
        except array_files.DamagedFileError:
            ledger.set_aside(shard)
            raise

    patch.setattr(ShardedRun, "_load", load)


def no_identity(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Ledger, "differences", lambda *_: {})


def no_fresh_sums(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ShardedRun, "fresh", lambda self: dict(self.analyses))


def stops_count(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Ledger, "take_back", lambda self, shard, whose=None: None)


def nothing_is_swept(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Ledger, "sweep", lambda self: None)


def a_byte_of_a_sum_flips(machine: Interrupted) -> None:
    machine.run()
    path = machine.finished()[0]
    content, (arrays, _) = bytearray(path.read_bytes()), array_files.read_arrays(path)
    content[content.index(arrays["visits/visits"].tobytes())] ^= 4
    path.write_bytes(content)
    machine.run()


def a_file_stands_for_another(machine: Interrupted) -> None:
    machine.run()
    first, second, *_ = machine.finished()
    shutil.copy(first, second)
    machine.run()


def another_plan_was_begun(machine: Interrupted) -> None:
    with pytest.MonkeyPatch.context() as patch:
        other = make_plan(sums.TOKENS.lengths, token_budget=60, shard_cells=int(PLAN.shard_rows[1]) + 1)
        patch.setattr(test_interrupted, "PLAN", other)
        machine.run((0, 2))
    try:
        machine.run()
    except OtherRunError:
        shutil.rmtree(machine.folder)  # as the message says


def shards_come_one_after_the_other(machine: Interrupted) -> None:
    machine.run()


def three_stops(machine: Interrupted) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(test_interrupted, "TRIES", 3)
        for _ in range(3):
            machine.a_runner_is_stopped_between_batches(0)
        machine.run()


def a_killed_writer_left_half_a_file(machine: Interrupted) -> None:
    machine.half_a_file_is_left(1)
    machine.run()
    assert not list(machine.folder.glob(".*"))


#: What happens, and all safeguards against it.
CASES: list[tuple[Callable[[Interrupted], None], list[Off]]] = [
    (a_byte_of_a_sum_flips, [no_digest, no_check_of_the_archive]),
    (a_file_stands_for_another, [no_number_of_the_shard, no_rows_of_the_shard]),
    (another_plan_was_begun, [no_identity, no_rows_of_the_shard]),
    (shards_come_one_after_the_other, [no_fresh_sums]),
    (three_stops, [stops_count]),
    (a_killed_writer_left_half_a_file, [nothing_is_swept]),
]


@pytest.fixture
def machine() -> Interrupted:
    made = Interrupted()
    yield made
    shutil.rmtree(made.folder, ignore_errors=True)


@pytest.mark.parametrize(("happens", "guards"), CASES, ids=[case[0].__name__ for case in CASES])
def test_without_its_safeguards_it_is_seen(happens, guards, machine, monkeypatch):
    for off in guards:
        off(monkeypatch)
    with pytest.raises((AssertionError, ValueError)):  # or not even that: rows that do not fit together
        happens(machine)


@pytest.mark.parametrize(
    ("happens", "on", "guards"),
    [(happens, on, guards) for happens, guards in CASES for on in guards],
    ids=[f"{happens.__name__}-{on.__name__}" for happens, guards in CASES for on in guards],
)
def test_any_one_of_them_is_enough(happens, on, guards, machine, monkeypatch):
    for off in guards:
        if off is not on:
            off(monkeypatch)
    happens(machine)
