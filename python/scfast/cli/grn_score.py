"""``scfast grn-score``."""

from __future__ import annotations

from pathlib import Path

import click

from scfast.cli.console import Console, dry_run_option, json_option
from scfast.cli.report import attach, page_option

#: Tables that are written.
TABLES = ("table", "differences", "curves")


@click.command("grn-score")
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "--reference",
    type=click.Path(path_type=Path),
    required=True,
    help="Regulators and targets: CollecTRI, TRRUST, ChIP-Atlas, or two columns.",
)
@click.option(
    "-o", "--output", "out", type=click.Path(path_type=Path), required=True, help="Folder for the results."
)
@click.option("--key", default="grn", show_default=True, help="Networks in DATA, or a matrix in varp.")
@click.option("--gene-symbols", help="Column of var with the names in the reference.")
@click.option(
    "--convention",
    type=click.Choice(["expected", "beeline"]),
    default="expected",
    show_default=True,
    help="Ties by their expected number, or as BEELINE counts them.",
)
@click.option("--null", "n_null", default=100, show_default=True, help="References of the same degrees.")
@page_option
@dry_run_option
@json_option
def command(
    data: Path,
    reference: Path,
    out: Path,
    key: str,
    gene_symbols: str | None,
    convention: str,
    n_null: int,
    page: bool,
    dry_run: bool,
    as_json: bool | None,
) -> None:
    """Judge gene networks by known targets, beside what any network must beat.

    Ratios over chance (1: the network knows nothing) of the area under precision-recall and of early precision; the
    same for co-expression, for detection rates, and for references in which every gene keeps its number of edges. DATA
    is the cells.h5ad that "scfast grn" wrote; with its --keep-blocks, intervals are over cells, else over regulators.

    \b
    Examples:
      scfast grn-score networks/cells.h5ad --reference collectri.csv.gz --gene-symbols symbol -o score
      scfast grn-score networks/cells.h5ad --reference trrust_rawdata.human.tsv -o score
      scfast grn-score networks/cells.h5ad --reference collectri.csv.gz -o score --dry-run
      scfast grn-score cells.h5ad --key genie3 --reference STAT1.5.tsv --convention beeline -o score
    """  # noqa: D301
    from scfast import io, pl, tl

    console = Console(as_json)
    adata = io.read(data)
    facts = {"data": f"{data}: {adata.n_obs:,} cells x {adata.n_vars:,} genes", "reference": str(reference)}
    if dry_run:
        if key not in adata.varp:
            there = ", ".join(adata.varp) or "nothing"
            raise KeyError(f"--key {key} is no network: varp holds {there}; run scfast grn first")
        names = ("cells.h5ad", *(f"grn_score_{name}.csv" for name in TABLES), "grn_score.png")
        edges = {
            "edges of the reference": len(io.read_network(reference)),
            "references of the same degrees": n_null,
        }
        console.dry_run("grn-score", facts | edges, [out / name for name in names])
        return
    tl.grn_score(adata, reference, key=key, gene_symbols=gene_symbols, convention=convention, n_null=n_null)  # type: ignore[arg-type]
    results = adata.uns["grn_score"]
    files = [io.write_h5ad(adata, out / "cells.h5ad")]
    for name in TABLES:
        files.append(out / f"grn_score_{name}.csv")
        results[name].to_csv(files[-1], index=False, float_format="%.6g")
    files.append(out / "grn_score.png")
    pl.grn_score(adata, show=False, save=files[-1])
    files += attach(out, console, console.elapsed, facts=facts, page=page)

    params = results["params"]
    console.title("Reference")
    facts = {
        "regulators": f"{params['regulators']:,} of the reference are among the networks' genes",
        "edges": f"{params['edges']:,} of {params['pairs']:,} pairs ({params['density']:.2%})",
        "intervals": f"95 %, over {params['blocks']} blocks of {params['intervals']}",
    }
    console.fields(facts)
    console.title("Ratios over chance")
    rows = [
        [
            row.network, row.score, f"{row.auprc_ratio:.2f} [{row.auprc_ratio_low:.2f}, {row.auprc_ratio_high:.2f}]",
            f"{row.epr:.2f} [{row.epr_low:.2f}, {row.epr_high:.2f}]", f"{row.null_epr:.2f}",
        ]
        for row in results["table"].itertuples()
    ]  # fmt: skip
    console.table(["network", "score", "AUPRC", "early precision", "same degrees"], rows)
    for sentence in results["verdict"]:
        console.note(str(sentence))
    console.title("Written")
    console.fields({file.name: str(file) for file in files})
    console.event("done", files=files, verdict=list(map(str, results["verdict"])))
