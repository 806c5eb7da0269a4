"""Kills a run at every step of its ledger and at random moments; prints what its results then were.

A process that has loaded everything and started no thread forks a child for each attempt: a start of Python takes
seconds, a fork none.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from scfast.run import atomic, ledger
from tests.run.test_shards import bits, go

#: Calls to the system that the ledger makes.
CALLS = (
    *((os, name) for name in ("fsync", "link", "open", "close")),
    *((Path, name) for name in ("unlink", "replace", "open", "touch", "mkdir")),
)
#: Attempts that a killed shard has here: it is not the shard's fault.
TRIES = 10_000


def attempt(folder: Path, *, steps: int | None = None, seconds: float | None = None) -> int:
    """Run in a child that dies at its n-th call to the system, or after so many seconds; its exit code."""
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        if steps is not None:
            die_after(steps)
        go(folder, tries=TRIES)
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die_after(steps: int) -> None:
    """Make the ledger's calls to the system deadly from the n-th on."""
    left = [steps]

    def dying(call: Any) -> Any:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return wrapped

    for owner, name in CALLS:
        setattr(owner, name, dying(getattr(owner, name)))
    ledger.publish = atomic.publish


def digest(folder: Path) -> str:
    """Of the results, run to their end in a child."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        os.write(write, hashlib.sha256(bits(go(folder, tries=TRIES))).hexdigest().encode())
        os._exit(0)
    os.waitpid(child, 0)
    return os.read(read, 64).decode()


def main(folder: Path, moments: int, seed: int) -> None:
    chance = random.Random(seed)
    whole = digest(folder / "whole")
    deaths, wrong = 0, []
    for steps in range(10_000):
        here = folder / "steps"
        shutil.rmtree(here, ignore_errors=True)
        code = attempt(here, steps=steps)
        deaths += code == -signal.SIGKILL
        if digest(here) != whole:
            wrong.append(f"step {steps}")
        if code == 0:
            break
    started = time.perf_counter()
    digest(folder / "timed")
    span = time.perf_counter() - started
    here, killed = folder / "moments", 0
    while killed < moments:
        if attempt(here, seconds=chance.uniform(0, span)) == -signal.SIGKILL:
            killed += 1
            if killed % 5 and killed < moments:  # several kills of one run, then its results
                continue
        if digest(here) != whole:
            wrong.append(f"moment {killed}")
        shutil.rmtree(here)
    print(json.dumps({"steps": deaths, "moments": killed, "wrong": wrong}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
