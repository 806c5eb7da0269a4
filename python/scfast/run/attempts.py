"""How often a shard was tried in vain, told from what its processes noted."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence


def writer() -> str:
    """A name for this process among all that share a folder."""
    return f"{socket.gethostname()}:{os.getpid()}"


def in_vain(lines: Sequence[str]) -> int:
    """Attempts that failed, or whose process is no more.

    That of another process which still runs on this machine is not in vain yet: any number of processes may work on
    a shard at once, and the first one's result is kept.

    Parameters
    ----------
    lines
        ``begun WRITER``, and ``failed WRITER REASON`` or ``stopped WRITER``; without a writer, whoever began last.

    Examples
    --------
    >>> in_vain(["begun a:7", "failed a:7 a reason", "begun a:8", "begun a:9", "stopped a:9"])
    2
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
        elif kind == "stopped" and running:
            running.pop(name or next(reversed(running)), None)
    return failed + sum(not _runs(name) for name in running)


def _runs(name: str) -> bool:
    """Whether this is the name of another process of this machine that is there."""
    host, _, number = name.rpartition(":")
    if host != socket.gethostname() or not number.isdecimal() or int(number) == os.getpid():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
