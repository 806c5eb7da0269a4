"""Output for a person on a terminal or in a log, or for a program as JSON lines."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
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
            seconds = round(self.elapsed, 3)
            click.echo(json.dumps({"event": name, "seconds": seconds, **fields}, default=str))
        elif text is not None:
            click.echo(text)

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


def json_option(function: Any) -> Any:
    """The option ``--json / --text``."""
    return click.option(
        "--json/--text", "as_json", default=None, help="JSON lines or text. [default: text on a terminal]"
    )(function)
