"""``scfast convert``."""

from __future__ import annotations

from pathlib import Path

import click

from scfast.cli.console import Console, json_option


@click.command("convert")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@json_option
def command(source: Path, target: Path, as_json: bool | None) -> None:
    """Write SOURCE (.h5ad or .zarr) as TARGET (.zarr), sharded, its counts stored cell by cell.

    Counts stored gene by gene (CSC) or as a full matrix cannot be read a few cells at a time, which
    scfast run --stream does. The order of the cells stays. SOURCE is read into memory.

    \b
    Examples:
      scfast convert atlas.h5ad atlas.zarr
      scfast run atlas.zarr --stream --model geneformer:my_model -o results
    """  # noqa: D301
    from scfast import io

    console = Console(as_json)
    io.convert(source, target)
    console.event("done", f"{target} is written", target=str(target))
