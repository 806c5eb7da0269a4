"""Where the time of a run goes: seconds in each of its stages, of the thread that runs it and of those beside it."""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

#: In the order of the data's way.
STAGES = (
    *("waiting for counts", "reading", "waiting for tokens", "tokenising", "model", "analyses", "writing"),
    "merging",
)
#: File of a run's folder with a line for every shard.
STAGES_FILE = "stages.jsonl"
_PROCESS = uuid4().hex
_lock = threading.Lock()
#: (beside, stage) -> seconds, since the process began.
_seconds: defaultdict[tuple[bool, str], float] = defaultdict(float)


class _Thread(threading.local):
    beside = False
    #: Seconds of the stages within the one that is being counted.
    inner = 0.0


_thread = _Thread()


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Count the time of this block as that of a stage; a stage within it has its own time, which is not counted twice.

    Two readings of a clock: what a GPU still does is not waited for, and is counted where its results are.
    """
    outer, _thread.inner = _thread.inner, 0.0
    start = time.perf_counter()
    try:
        yield
    finally:
        took = time.perf_counter() - start
        with _lock:
            _seconds[_thread.beside, name] += took - _thread.inner
        _thread.inner = outer + took


def beside() -> None:
    """Say that this thread works beside the one that runs the model."""
    _thread.beside = True


@dataclass(frozen=True)
class Times:
    """Seconds by stage.

    Attributes
    ----------
    wall
        From beginning to end; of several processes together.
    here
        Of threads that run a model: these seconds do not overlap.
    beside
        Of threads that read and make tokens meanwhile: these overlap with the others, and with each other.

    Examples
    --------
    >>> times = Times(10.0, {"model": 8.0, "analyses": 1.0}, {"reading": 2.0})
    >>> times.describe()
    'model 80 %, analyses 10 %, the rest 10 % of 10.0 s; beside it reading 20 %'
    >>> Times.from_dict(times.as_dict()) == times
    True
    """

    wall: float = 0.0
    here: Mapping[str, float] = field(default_factory=dict)
    beside: Mapping[str, float] = field(default_factory=dict)

    def __add__(self, other: Times) -> Times:
        """Of both, one after the other or in two processes."""
        return Times(self.wall + other.wall, _sum(self.here, other.here), _sum(self.beside, other.beside))

    def describe(self) -> str:
        """One line; empty where nothing was counted."""
        if not self.wall or not (self.here or self.beside):
            return ""
        rest = self.wall - sum(self.here.values())
        line = ", ".join([*self._shares(self.here), f"the rest {rest / self.wall:.0%}".replace("%", " %")])
        besides = ", ".join(self._shares(self.beside))
        return f"{line} of {self.wall:.1f} s" + (f"; beside it {besides}" if besides else "")

    def _shares(self, seconds: Mapping[str, float]) -> list[str]:
        return [
            f"{name} {seconds[name] / self.wall:.0%}".replace("%", " %") for name in STAGES if name in seconds
        ]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"wall": self.wall, "here": dict(self.here), "beside": dict(self.beside)}

    @classmethod
    def from_dict(cls, parts: Mapping[str, Any]) -> Times:
        """What :meth:`as_dict` gave."""
        seconds = ({str(k): float(v) for k, v in parts[name].items()} for name in ("here", "beside"))
        return cls(float(parts["wall"]), *seconds)


def _sum(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    return {name: one.get(name, 0.0) + other.get(name, 0.0) for name in {**one, **other}}


class Clock:
    """Counts what the stages of this process take from now on."""

    def __init__(self) -> None:
        with _lock:
            self._before = _seconds.copy()
        self._start = time.perf_counter()

    def times(self) -> Times:
        """Until now."""
        with _lock:
            took = {key: value - self._before[key] for key, value in _seconds.items()}
        parts: tuple[dict[str, float], dict[str, float]] = ({}, {})
        for (besides, name), value in took.items():
            if value > 0:
                parts[besides][name] = value
        return Times(time.perf_counter() - self._start, *parts)


def note_times(folder: Path, times: Times) -> None:
    """Add what one shard took in this process to the folder of its run; lines of several processes do not mix."""
    line = json.dumps({"process": _PROCESS, **times.as_dict()}) + "\n"
    with (folder / STAGES_FILE).open("ab", buffering=0) as file:
        file.write(line.encode())


def noted_times(folder: Path, *, by_others: bool = False) -> Times:
    """The times of all shards that were run for ``folder``, by anybody or by other processes than this one.

    A line that a killed process did not finish is left out: it is not what results depend on.
    """
    path, total = folder / STAGES_FILE, Times()
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            parts = json.loads(line)
            if not (by_others and parts["process"] == _PROCESS):
                total += Times.from_dict(parts)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            continue
    return total
