"""Files that are there as a whole or not at all, whenever the machine stops."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import sys
from collections.abc import Iterable
from pathlib import Path

from scfast.run.disk import writing

#: What ends the name of a file that is being written.
UNFINISHED = ".part"


def publish(path: Path, pieces: Iterable[bytes], *, keep: bool = False) -> bool:
    """Write a file in one step: a reader, or the next start after a crash, sees all of it or what was there before.

    The pieces go to a file of another name, to the disk, and then get their name; the folder goes to the disk last.

    Parameters
    ----------
    path
        Where; the folder must exist.
    pieces
        The content.
    keep
        Of several writers the first one wins: where ``path`` exists already it stays.

    Returns
    -------
    bool
        Whether ``path`` holds these pieces now, rather than an earlier writer's.

    Raises
    ------
    FullDiskError, ReadOnlyError
        When they cannot be written; nothing is left of them.

    Examples
    --------
    >>> path = getfixture("tmp_path") / "answer"
    >>> publish(path, [b"4", b"2"], keep=True), publish(path, [b"43"], keep=True), path.read_text()
    (True, False, '42')
    """
    part = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}{UNFINISHED}")
    with writing(path.parent):
        try:
            with part.open("xb") as file:
                for piece in pieces:
                    file.write(piece)
                file.flush()
                to_disk(file.fileno())
            if keep:
                if not _link(part, path):
                    return False
            else:
                part.replace(path)
            sync_folder(path.parent)
        finally:
            part.unlink(missing_ok=True)
    return True


def _link(part: Path, path: Path) -> bool:
    try:
        os.link(part, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        if path.exists():
            return False
        part.replace(
            path
        )  # a file system without hard links: of two writers the later one wins, with the same bytes
    return True


def to_disk(descriptor: int) -> None:
    """Have what was written to a file on the disk itself: on macOS fsync stops at the drive's cache."""
    if sys.platform == "darwin":
        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder written to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        to_disk(descriptor)
    finally:
        os.close(descriptor)
