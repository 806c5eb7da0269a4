"""How often a shard was tried in vain, told from what its processes noted and from their signs of life."""

from __future__ import annotations

import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from scfast.run.atomic import UNFINISHED
from scfast.run.disk import writing

#: Begins the name of a process' sign of life: a file whose time is set again and again while it works on a shard.
ALIVE = "alive"
#: Seconds between two signs of life.
BEAT = 20.0
#: Seconds without one after which a process of another machine is taken for dead. File servers let times be remembered
#: for up to a minute, and machines that swap are late.
SILENT = 300.0


def writer() -> str:
    """A name for this process among all that share a folder."""
    return f"{socket.gethostname()}:{os.getpid()}"


@contextmanager
def alive(folder: Path) -> Iterator[None]:
    """Give signs of life in a folder while the block runs, however long a batch takes."""
    sign, ended = _sign(folder, writer()), threading.Event()

    def beat() -> None:
        while not ended.wait(BEAT):
            with suppress(OSError):  # the folder was removed, or its server is away: the run says so itself
                os.utime(sign)

    with writing(folder):
        sign.touch()
    thread = threading.Thread(target=beat, name="scfast-alive", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        with suppress(OSError):  # who looks for it finds the attempt ended
            sign.unlink(missing_ok=True)


def in_vain(lines: Sequence[str], folder: Path) -> int:
    """Attempts that failed, or whose process is no more.

    That of another process which still runs is not in vain yet: any number of processes may work on a shard at once,
    and the first one's result is kept. Of this machine a process runs as long as it is there, of another one as long
    as it gives signs of life: the last one is at most :data:`SILENT` seconds old by the clock of the file system.

    Parameters
    ----------
    lines
        ``begun WRITER``, and ``failed WRITER REASON`` or ``stopped WRITER``; without a writer, whoever began last;
        ``lost`` where a cluster says that who began last is no more.
    folder
        Where processes give signs of life.

    Examples
    --------
    >>> folder = getfixture("tmp_path")
    >>> in_vain(["begun a:7", "failed a:7 a reason", "begun a:8", "begun a:9", "stopped a:9"], folder)
    2
    >>> (folder / "alive-a-8").touch()
    >>> in_vain(["begun a:7", "failed a:7 a reason", "begun a:8"], folder)
    1
    """
    failed, running = 0, dict[str, None]()
    for line in lines:
        kind, name, *_ = [*line.split(" ", 2), ""]
        if kind == "begun":
            failed += name in running  # its predecessor of the same name was killed
            running[name] = None
        elif kind == "failed":
            failed += 1
            running.pop(name, None)
        elif kind in ("stopped", "lost") and running:
            failed += kind == "lost"
            running.pop(name or next(reversed(running)), None)
    return failed + sum(not _runs(name, folder) for name in running)


def _runs(name: str, folder: Path) -> bool:
    """Whether this is the name of another process that is there."""
    host, _, number = name.rpartition(":")
    if not host or not number.isdecimal():
        return False
    if host != socket.gethostname():
        return _heard(_sign(folder, name))
    if int(number) == os.getpid():
        return False
    try:
        os.kill(int(number), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _sign(folder: Path, name: str) -> Path:
    return folder / f"{ALIVE}-{re.sub(r'[^A-Za-z0-9_.-]', '-', name)[-200:]}"


def _heard(sign: Path) -> bool:
    """Whether a sign of life is young enough."""
    try:
        last = sign.stat().st_mtime
    except OSError:
        return False
    return _now(sign.parent) - last <= SILENT


def _now(folder: Path) -> float:
    """The time by the clock that sets the times of files: machines need not agree on theirs."""
    probe = folder / f".now-{os.getpid()}-{secrets.token_hex(4)}{UNFINISHED}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    except OSError:  # somebody looks who may not write: this machine's clock has to do
        return time.time()
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
