"""``scfast status``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from scfast.cli.console import Console, json_option
from scfast.cli.keeping import FOLDER


def _describe(plan: dict[str, Any]) -> str:
    """The plan that the run began with."""
    memory = f", within {plan['memory'] / 1e9:.3g} GB" if isinstance(plan["memory"], int) else ""
    blocks = f", in blocks of {plan['block_tokens']}" if plan["block_tokens"] else ""
    where = (
        plan["device"] if plan["device"] != "cpu" else f"{plan['instruction_set']}, {plan['threads']} threads"
    )
    batches = f"{plan['batches']} batches of up to {plan['token_budget']} tokens"
    return f"plan {str(plan['plan'])[:12]}: {batches}{blocks}{memory}; {plan['dtype']} on {where}"


@click.command("status")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--verify", is_flag=True, help="Read every finished shard and compare its checksum.")
@json_option
def command(folder: Path, verify: bool, as_json: bool | None) -> None:
    """How far an unfinished run has come: FOLDER is what was given to scfast run as -o.

    The run goes on when its command is given again; nobody needs to be asked.

    \b
    Examples:
      scfast status results
      scfast status results --verify --json
    """  # noqa: D301
    from scfast.run.ledger import standing

    console = Console(as_json)
    where = folder / FOLDER if (folder / FOLDER).is_dir() else folder
    runs = standing(where, verify=verify)
    if not runs:
        raise FileNotFoundError(
            f"{folder} holds no unfinished run: one that ended well leaves only its results"
        )
    console.title("Unfinished run")
    console.table(
        ("run", "model", "finished", "of shards", "cells", "failed attempts", "damaged"),
        [
            (
                run.name,
                run.model,
                run.n_finished,
                run.n_shards,
                f"{run.cells:,}",
                run.failed,
                len(run.damaged),
            )
            for run in runs
        ],
        left=2,
    )
    for run in runs:
        console.note(f"{run.name}: {_describe(run.plan)}")
        if run.revised:
            shards = ", ".join(map(str, run.revised))
            console.note(
                f"{run.name}: memory ran out in shards {shards}, which are run in smaller batches since"
            )
        for shard, reason in run.reasons.items():
            console.note(f"{run.name}, shard {shard}: {reason}")
        for path in run.damaged:
            console.note(f"{run.name}: {path} is damaged; it is run again")
        if stages := run.times.describe():
            console.note(f"{run.name}: {stages}")
        console.event("run", run=run.as_dict())
