"""Processes that share a run: started, watched, started again when they are killed."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence

from scfast.run.stopping import stop_on_signal

_LOG = logging.getLogger(__name__)

#: Seconds between two looks at the workers.
LOOK = 0.1
#: Seconds that a worker has to end by itself.
PATIENCE = 10.0


class WorkerError(ChildProcessError):
    """A worker ended with an error, which it has printed.

    Attributes
    ----------
    exit_code
        The worker's.
    """

    exit_code = 1


def supervise(
    commands: Sequence[Sequence[str]],
    *,
    restarts: int,
    tick: Callable[[], object] = lambda: None,
    environments: Sequence[Mapping[str, str]] = (),
) -> None:
    """Run commands side by side until all have ended well.

    A process that was killed is started again; one that ended with an error ends them all. So does a signal to stop,
    which is passed on.

    Parameters
    ----------
    commands
        Of each worker.
    restarts
        Processes that may be killed before it is given up.
    tick
        Called several times a second.
    environments
        Variables of each worker, beside those of this process.

    Raises
    ------
    WorkerError
        When a worker ended with an error, or too many were killed.
    Stopped
        When this process was asked to stop.
    """

    def start(index: int) -> subprocess.Popen[bytes]:
        more = environments[index] if environments else {}
        return subprocess.Popen(list(commands[index]), env={**os.environ, **more})

    killed = 0
    running: dict[int, subprocess.Popen[bytes]] = {}
    with stop_on_signal() as stop:
        try:
            running |= {index: start(index) for index in range(len(commands))}
            while running:
                for index, process in list(running.items()):
                    code = process.poll()
                    if code is None:
                        continue
                    del running[index]
                    if code > 0:
                        ended = WorkerError(f"worker {index} ended with code {code}: its message is above")
                        ended.exit_code = code
                        raise ended
                    if code < 0:
                        killed += 1
                        name = signal.Signals(-code).name
                        if killed > restarts:
                            raise WorkerError(
                                f"worker {index} was killed by {name}, and {killed - 1} before it: if memory is short,"
                                " use fewer workers or a smaller memory="
                            )
                        _LOG.warning("worker %d was killed by %s and is started again", index, name)
                        running[index] = start(index)
                tick()
                stop.check()
                if running:
                    time.sleep(LOOK)
        finally:
            _end(list(running.values()))


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask processes to stop, and kill those that do not."""
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
