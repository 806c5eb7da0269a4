"""``scfast doctor``."""

from __future__ import annotations

import click

from scfast.cli.console import Console, json_option


@click.command("doctor")
@json_option
def command(as_json: bool | None) -> None:
    """What this machine has, which instruction set and backend each op takes, and why not the others.

    Put its output into bug reports.

    \b
    Examples:
      scfast doctor
      scfast doctor --json | jq .
    """  # noqa: D301
    from scfast import doctor

    report = doctor.examine()
    console = Console(bool(as_json))  # a report is for reading, also when it is piped into a file
    console.event("doctor", None, **report)
    for title, entries in report.items():
        console.title(title)
        console.fields({name: _text(value) for name, value in entries.items()})


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return "not installed" if value is None else str(value)
