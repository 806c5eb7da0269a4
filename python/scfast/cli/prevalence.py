"""``scfast prevalence``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from scfast.cli.console import Console, dry_run_option, json_option
from scfast.cli.data import scored_groups
from scfast.cli.report import attach, page_option

#: Clusters printed per model and group.
SHOWN = 3
#: Tables that are written.
TABLES = ("table", "groups")


@click.command("prevalence")
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "--clusters",
    type=click.Path(path_type=Path),
    required=True,
    help="Table of genes and clusters, CSV or TSV.",
)
@click.option("--column", help="Its column with the clusters.  [default: the second of two]")
@click.option(
    "-o", "--output", "out", type=click.Path(path_type=Path), required=True, help="Folder for the results."
)
@click.option(
    "--key", "keys", multiple=True, default=["rollout"], show_default=True,
    help="Scores in DATA: the analysis that was run; once for each model.",
)  # fmt: skip
@click.option("--groupby", help="Column of obs.  [default: as the scores were computed]")
@click.option("--replicate-key", help="Column of obs (donor, batch): intervals are between replicates.")
@click.option("--gene-symbols", help="Column of var with the names in the table of clusters.")
@click.option("--n-bootstrap", default=1000, show_default=True, help="Samples for the intervals.")
@click.option("--n-permutations", default=1000, show_default=True, help="Permutations for the null.")
@click.option("--seed", default=0, show_default=True, help="Of both.")
@page_option
@dry_run_option
@json_option
def command(
    data: Path,
    clusters: Path,
    column: str | None,
    out: Path,
    keys: tuple[str, ...],
    page: bool,
    dry_run: bool,
    as_json: bool | None,
    **options: Any,
) -> None:
    """Compare gene programs' share of attention with their share of the cell, by cell type.

    DATA is the cells.h5ad that "scfast run" wrote. Writes it with the results, tables as CSV and a figure as PNG.

    \b
    Examples:
      scfast prevalence results/cells.h5ad --clusters proteinatlas.tsv --column "Tissue expression cluster" -o shares
      scfast prevalence results/cells.h5ad --clusters programs.csv --gene-symbols symbol -o shares
      scfast prevalence results/cells.h5ad --clusters programs.csv -o shares --dry-run
      scfast prevalence results/cells.h5ad --clusters programs.csv --key v1 --key v2 --replicate-key donor -o shares
    """  # noqa: D301
    from scfast import io, pl, tl

    console = Console(as_json)
    adata = io.read(data)
    programs = io.read_clusters(clusters, column)
    facts = {"data": f"{data}: {adata.n_obs:,} cells x {adata.n_vars:,} genes", "clusters": str(clusters)}
    if dry_run:
        groups = max(scored_groups(adata, key, options["groupby"]) for key in keys)
        planned = [
            out / name for name in ("cells.h5ad", *(f"prevalence_{x}.csv" for x in TABLES), "prevalence.png")
        ]
        found = {"genes in clusters": len(programs), "scores": ", ".join(keys), "groups": groups}
        console.dry_run("prevalence", facts | found, planned)
        return
    tl.prevalence(adata, programs, keys=list(keys), **options)
    results = adata.uns["prevalence"]
    files = [io.write_h5ad(adata, out / "cells.h5ad")]
    for name in TABLES:
        files.append(out / f"prevalence_{name}.csv")
        results[name].to_csv(files[-1], index=False, float_format="%.6g")
    files.append(out / "prevalence.png")
    pl.prevalence(adata, show=False, save=files[-1])
    files += attach(out, console, console.elapsed, facts=facts, page=page)

    rows = []
    for (model, group), part in results["table"].groupby(["model", "group"], observed=True, sort=False):
        for row in part.sort_values("q_value", kind="stable").head(SHOWN).itertuples():
            shares = [f"{100 * value:+.2f}" for value in (row.difference, row.low, row.high)]
            rows.append(
                [model, group, row.cluster, shares[0], f"{shares[1]} to {shares[2]}", f"{row.q_value:.2g}"]
            )
            console.event(
                "cluster", None, model=str(model), group=str(group), cluster=str(row.cluster),
                difference=float(row.difference), low=float(row.low), high=float(row.high), q_value=float(row.q_value),
            )  # fmt: skip
    console.title("Share of attention less share of genes, percentage points")
    console.table(["model", "group", "cluster", "difference", "interval", "q"], rows, left=3)
    console.title("Written")
    console.fields({file.name: str(file) for file in files})
    console.event("done", files=list(map(str, files)))
