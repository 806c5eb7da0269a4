"""How results came about: the command, versions, machine, and what went wrong; ``about.json`` beside the results."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

#: The file, in the folder of the results. They themselves hold no times, so that the same run gives the same bytes.
ABOUT = "about.json"
#: Packages whose versions results depend on.
PACKAGES = ("scfast", "torch", "numpy", "scipy", "anndata", "pandas")


def record(
    folder: Path,
    command: Sequence[str],
    seconds: float,
    *,
    facts: Mapping[str, str] | None = None,
    warnings: Sequence[str] = (),
) -> Path:
    """Write how the results of ``folder`` came about.

    Parameters
    ----------
    folder
        Of the results.
    command
        Words of the command line, after ``scfast``.
    seconds
        That it took.
    facts
        What was run on what, by name.
    warnings
        What the reader must know, such as cells that could not be run.

    Returns
    -------
    pathlib.Path
        The file, ``about.json``.

    Examples
    --------
    >>> import tempfile
    >>> path = record(Path(tempfile.mkdtemp()), ["run", "cells.h5ad"], 12.34)
    >>> about = read(path.parent)
    >>> about["command"], about["seconds"]
    ('scfast run cells.h5ad', 12.3)
    """
    about = {
        "command": shlex.join(["scfast", *command]),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "facts": dict(facts or {}),
        "warnings": list(warnings),
        "versions": versions(),
    }
    path = folder / ABOUT
    path.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return path


def when(time: str) -> str:
    """A time as a person reads it; what is none stays as it is.

    Examples
    --------
    >>> when("2026-11-22T07:48:30+00:00"), when("yesterday")
    ('2026-11-22 07:48 UTC', 'yesterday')
    """
    try:
        return f"{datetime.fromisoformat(time).astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return time


def versions() -> dict[str, str]:
    """Python, the system, and the packages."""
    found = {"python": platform.python_version(), "system": platform.platform(terse=True)}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def read(folder: Path) -> dict[str, Any]:
    """What :func:`record` wrote; nothing where there is no such file.

    Raises
    ------
    ValueError
        When the file is not what :func:`record` writes.
    """
    path = folder / ABOUT
    if not path.is_file():
        return {}
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no JSON ({error}): remove it, and the report says less") from None
    kinds: dict[str, type | tuple[type, ...]] = {
        "command": str,
        "finished": str,
        "seconds": (int, float),
        "facts": dict,
        "warnings": list,
        "versions": dict,
    }
    wrong = [
        name
        for name, kind in kinds.items()
        if not isinstance(about, dict) or not isinstance(about.get(name), kind)
    ]
    if wrong:
        raise ValueError(f"{path} lacks {', '.join(wrong)}: remove it, and the report says less")
    return about
