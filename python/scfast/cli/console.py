"""Output for a person on a terminal or in a log, or for a program as JSON lines."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click


class Console:
    """Says what is done. Text goes to people, one JSON object per event to programs (both on stdout).

    Parameters
    ----------
    as_json
        True: JSON lines. None: JSON lines unless stdout is a terminal.
    """

    def __init__(self, as_json: bool | None = None):
        self.json = (not sys.stdout.isatty()) if as_json is None else as_json
        self.started = time.perf_counter()

    @property
    def interactive(self) -> bool:
        """Whether progress bars make sense."""
        return not self.json and sys.stderr.isatty()

    @property
    def elapsed(self) -> float:
        """Seconds since the command began."""
        return time.perf_counter() - self.started

    def event(self, name: str, text: str | None = None, **fields: Any) -> None:
        """One step: ``text`` for people (nothing when None), the fields for programs."""
        if self.json:
            click.echo(json.dumps(plain({"event": name, "seconds": round(self.elapsed, 3), **fields})))
        elif text is not None:
            click.echo(text)

    def training(self, entry: Mapping[str, Any], line: str) -> None:
        """An entry of a training log: its ``line``, how fast it goes, and the time left where its end is known."""
        told, left = "", None
        if (steps := entry.get("step", 0)) and entry.get("seconds"):
            rate = steps / entry["seconds"]
            told = f"   {rate:.3g} steps/s"
            if entry.get("steps"):
                left = (entry["steps"] - steps) / rate
                told += f", {left / 60:.0f} min left" if left >= 100 else f", {left:.0f} s left"
        self.event("progress", f"  {line}{told}", training=entry, seconds_left=left)

    def dry_run(self, command: str, facts: Mapping[str, Any], files: Sequence[Path]) -> None:
        """What ``command`` would do and write; None among the facts is left out."""
        told = {name: value for name, value in facts.items() if value is not None}
        self.title("Dry run")
        self.fields({name: f"{value:,}" if isinstance(value, int) else value for name, value in told.items()})
        self.title("Would be written")
        self.fields({file.name: str(file) for file in files})
        self.event("plan", command=command, dry_run=True, **told, files=files)

    def title(self, text: str) -> None:
        """A heading."""
        if not self.json:
            click.echo("\n" + click.style(text, bold=True, fg="cyan"))

    def note(self, text: str) -> None:
        """A remark."""
        if not self.json:
            click.echo(click.style(f"  {text}", dim=True))

    def fields(self, pairs: dict[str, Any]) -> None:
        """Names and values, aligned."""
        if not self.json:
            width = max(map(len, pairs), default=0)
            for name, value in pairs.items():
                click.echo(f"  {click.style(name.ljust(width), dim=True)}  {value}")

    def table(self, header: Sequence[str], rows: Sequence[Sequence[Any]], *, left: int = 1) -> None:
        """Columns, aligned: the first ``left`` to the left, the others to the right."""
        if self.json:
            return
        cells = [[str(value) for value in row] for row in rows]
        widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]

        def line(row: Sequence[str]) -> str:
            padded = (
                x.ljust(w) if i < left else x.rjust(w)
                for i, (x, w) in enumerate(zip(row, widths, strict=True))
            )
            return "  " + "  ".join(padded).rstrip()

        click.echo(click.style(line(header), bold=True))
        for row in cells:
            click.echo(line(row))


def plain(value: Any) -> Any:
    """A value as JSON has it: what is not finite is null, numbers of numpy are numbers, anything else its text.

    Examples
    --------
    >>> import numpy as np
    >>> plain({"cells": np.int64(3), "p": float("nan"), "file": Path("a.csv")})
    {'cells': 3, 'p': None, 'file': 'a.csv'}
    """
    if isinstance(value, Mapping):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(part) for part in value]
    if hasattr(value, "tolist"):  # arrays and numbers of numpy
        return plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def dry_run_option(function: Any) -> Any:
    """The flag ``--dry-run``."""
    return click.option(
        "--dry-run", is_flag=True, help="Check everything, say what would be done and written, and stop."
    )(function)


def json_option(function: Any) -> Any:
    """The option ``--json / --text``."""
    return click.option(
        "--json/--text", "as_json", default=None, help="JSON lines or text. [default: text on a terminal]"
    )(function)
