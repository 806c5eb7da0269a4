"""Gene vocabularies and medians given as text, JSON or CSV."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import TextIO, cast


def read_vocabulary(path: str | Path) -> list[str]:
    """Gene ids in order, from a text file (one a line), a JSON list, or a JSON object gene -> token id.

    Names in angle brackets, such as ``<pad>``, are special tokens and are left out.

    Raises
    ------
    ValueError
        If the file holds no gene, or one twice.

    Examples
    --------
    >>> import json, tempfile, pathlib, scfast
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "genes.json"
    >>> _ = path.write_text(json.dumps({"<pad>": 0, "<mask>": 1, "CD3D": 3, "LYZ": 2}))
    >>> scfast.io.read_vocabulary(path)
    ['LYZ', 'CD3D']
    """
    path = Path(path)
    if path.name.removesuffix(".gz").endswith(".json"):
        with _open(path) as file:
            held = json.load(file)
        names = sorted(held, key=held.__getitem__) if isinstance(held, dict) else list(held)
    else:
        with _open(path) as file:
            names = [line.strip() for line in file]
    genes = [str(name) for name in names if name and not str(name).startswith("<")]
    if not genes:
        raise ValueError(f"{path} holds no gene ids: give one a line, or a JSON list or object")
    if len(set(genes)) != len(genes):
        twice = next(gene for gene in genes if genes.count(gene) > 1)
        raise ValueError(f"{path} holds the gene {twice!r} more than once")
    return genes


def read_medians(path: str | Path) -> dict[str, float]:
    """Non-zero medians by gene, from a JSON object or a two-column CSV (gene, median; a header is skipped).

    Raises
    ------
    ValueError
        If a median is not a positive number.
    """
    path = Path(path)
    if path.name.removesuffix(".gz").endswith(".json"):
        with _open(path) as file:
            table = dict(json.load(file))
    else:
        with _open(path) as file:
            rows = [row for row in csv.reader(file) if len(row) >= 2]
        if rows and not _is_number(rows[0][1]):
            rows = rows[1:]
        table = {row[0]: row[1] for row in rows}
    for gene, median in table.items():
        if not _is_number(median) or not float(median) > 0:
            raise ValueError(f"{path}: the median of {gene!r} must be a positive number; got {median!r}")
    return {str(gene): float(median) for gene, median in table.items()}


def _open(path: Path) -> TextIO:
    return cast(TextIO, gzip.open(path, "rt") if path.suffix == ".gz" else path.open())


def _is_number(text: object) -> bool:
    try:
        float(cast(str, text))
    except (TypeError, ValueError):
        return False
    return True
