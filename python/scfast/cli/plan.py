"""``scfast plan``."""

from __future__ import annotations

from typing import Any

import click

from scfast.cli.console import Console, json_option
from scfast.cli.planned import show_plan
from scfast.cli.report import page_option
from scfast.cli.request import Request, request_options


@click.command("plan")
@request_options
@page_option
@click.option(
    "--seconds",
    type=click.FloatRange(0),
    default=20.0,
    show_default=True,
    help="To time pieces of each different run; 0: none.",
)
@json_option
def command(page: bool, seconds: float, as_json: bool | None, **options: Any) -> None:
    """How long scfast run would take with these options, and in which memory.

    Takes the options of scfast run, and writes nothing. Every cell is read and tokenised, because batches
    follow from the lengths of cells; then a few pieces of the run are timed, small ones first. What -o holds
    of an unfinished run is not counted again.

    \b
    Examples:
      scfast plan cells.h5ad --model geneformer:Geneformer-V2-104M --groupby cell_type -o results
      scfast plan atlas.h5ad --stream --model geneformer:my_model --memory 8GB -o results
      scfast plan atlas.h5ad --model geneformer:my_model --workers 4 -o results --seconds 60 --json
    """  # noqa: D301
    console = Console(as_json)
    request = Request.from_options(options)
    console.title("Plan")
    console.fields(request.described)
    console.event("start", command="plan", **request.described)
    planned = request.keeping.plan(lambda: request.compute(False), seconds)
    show_plan(console, planned, request.keeping.processes)
