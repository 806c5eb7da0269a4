"""``scfast enrich``."""

from __future__ import annotations

from pathlib import Path

import click

from scfast.cli.console import Console, dry_run_option, json_option
from scfast.cli.data import scored_groups
from scfast.cli.parsing import parse_names
from scfast.cli.report import attach, page_option

#: Sets printed per group.
SHOWN = 3
#: Tables that are written, and whether with their index.
TABLES = (("table", False), ("top_genes", False), ("groups", True))


@click.command("enrich")
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--gene-sets", type=click.Path(path_type=Path), required=True, help="GMT file.")
@click.option(
    "-o", "--output", "out", type=click.Path(path_type=Path), required=True, help="Folder for the results."
)
@click.option(
    "--key", default="rollout", show_default=True, help="Scores in DATA: the analysis that was run."
)
@click.option("--groupby", help="Column of obs.  [default: as the scores were computed]")
@click.option("--top", default=100, show_default=True, help="Genes of each group.")
@click.option(
    "--min-detection",
    default=0.1,
    show_default=True,
    help="Least share of the group's cells that have a gene.",
)
@click.option(
    "--universe",
    help="Genes to compare with, as A,B,C or a file of names.  [default: those detected in the group]",
)
@click.option("--gene-symbols", help="Column of var with the names in the gene sets.")
@page_option
@dry_run_option
@json_option
def command(
    data: Path,
    gene_sets: Path,
    out: Path,
    key: str,
    groupby: str | None,
    top: int,
    min_detection: float,
    universe: str | None,
    gene_symbols: str | None,
    page: bool,
    dry_run: bool,
    as_json: bool | None,
) -> None:
    """Compare the genes that a model attends to most with gene sets, group by group.

    DATA is the cells.h5ad that "scfast run" wrote. Writes it with the results, tables as CSV and a figure as PNG.

    \b
    Examples:
      scfast enrich results/cells.h5ad --gene-sets hallmark.gmt --gene-symbols symbol -o enrichment
      scfast enrich results/cells.h5ad --gene-sets hallmark.gmt --key received --top 200 -o enrichment
      scfast enrich results/cells.h5ad --gene-sets hallmark.gmt -o enrichment --dry-run
      scfast enrich results/cells.h5ad --gene-sets my_sets.gmt --universe all_genes.txt -o enrichment
    """  # noqa: D301
    from scfast import io, pl, tl

    console = Console(as_json)
    adata = io.read(data)
    facts = {"data": f"{data}: {adata.n_obs:,} cells x {adata.n_vars:,} genes", "gene sets": str(gene_sets)}
    if dry_run:
        groups = scored_groups(adata, key, groupby)
        planned = [
            out / name for name in ("cells.h5ad", *(f"enrich_{name}.csv" for name, _ in TABLES), "enrich.png")
        ]
        console.dry_run("enrich", {**facts, "sets": len(io.read_gmt(gene_sets)), "groups": groups}, planned)
        return
    tl.enrich(
        adata, gene_sets, key=key, groupby=groupby, top=top, min_detection=min_detection,
        universe=parse_names(universe), gene_symbols=gene_symbols,
    )  # fmt: skip
    results = adata.uns["enrich"]
    files = [io.write_h5ad(adata, out / "cells.h5ad")]
    for name, index in TABLES:
        files.append(out / f"enrich_{name}.csv")
        results[name].to_csv(files[-1], index=index, float_format="%.6g")
    files.append(out / "enrich.png")
    pl.enrich(adata, show=False, save=files[-1])
    files += attach(out, console, console.elapsed, facts=facts, page=page)

    rows = []
    for name, part in results["table"].groupby("group", observed=True, sort=False):
        for row in part.head(SHOWN).itertuples():
            rows.append(
                [
                    name,
                    row.gene_set,
                    f"{row.overlap}/{row.set_size}",
                    f"{row.p_value:.2g}",
                    f"{row.q_value:.2g}",
                ]
            )
            console.event(
                "set", None, group=str(name), gene_set=str(row.gene_set), overlap=int(row.overlap),
                set_size=int(row.set_size), p_value=float(row.p_value), q_value=float(row.q_value),
            )  # fmt: skip
    console.title(f"Gene sets among the top {top} genes")
    console.table(["group", "gene set", "overlap", "p", "q"], rows, left=2)
    console.title("Written")
    console.fields({file.name: str(file) for file in files})
    console.event("done", files=list(map(str, files)))
