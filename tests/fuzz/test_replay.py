"""Every seed is read, and no mutated one does more than raise a clear error; a small stand-in for ``make fuzz``."""

from __future__ import annotations

import random
import time
import tracemalloc
from pathlib import Path

import pytest

from tests.fuzz import TARGETS, harness

MUTANTS = 100
#: At most, for one input and for all of them.
MEGABYTES, SECONDS = 64, 20
#: Files that may be empty.
EMPTY = {"tiles.toml", "1-run/attempts-000000"}


def mutated(chance: random.Random, seeds: list[bytes], words: list[bytes]) -> bytes:
    """A seed after a few of the things that fuzzers do."""
    data = bytearray(chance.choice(seeds))
    for _ in range(chance.randint(1, 4)):
        at, until = sorted(chance.randint(1, len(data)) for _ in range(2))
        match chance.randrange(6):
            case 0:
                del data[at:]
            case 1:
                del data[at:until]
            case 2:
                data[at:at] = chance.choice(words)
            case 3:
                data[at:at] = data[at:until] * chance.choice((1, 3, 50))
            case 4:
                data[at:at] = bytes([chance.randrange(256)])
            case 5:
                data[at:until] = chance.choice(seeds)[at:until]
    return bytes(data)


@pytest.mark.parametrize("target", TARGETS)
def test_seeds_are_read(target: str, tmp_path: Path) -> None:
    ways = harness.ways(target)
    read = [harness.attempt(ways, seed, tmp_path) for seed in harness.seeds(target)]
    assert sum(read) > len(read) / 2  # some seeds are there for what is refused in them


@pytest.mark.parametrize("target", TARGETS)
def test_mutated_seeds_end_in_clear_errors(target: str, tmp_path: Path) -> None:
    ways, seeds, words = harness.ways(target), harness.seeds(target), harness.words(target)
    chance, started = random.Random(target), time.process_time()
    refused = 0
    tracemalloc.start()
    try:
        for _ in range(MUTANTS):
            refused += not harness.attempt(ways, mutated(chance, seeds, words), tmp_path)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert refused > MUTANTS / 4
    assert most < MEGABYTES * 2**20
    assert time.process_time() - started < SECONDS
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_at_all_is_refused(target: str, tmp_path: Path) -> None:
    for number, way in enumerate(harness.ways(target)):
        if way.name not in EMPTY:
            assert not harness.attempt(harness.ways(target), bytes([number]), tmp_path), way.name


def test_every_target_is_listed() -> None:
    beside = {path.stem for path in Path(__file__).parent.glob("*.py")}
    assert beside - {"__init__", "__main__", "harness", "test_replay"} == set(TARGETS)
