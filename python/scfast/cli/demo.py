"""``scfast demo``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from scfast.cli.console import Console, dry_run_option, json_option
from scfast.cli.report import attach

if TYPE_CHECKING:
    from scfast.demo import Findings

#: What is written.
FILES = (
    "model", "pbmc68k.h5ad", "genes.csv", "cell_types.csv", "markers.csv", "top_genes.png", "marker_ranks.png",
    "training.png", "about.json", "report.html",
)  # fmt: skip
NEXT_STEPS = """\
  scfast pretrain cells.h5ad -o my_model                  # raw counts in X, or --counts-layer
  scfast run cells.h5ad --model geneformer:my_model --groupby cell_type -o results

  A published checkpoint is used in place:  --model geneformer:FOLDER
  From Python:
    import scfast
    model = scfast.models.load("geneformer", {model!r})
    scfast.tl.rollout(adata, model, groupby="cell_type", null="untrained")
    scfast.pl.rollout(adata)"""


@click.command("demo")
@click.option(
    "-o",
    "--output",
    "out",
    type=click.Path(path_type=Path),
    default=Path("scfast-demo"),
    show_default=True,
    help="Folder for the results.",
)
@click.option("--steps", type=int, help="Train for fewer steps: a rehearsal, not a trained model.")
@click.option("--restart", is_flag=True, help="Train again, also when the folder holds a trained model.")
@dry_run_option
@json_option
def command(out: Path, steps: int | None, restart: bool, dry_run: bool, as_json: bool | None) -> None:
    """Real blood cells, from counts to the genes a transformer attends to, in about two minutes.

    Takes 700 blood cells that come with scanpy, trains a small Geneformer on them, rolls its attention back
    to the input genes of every cell without holding an attention map, and compares with an untrained model.

    \b
    Examples:
      scfast demo
      scfast demo -o somewhere
      scfast demo --dry-run
    """  # noqa: D301
    from scfast import datasets, demo, tl
    from scfast.cli.rehearsed import maybe_rehearsal
    from scfast.tl.pretrain import progress_line

    console = Console(bool(as_json))  # a demonstration is read by people, in a log too
    started = time.perf_counter()
    adata = datasets.pbmc68k()
    if dry_run:
        with maybe_rehearsal(True) as planned:
            tl.pretrain(adata, out / "model", steps=steps, resume=not restart)
        facts = {"cells": adata.n_obs, "genes": adata.n_vars, "cell types": adata.obs["cell_type"].nunique()}
        console.dry_run("demo", {**facts, "steps": planned["steps"]}, [out / name for name in FILES])
        return
    residual = adata.uns["counts"]["max_residual"]
    console.title("1  Cells")
    console.event(
        "cells",
        f"  {adata.n_obs} blood cells x {adata.n_vars} genes, {adata.obs['cell_type'].nunique()} cell types "
        "(10x Genomics, comes with scanpy);\n"
        f"  counts recovered from logged values, at most {residual:.2f} from a whole number",
        cells=adata.n_obs,
        genes=adata.n_vars,
        max_residual=residual,
    )
    console.title("2  A transformer learns to guess hidden genes")
    log = tl.pretrain(
        adata,
        out / "model",
        steps=steps,
        resume=not restart,
        progress=lambda entry: console.training(entry, progress_line(entry)),
    )
    last = log["history"][-1]
    gain, side = log["gain"], "under" if log["gain"] > 0 else "OVER"
    console.event(
        "trained",
        f"  cells never seen: {last['held_out_loss']:.3f} nats per hidden gene, "
        f"{abs(gain):.3f} ± {log['gain_se']:.3f} {side} gene frequencies alone ({log['unigram_loss']:.3f})",
        held_out_loss=last["held_out_loss"],
        unigram_loss=log["unigram_loss"],
        training_seconds=log["seconds"],
    )
    console.title("3  Which genes its cell embedding reads from")
    before = time.perf_counter()
    found = demo.analyse(adata, out / "model", out, log, progress=console.interactive)
    console.event(
        "analysed",
        f"  attention rollout of all cells, trained and untrained, tables and figures: "
        f"{time.perf_counter() - before:.1f} s",
        analysis_seconds=time.perf_counter() - before,
    )
    _show(console, found)
    facts = {"data": f"{adata.n_obs} blood cells (pbmc68k_reduced)", "model": str(out / "model")}
    _, *page = attach(out, console, console.elapsed, facts=facts)
    found.files.update(zip(["report"], page, strict=False))
    console.title("Written")
    console.fields({what: str(file) for what, file in found.files.items()})
    console.title("Your own data")
    if not console.json:
        click.echo(NEXT_STEPS.format(model=str(out / "model")))
        click.echo(f"\n  {time.perf_counter() - started:.0f} s in all")
    files = list(found.files.values())
    console.event("done", files=files, total_seconds=time.perf_counter() - started)


def _show(console: Console, found: Findings) -> None:
    from scfast.cli.tables import show_top_genes

    show_top_genes(
        console, {"table": found.genes, "groups": found.groups}, "Genes with the largest share of attention"
    )
    rows = []
    for (lineage, panel), part in found.markers.groupby(["lineage", "panel"], sort=False):
        trained, untrained = float(part["trained"].sum()), float(part["untrained"].sum())
        better = "yes" if trained < untrained else "no"
        rows.append([lineage, panel, " ".join(part["gene"]), f"{trained:.0f}", f"{untrained:.0f}", better])
        genes = list(part["gene"])
        console.event(
            "markers", None, lineage=lineage, panel=panel, genes=genes, trained=trained, untrained=untrained
        )
    console.title("Sum of the ranks of marker genes (lower is better)")
    console.table(["lineage", "panel", "markers", "trained", "untrained", "better"], rows, left=3)
    console.note(
        "tutorial: the markers that scanpy's plotting tutorial names for these cells; usual: a wider panel."
    )
    console.note(f"Places among {found.adata.n_vars} genes by mean score over the lineage's cells.")
