"""Text, JSON and CSV from files that may be anything: bounded, in UTF-8, with errors that name the file."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from pathlib import Path
from typing import Any

#: The largest text that is read: all of MSigDB is 30 MB, and a small gzip file may hold terabytes.
MAX_BYTES = 10**9
_PIECE = 2**20
#: Lists and objects inside each other: deeper ones are no configuration, and could not even be printed.
MAX_DEPTH = 50


def read_text(path: Path) -> str:
    """The text of a file, with gzip if its name ends in ``.gz``; a byte order mark is left out.

    Raises
    ------
    ValueError
        When it is damaged, no UTF-8, or longer than :data:`MAX_BYTES`.
    """
    content = bytearray()
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            while piece := file.read(_PIECE):
                content += piece
                if len(content) > MAX_BYTES:
                    raise ValueError(f"{path} holds more than {MAX_BYTES:,} bytes: that is no table of genes")
        return content.decode("utf-8-sig")
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as text in UTF-8: {error}") from None


def read_json(path: Path) -> Any:
    """The value of a JSON file, with gzip if its name ends in ``.gz``.

    Raises
    ------
    ValueError
        When it is no JSON, or nested deeper than :data:`MAX_DEPTH`; and as :func:`read_text`.

    Examples
    --------
    >>> path = getfixture("tmp_path") / "config.json"
    >>> _ = path.write_text('{"hidden_size": 256}')
    >>> read_json(path)
    {'hidden_size': 256}
    """
    text = read_text(path)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    level = [value]
    for _ in range(MAX_DEPTH):
        inside = (x.values() if isinstance(x, dict) else x for x in level if isinstance(x, dict | list))
        level = [x for values in inside for x in values if isinstance(x, dict | list)]
        if not level:
            return value
    raise ValueError(f"{path} is not JSON that can be read: it is nested deeper than {MAX_DEPTH}")


def read_rows(path: Path, delimiter: str = ",") -> list[list[str]]:
    """The rows of a CSV file that are not empty, with gzip if its name ends in ``.gz``.

    Raises
    ------
    ValueError
        When a field is longer than 131,072 characters, as after a quotation mark that is never closed; and as
        :func:`read_text`.
    """
    rows = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter)
    try:
        return [row for row in rows if row]
    except csv.Error as error:
        raise ValueError(f"{path}, line {rows.line_num} cannot be read as a table: {error}") from None


def shown(value: object) -> str:
    """A value of a file for a message: short, whatever it is.

    Examples
    --------
    >>> shown("CD3D"), shown(0.5), shown([1, [2]]), shown("x" * 500)[-6:]
    ("'CD3D'", '0.5', 'a list', 'xxx...')
    """
    if isinstance(value, dict | list | tuple):  # may hold itself, or a thousand times more than its file
        return f"a {type(value).__name__}"
    if isinstance(value, int) and abs(value) > 10**80:
        return "a whole number of more than 80 digits"
    text = repr(value[:80] if isinstance(value, str | bytes) else value)
    return text if len(text) <= 80 else f"{text[:77]}..."
