"""``scfast convert``."""

from __future__ import annotations

from pathlib import Path

import click

from scfast.cli.console import Console, dry_run_option, json_option


@click.command("convert")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
@dry_run_option
@json_option
def command(source: Path, target: Path, dry_run: bool, as_json: bool | None) -> None:
    """Write SOURCE (.h5ad or .zarr) as TARGET (.zarr), sharded, its counts stored cell by cell.

    Counts stored gene by gene (CSC) or as a full matrix cannot be read a few cells at a time, which
    scfast run --stream does. The order of the cells stays. SOURCE is read into memory.

    \b
    Examples:
      scfast convert atlas.h5ad atlas.zarr
      scfast convert atlas.h5ad atlas.zarr --dry-run
      scfast run atlas.zarr --stream --model geneformer:my_model -o results
    """  # noqa: D301
    from scfast import io
    from scfast.io.stored import check_target

    console = Console(as_json)
    if dry_run:
        if not source.exists():
            raise FileNotFoundError(f"no file or folder {source}")
        check_target(target)
        size = source.stat().st_size if source.is_file() else sum(f.stat().st_size for f in source.rglob("*"))
        console.dry_run("convert", {"source": str(source), "bytes": size}, [target])
        return
    io.convert(source, target)
    console.event("done", f"{target} is written", files=[target])
