"""Gene vocabularies and medians given as text, JSON or CSV."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

from scfast.models.text_files import read_json, read_rows, read_text, shown


def read_vocabulary(path: str | Path) -> list[str]:
    """Gene ids in order, from a text file (one a line), a JSON list, or a JSON object gene -> token id.

    Names in angle brackets, such as ``<pad>``, are special tokens and are left out.

    Parameters
    ----------
    path
        The file; JSON by its name, ``.json``.

    Returns
    -------
    list of str
        Gene ids, in the order of the file, or of the token ids.

    Raises
    ------
    ValueError
        If the file holds no gene, or one twice, or something else than genes.

    Examples
    --------
    >>> import json, tempfile, pathlib, scfast
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "genes.json"
    >>> _ = path.write_text(json.dumps({"<pad>": 0, "<mask>": 1, "CD3D": 3, "LYZ": 2}))
    >>> scfast.io.read_vocabulary(path)
    ['LYZ', 'CD3D']
    """
    path = Path(path)
    names = _names(path, read_json(path)) if _is_json(path) else read_text(path).split("\n")
    genes = [name for name in map(str.strip, names) if name and not name.startswith("<")]
    if not genes:
        raise ValueError(f"{path} holds no gene ids: give one a line, or a JSON list or object")
    if len(set(genes)) < len(genes):
        twice = next(gene for gene, n in Counter(genes).items() if n > 1)
        raise ValueError(f"{path} holds the gene {twice!r} more than once")
    return genes


def _names(path: Path, held: Any) -> list[str]:
    """Names of a JSON list, or of an object in the order of their numbers."""
    if isinstance(held, dict):
        wrong = next((key for key, n in held.items() if isinstance(n, bool) or not isinstance(n, int)), None)
        if wrong is not None:
            raise ValueError(
                f"{path}: the token id of {wrong!r} must be a whole number, got {shown(held[wrong])}"
            )
        return sorted(held, key=held.__getitem__)
    if not isinstance(held, list) or not all(isinstance(name, str) for name in held):
        raise ValueError(
            f"{path} must hold a list of gene ids, or an object gene -> token id; it holds {shown(held)}"
        )
    return held


def read_medians(path: str | Path) -> dict[str, float]:
    r"""Non-zero medians by gene, from a JSON object or a two-column CSV (gene, median; a header is skipped).

    Parameters
    ----------
    path
        The file; JSON by its name, ``.json``.

    Returns
    -------
    dict
        Gene -> median of its counts above 0, per ten thousand, positive.

    Raises
    ------
    ValueError
        If a median is not a positive number, or the file is no table of them.

    Examples
    --------
    >>> import tempfile, pathlib, scfast
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "medians.csv"
    >>> _ = path.write_text("gene,median\nCD3D,2.5\nLYZ,4\n")
    >>> scfast.io.read_medians(path)
    {'CD3D': 2.5, 'LYZ': 4.0}
    """
    path = Path(path)
    if _is_json(path):
        table = read_json(path)
        if not isinstance(table, dict):
            raise ValueError(f"{path} must hold an object gene -> median; it holds {shown(table)}")
    else:
        rows = [row for row in read_rows(path) if len(row) >= 2]
        if rows and _number(rows[0][1]) is None:
            rows = rows[1:]
        table = {row[0]: row[1] for row in rows}
    if not table:
        raise ValueError(f"{path} holds no medians: give gene and median in each line, or a JSON object")
    medians = {gene: _number(median) for gene, median in table.items()}
    for gene, median in medians.items():
        if median is None or not 0 < median < math.inf:
            raise ValueError(
                f"{path}: the median of {gene!r} must be a positive number; got {shown(table[gene])}"
            )
    return medians  # type: ignore[return-value]


def _is_json(path: Path) -> bool:
    return path.name.removesuffix(".gz").endswith(".json")


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None
