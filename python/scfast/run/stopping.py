"""Stopping when asked to: a queue that ends a job sends a signal first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

#: What queues send before they kill.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Stopped(BaseException):
    """The run was asked to stop, and did so between two batches; what was finished is kept.

    As with ``KeyboardInterrupt``, no handler of errors should take it for one.
    """


class Stop:
    """Whether a signal came."""

    def __init__(self) -> None:
        self._signal: signal.Signals | None = None

    def note(self, number: int, frame: FrameType | None = None) -> None:
        """Take a signal."""
        self._signal = signal.Signals(number)

    def check(self) -> None:
        """Raise :class:`Stopped` when a signal came."""
        if self._signal is not None:
            raise Stopped(f"stopped by {self._signal.name}")


@contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """Take SIGTERM and SIGUSR1 while the block runs; only a main thread can, elsewhere they stay what they were."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.note) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
