"""What a disk that does not take the output means to a user."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)


class FullDiskError(OSError):
    """There is no room for the output, or no more of the user's share of it."""

    exit_code = 74


class ReadOnlyError(OSError):
    """The folder of the output takes no files."""

    exit_code = 73


class RunGoneError(FileNotFoundError):
    """The folder of a run was removed while it was run."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name the remedy where ``path``, a file or folder, cannot be written while the block runs.

    Raises
    ------
    FullDiskError, ReadOnlyError
        Any other error stays what it was.

    Examples
    --------
    >>> with writing(Path("results")):
    ...     raise OSError(errno.ENOSPC, "No space left on device")
    Traceback (most recent call last):
    scfast.run.disk.FullDiskError: results cannot be written: No space left on device. Make room ...
    """
    try:
        yield
    except (OSError, RuntimeError) as error:  # HDF5 has both, and says the number in words
        if isinstance(error, (FullDiskError, ReadOnlyError)):
            raise
        number, text = _number(error), getattr(error, "strerror", None) or str(error)
        if number in _FULL:
            full = FullDiskError(
                f"{path} cannot be written: {text}. Make room and give the same command again: what is finished is kept"
            )
            full.errno = number
            raise full from error
        if number in _REFUSED:
            refused = ReadOnlyError(
                f"{path} cannot be written: {text}. Give a folder that can be written, or make this one writable and"
                " give the same command again: what is finished is kept"
            )
            refused.errno = number
            raise refused from error
        raise


def _number(error: BaseException | None) -> int | None:
    """The system's number of an error, from the library's text where it does not pass it on."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        found = re.search(r"errno = (\d+)", str(error))
        if found:
            return int(found[1])
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def output_folder(folder: Path) -> Iterator[None]:
    """Make a folder, and try it, before hours are spent on what is to be written there.

    One that was made for a block that fails, and is still empty then, is removed again.

    Raises
    ------
    FullDiskError, ReadOnlyError
        When it takes no file.
    """
    probe = folder / ".writable"
    with writing(folder):
        there = folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            probe.write_bytes(b"yes")
        finally:
            probe.unlink(missing_ok=True)
    try:
        yield
    except BaseException:
        if not there:
            with suppress(OSError):  # something is in it
                folder.rmdir()
        raise
