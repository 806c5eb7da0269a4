"""Named arrays in a file that knows whether it is whole."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from scfast.models.text_files import shown
from scfast.run.atomic import publish

_FIRST_LINE = b"scfast arrays 1\n"


class DamagedFileError(ValueError):
    """A file of arrays that is not what was written: cut off, or changed."""


def write_arrays(
    path: Path, arrays: Mapping[str, np.ndarray], note: Mapping[str, Any], *, keep: bool = False
) -> bool:
    """Write arrays and a note in one step, with a checksum over both.

    The file is a line that names the format, a line of JSON (``sha256``, ``bytes``, ``note``), and the arrays as an
    uncompressed ``.npz``. The same arrays and note give the same bytes.

    Parameters
    ----------
    path
        Where.
    arrays
        Of numbers, booleans or text; no objects.
    note
        What JSON takes.
    keep
        See :func:`~scfast.run.atomic.publish`.
    """
    memory = io.BytesIO()
    np.savez(memory, allow_pickle=False, **{name: np.ascontiguousarray(x) for name, x in arrays.items()})
    body = memory.getbuffer()
    text = json.dumps(note, sort_keys=True)
    head = {"bytes": len(body), "note": text, "sha256": _digest(text, body)}
    return publish(path, (_FIRST_LINE, json.dumps(head).encode() + b"\n", bytes(body)), keep=keep)


def read_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the note.

    Raises
    ------
    DamagedFileError
        When a byte is missing or another than was written.

    Examples
    --------
    >>> path = getfixture("tmp_path") / "sums"
    >>> write_arrays(path, {"x": np.arange(3)}, {"rows": [0, 3]})
    True
    >>> read_arrays(path)
    ({'x': array([0, 1, 2])}, {'rows': [0, 3]})
    """
    with path.open("rb") as file:
        if file.readline(len(_FIRST_LINE)) != _FIRST_LINE:
            raise DamagedFileError(f"{path} is damaged, or no file of arrays: its first line is another")
        line, body = file.readline(), file.read()
    try:
        head = json.loads(line)
        length, text, digest = head["bytes"], head["note"], head["sha256"]
        note, found = json.loads(text), _digest(text, body)
        if not isinstance(note, dict):
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DamagedFileError(f"{path} is damaged: its second line does not describe it") from None
    if length != len(body):
        raise DamagedFileError(
            f"{path} is damaged: {len(body)} bytes of {shown(length)} follow its description"
        )
    if digest != found:
        raise DamagedFileError(
            f"{path} is damaged: its bytes are not those that were written (sha256 differs)"
        )
    try:
        return _arrays(body), note
    except Exception as error:  # the bytes are those that were written, but not by write_arrays
        raise DamagedFileError(f"{path} is damaged: it holds no arrays that can be read ({error})") from None


def _arrays(body: bytes) -> dict[str, np.ndarray]:
    """The arrays of an uncompressed ``.npz``: a few bytes of a compressed one may ask for any amount of memory."""
    with zipfile.ZipFile(io.BytesIO(body)) as members:
        sizes = [
            member.file_size for member in members.infolist() if member.compress_type == zipfile.ZIP_STORED
        ]
        if len(sizes) < len(members.infolist()) or sum(sizes) > len(body):
            raise ValueError("its arrays are compressed")
    with np.load(io.BytesIO(body), allow_pickle=False) as arrays:
        return dict(arrays)


def _digest(text: str, body: bytes | memoryview) -> str:
    digest = hashlib.sha256(text.encode())
    digest.update(body)
    return digest.hexdigest()
