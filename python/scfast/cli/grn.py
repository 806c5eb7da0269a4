"""``scfast grn``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from scfast.cli.console import Console, dry_run_option, json_option
from scfast.cli.parsing import parse_model, parse_names
from scfast.cli.report import attach, page_option

if TYPE_CHECKING:
    from anndata import AnnData

#: Edges printed.
SHOWN = 10


@click.command("grn")
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--model", required=True, metavar="KIND:FOLDER", help='Such as "bioformers:my_model".')
@click.option(
    "-o", "--output", "out", type=click.Path(path_type=Path), required=True, help="Folder for the results."
)
@click.option("--groupby", help="Column of obs: a network of each group beside that of all cells.")
@click.option("--compare", metavar="A,B", help="Two of these groups: B less A, edge by edge, with intervals.")
@click.option("--genes", help="Genes of the network, as A,B,C or a file of names.  [default: all]")
@click.option("--sources", help="Genes that are read from, such as regulators, likewise.  [default: all]")
@click.option("--gene-symbols", help="Column of var with these names.")
@click.option("--layers", metavar="N,N", help="Layers, from 0.  [default: all]")
@click.option(
    "--convention",
    type=click.Choice(["mean", "qk-mean", "rank"]),
    default="mean",
    show_default=True,
    help="Mean attention; attention of mean queries and keys (scPRINT); ranks (scGPT's tutorial).",
)
@click.option(
    "--min-cells", default=10, show_default=True, help="Cells that must hold both genes of an edge."
)
@click.option("--top", type=int, help="Keep so many edges of every source.  [default: all]")
@click.option(
    "--replicate-key", help="Column of obs (donor): errors between replicates, not blocks of cells."
)
@click.option(
    "--keep-blocks", is_flag=True, help="Keep sums of every block: grn-score then gives intervals over cells."
)
@click.option("--memory", help="What the run may use, such as 2GB.")
@page_option
@dry_run_option
@json_option
def command(
    data: Path,
    model: str,
    out: Path,
    groupby: str | None,
    compare: str | None,
    genes: str | None,
    sources: str | None,
    gene_symbols: str | None,
    layers: str | None,
    convention: str,
    min_cells: int,
    top: int | None,
    replicate_key: str | None,
    keep_blocks: bool,
    memory: str | None,
    page: bool,
    dry_run: bool,
    as_json: bool | None,
) -> None:
    """Mean attention between genes, exactly: which gene reads from which, in every group of cells.

    Writes cells.h5ad with the networks in varp, tables as CSV, the network of all cells (and the change) as GraphML,
    and a figure. A network is a claim: "scfast grn-score" says what it is worth.

    \b
    Examples:
      scfast grn cells.h5ad --model bioformers:my_model -o networks
      scfast grn cells.h5ad --model geneformer:v2 --groupby cell_type --sources factors.txt --keep-blocks -o networks
      scfast grn cells.h5ad --model bioformers:my_model -o networks --dry-run
      scfast grn cells.h5ad --model bioformers:my_model --groupby condition --compare ctrl,stim -o networks
    """  # noqa: D301
    from scfast import io, pl, tl

    console = Console(as_json)
    pair = None if compare is None else tuple(name.strip() for name in compare.split(","))
    if pair is not None and len(pair) != 2:
        raise click.BadParameter(
            f"{compare!r} names {len(pair)} groups; two are compared: A,B", param_hint="--compare"
        )
    try:
        chosen = None if layers is None else [int(number) for number in layers.split(",")]
    except ValueError:
        raise click.BadParameter(f"{layers!r} are no numbers, such as 0,1", param_hint="--layers") from None
    adata = io.read(data)
    facts = {"data": f"{data}: {adata.n_obs:,} cells x {adata.n_vars:,} genes", "model": model}
    if dry_run:
        _plan(console, adata, facts, model, groupby, parse_names(genes), pair, out)
        return
    tl.grn(
        adata, model, groupby=groupby, compare=pair, genes=parse_names(genes), sources=parse_names(sources),  # type: ignore[arg-type]
        gene_symbols=gene_symbols, layers=chosen, convention=convention, min_cells=min_cells, top=top,  # type: ignore[arg-type]
        replicate_key=replicate_key, keep_blocks=keep_blocks, memory=memory, progress=console.interactive,
    )  # fmt: skip
    results = adata.uns["grn"]
    files = [io.write_h5ad(adata, out / "cells.h5ad")]
    for name in ("networks", "strength", "changes"):
        if name in results:
            files.append(out / f"grn_{name}.csv")
            results[name].to_csv(files[-1], index=name == "networks", float_format="%.6g")
    shown = "change" if pair else "all"
    for place in ("grn", *(["grn_change"] if pair else [])):
        files.append(
            io.write_network(adata, out / f"{place}.graphml", network=place, gene_symbols=gene_symbols)
        )
    files.append(out / "grn.png")
    pl.grn(adata, network=shown, gene_symbols=gene_symbols, show=False, save=files[-1])
    files += attach(out, console, console.elapsed, facts=facts, page=page)

    edges = results["networks"].reset_index()
    console.title("Networks")
    console.table(["network", "cells", "edges"], edges[["network", "cells", "edges"]].to_numpy().tolist())
    if pair:
        console.title(f"Largest changes, {pair[1]} less {pair[0]}")
        console.table(
            ["from", "to", "change", "95 %", "q"],
            [
                [x.source, x.target, f"{x.change:+.4g}", f"{x.low:+.4g} to {x.high:+.4g}", f"{x.q_value:.2g}"]
                for x in results["changes"].head(SHOWN).itertuples()
            ],
        )
    console.note(str(results["params"]["model_verdict"]))
    console.title("Written")
    console.fields({file.name: str(file) for file in files})
    console.event("done", files=files, verdict=results["params"]["model_verdict"])


def _plan(
    console: Console,
    adata: AnnData,
    facts: dict[str, str],
    model: str,
    groupby: str | None,
    genes: list[str] | None,
    compared: tuple[str, ...] | None,
    out: Path,
) -> None:
    """What would be computed and written; the model is loaded, and groups are looked up."""
    from scfast import models

    source = models.load(*parse_model("--model", model))
    if groupby is not None and groupby not in adata.obs:
        raise KeyError(f"--groupby {groupby} is no column of obs; there are {', '.join(adata.obs.columns)}")
    if missing := set(compared or ()) - set(adata.obs[groupby].astype(str) if groupby else ()):
        raise ValueError(
            f"--compare names {', '.join(sorted(missing))}, which is no group of --groupby {groupby}"
        )
    changes = ["grn_changes.csv", "grn_change.graphml"] if compared else []
    names = ["cells.h5ad", "grn_networks.csv", "grn_strength.csv", "grn.graphml", *changes, "grn.png"]
    what = {
        "layers": source.n_layers,
        "heads": source.n_heads,
        "genes": f"{len(genes):,} named"
        if genes
        else source.gene_report(adata.var) or "as the tokeniser says",
        "networks": 1 + (int(adata.obs[groupby].nunique()) if groupby else 0),
        "compared": None if compared is None else " and ".join(compared),
    }
    console.dry_run("grn", {**facts, **what}, [out / name for name in names])
