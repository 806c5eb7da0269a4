"""``scfast pretrain``."""

from __future__ import annotations

from pathlib import Path

import click

from scfast.cli.console import Console, dry_run_option, json_option


@click.command("pretrain")
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", "folder", type=click.Path(path_type=Path), required=True, help="Folder of the model."
)
@click.option(
    "--preset",
    default="tiny",
    show_default=True,
    help="Size: tiny (a minute and a half on two cores), small, v1-10m (Geneformer's).",
)
@click.option(
    "--vocabulary",
    type=click.Path(path_type=Path),
    help="Gene ids: text, JSON, or a token dictionary as JSON.",
)
@click.option("--medians", type=click.Path(path_type=Path), help="Non-zero medians by gene: CSV or JSON.")
@click.option("--gene-ids", help="Column of var with the gene ids.  [default: the index]")
@click.option("--counts-layer", help="Layer that holds the counts.  [default: X]")
@click.option("--mask", default=0.15, show_default=True, help="Share of the genes to guess.")
@click.option("--steps", type=int, help="Optimiser steps.  [default: the preset's]")
@click.option("--epochs", type=int, help="Passes over the cells, instead of steps.")
@click.option("--batch-tokens", type=int, help="Tokens per step.")
@click.option("--lr", type=float, help="Largest learning rate.")
@click.option("--count-noise", type=float, help="Share of the cells ranked anew, with counting noise.")
@click.option("--held-out", default=0.1, show_default=True, help="Share of the cells never trained on.")
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--restart", is_flag=True, help="Start again where a run was killed or finished, instead of resuming."
)
@dry_run_option
@json_option
def command(
    data: Path,
    folder: Path,
    preset: str,
    vocabulary: Path | None,
    medians: Path | None,
    gene_ids: str | None,
    counts_layer: str | None,
    mask: float,
    steps: int | None,
    epochs: int | None,
    batch_tokens: int | None,
    lr: float | None,
    count_noise: float | None,
    held_out: float,
    seed: int,
    restart: bool,
    dry_run: bool,
    as_json: bool | None,
) -> None:
    """Train a Geneformer on DATA (.h5ad or .zarr, raw counts, or the word pbmc68k) by guessing hidden genes.

    The held-out loss is shown beside the unigram loss, which is what one reaches without looking at the
    cell. Killed? Type the same command again and it continues.

    \b
    Examples:
      scfast pretrain cells.h5ad -o my_model
      scfast pretrain cells.h5ad -o my_model --preset v1-10m --gene-ids ensembl_id
      scfast pretrain cells.h5ad -o my_model --counts-layer counts --steps 2000
      scfast pretrain cells.h5ad -o my_model --dry-run
      scfast pretrain pbmc68k -o pbmc_model        700 blood cells that come with scanpy
    """  # noqa: D301
    from scfast import io, tl
    from scfast.cli.data import load
    from scfast.cli.rehearsed import TABLES, maybe_rehearsal, show_rehearsal
    from scfast.tl.pretrain import progress_line

    console = Console(as_json)
    genes = None if vocabulary is None else io.read_vocabulary(vocabulary)
    table = None if medians is None else io.read_medians(medians)
    adata = load(data)
    console.event(
        "start",
        f"Training {preset} on {adata.n_obs:,} cells x {adata.n_vars:,} genes of {data}, into {folder}",
        command="pretrain",
        cells=adata.n_obs,
        genes=adata.n_vars,
        preset=preset,
        output=folder,
    )
    with maybe_rehearsal(dry_run) as planned:
        log = tl.pretrain(
            adata, folder, preset=preset, vocabulary=genes, medians=table, gene_ids=gene_ids,
            counts_layer=counts_layer, mask=mask, steps=steps, epochs=epochs, batch_tokens=batch_tokens, lr=lr,
            count_noise=count_noise, seed=seed, held_out=held_out, resume=not restart,
            progress=lambda entry: console.training(entry, progress_line(entry)),
        )  # fmt: skip
    if dry_run:
        show_rehearsal(
            console, "pretrain", planned, {"cells": adata.n_obs, "genes": adata.n_vars}, folder, TABLES
        )
        return
    last = log["history"][-1]
    console.event(
        "done",
        f"Held-out loss {last['held_out_loss']:.3f} against unigram {log['unigram_loss']:.3f}, "
        f"after {last['step']} steps in {log['seconds']:.0f} s.\n"
        f"Use it:  scfast run {data} --model geneformer:{folder} --groupby COLUMN -o results",
        held_out_loss=last["held_out_loss"],
        unigram_loss=log["unigram_loss"],
        steps=last["step"],
        output=folder,
        files=sorted(folder.iterdir()),
    )
