"""``scfast run``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from scfast.cli.console import Console, json_option

if TYPE_CHECKING:
    from anndata import AnnData


@click.command("run")
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--model", required=True, help="KIND:FOLDER, such as geneformer:models/V2-104M.")
@click.option(
    "--analysis",
    type=click.Choice(["rollout", "embed"]),
    default="rollout",
    show_default=True,
    help="What to compute.",
)
@click.option("--groupby", help="Column of obs: a ranking of genes for each group.")
@click.option(
    "-o", "--output", "out", type=click.Path(path_type=Path), required=True, help="Folder for the results."
)
@click.option("--readout", help="cls, mean or gene:NAME.  [default: as the model's authors]")
@click.option("--layers", help="prefix, suffix, or FIRST-LAST such as 0-2.  [default: all]")
@click.option("--replicate-key", help="Column of obs (donor, batch): errors are between replicates.")
@click.option(
    "--null/--no-null", "null", default=True, help="Also run the untrained model beside.  [default: yes]"
)
@click.option("--counts-layer", help="Layer that holds the counts.  [default: X]")
@click.option("--device", help="cuda, cuda:N or cpu.  [default: cuda where there is a GPU, else cpu]")
@click.option(
    "--memory", help="What the run may use beyond the data.  [default: 2GB; on a GPU, what is free there]"
)
@click.option("--seed", default=0, show_default=True, help="Of the untrained model.")
@click.option("--dry-run", is_flag=True, help="Check everything, say what would be done, and stop.")
@json_option
def command(
    data: Path,
    model: str,
    analysis: str,
    groupby: str | None,
    out: Path,
    readout: str | None,
    layers: str | None,
    replicate_key: str | None,
    null: bool,
    counts_layer: str | None,
    device: str | None,
    memory: str | None,
    seed: int,
    dry_run: bool,
    as_json: bool | None,
) -> None:
    """Analyse the cells of DATA (.h5ad or .zarr, raw counts, or the word pbmc68k) with a model.

    Writes DATA with the results as h5ad, the tables as CSV and the top genes as PNG. Nothing is truncated to
    fit attention maps into memory, because no map is ever held.

    \b
    Examples:
      scfast run cells.h5ad --model geneformer:Geneformer-V2-104M --groupby cell_type -o results
      scfast run cells.h5ad --model geneformer:my_model --groupby cell_type --replicate-key donor -o results
      scfast run cells.h5ad --model geneformer:my_model --readout gene:TP53 --no-null -o results
      scfast run cells.h5ad --model geneformer:my_model --analysis embed -o results
      scfast run cells.h5ad --model geneformer:my_model --device cuda:1 --memory 20GB -o results
      scfast run cells.h5ad --model geneformer:my_model -o results --dry-run
    """  # noqa: D301
    from scfast import models, tl
    from scfast.cli.data import load
    from scfast.run import DEFAULT_MEMORY, default_device, parse_memory, resolve_device

    console = Console(as_json)
    chosen_layers = parse_layers(layers)
    if memory is not None:
        parse_memory(memory)
    where = default_device() if device is None else resolve_device(device)
    kind, _, folder = model.partition(":")
    if not kind or not folder:
        raise ValueError(f"--model {model} must be KIND:FOLDER, such as geneformer:models/V2-104M")
    adata = load(data)
    for option, column in (("--groupby", groupby), ("--replicate-key", replicate_key)):
        if column is not None and column not in adata.obs:
            raise KeyError(f"{option} {column} is no column of obs; there are {', '.join(adata.obs.columns)}")
    source = models.load(kind, folder).to(where)
    described = {
        "data": f"{data}: {adata.n_obs:,} cells x {adata.n_vars:,} genes",
        "model": f"{source.name}: {source.n_layers} layers, {source.n_heads} heads, up to "
        f"{source.max_tokens} tokens",
        "analysis": _describe(analysis, adata, groupby, readout or source.default_readout, layers, null),
        "device": str(source.device),
        "memory": memory or (DEFAULT_MEMORY if source.device.type == "cpu" else "what is free on the GPU"),
        "output": str(out),
    }
    console.title("Dry run" if dry_run else "Run")
    console.fields(described)
    console.event("start", command="run", dry_run=dry_run, **described)
    if dry_run:
        return
    common: dict[str, Any] = {"counts_layer": counts_layer, "memory": memory, "progress": console.interactive}
    if analysis == "embed":
        tl.embed(adata, source, **common)
    else:
        tl.rollout(
            adata,
            source,
            readout=readout,
            groupby=groupby,
            replicate_key=replicate_key,
            layers=chosen_layers,  # type: ignore[arg-type]
            null="untrained" if null else None,
            seed=seed,
            **common,
        )
    files = _write(adata, analysis, out)
    if analysis == "rollout":
        from scfast.cli.tables import show_top_genes

        show_top_genes(console, adata.uns["rollout"]["table"], adata.uns["rollout"]["groups"])
    console.title("Written")
    console.fields({file.name: str(file) for file in files})
    console.event("done", files=list(map(str, files)))


def parse_layers(text: str | None) -> tuple[int, int] | str | None:
    """The value of ``--layers``.

    Examples
    --------
    >>> parse_layers("prefix"), parse_layers("0-2"), parse_layers(None)
    ('prefix', (0, 2), None)
    """
    if text is None or text in ("prefix", "suffix"):
        return text
    match = re.fullmatch(r"(\d+)-(\d+)", text)
    if match is None:
        raise ValueError(f"--layers {text} must be prefix, suffix, or FIRST-LAST counted from 0, such as 0-2")
    return int(match[1]), int(match[2])


def _describe(
    analysis: str, adata: AnnData, groupby: str | None, readout: str, layers: str | None, null: bool
) -> str:
    if analysis == "embed":
        return "one vector per cell"
    groups = f"{adata.obs[groupby].nunique()} groups of {groupby}" if groupby else "all cells as one group"
    beside = ", beside the untrained model" if null else ""
    return f"rollout of {readout} through {layers or 'all'} layers; {groups}{beside}"


def _write(adata: AnnData, analysis: str, out: Path) -> list[Path]:
    from scfast import io, pl

    files = [io.write_h5ad(adata, out / "cells.h5ad")]
    if analysis == "rollout":
        results = adata.uns["rollout"]
        results["table"].to_csv(out / "genes.csv", index=False, float_format="%.6g")
        results["groups"].to_csv(out / "groups.csv", float_format="%.6g")
        pl.rollout(adata, show=False, save=out / "top_genes.png")
        files += [out / name for name in ("genes.csv", "groups.csv", "top_genes.png")]
    return files
