"""``scfast train bioformers``."""

from __future__ import annotations

import math
from pathlib import Path

import click

from scfast.cli.console import Console, dry_run_option, json_option
from scfast.cli.perturbation import command as perturbation


@click.group("train")
def command() -> None:
    """Train a model from scratch on your cells.

    \b
    Examples:
      scfast train bioformers cells.h5ad -o my_model
      scfast train perturbation cells.h5ad -o my_model --perturbation condition
      scfast train bioformers --help
    """  # noqa: D301


@command.command("bioformers")
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", "folder", type=click.Path(path_type=Path), required=True, help="Folder of the model."
)
@click.option(
    "--preset", default="small", show_default=True, help="Size: tiny, small, or paper (8 layers, width 512)."
)
@click.option("--genes", default="hvg:1000", show_default=True, help="Input genes: hvg:N or all.")
@click.option("--binning", default="value", show_default=True, help="value, segment or quantile.")
@click.option("--n-bins", default=30, show_default=True, help="Bins, that of zero among them.")
@click.option("--raw", is_flag=True, help="Value bins of counts as they are, not scaled to the mean total.")
@click.option("--decoder", is_flag=True, help="Causal, <cls> last, instead of an encoder.")
@click.option("--value-embedding", default="linear", show_default=True, help="linear or table.")
@click.option("--counts-layer", help="Layer that holds the counts.  [default: X]")
@click.option("--mask", default=0.1, show_default=True, help="Share of the genes to guess.")
@click.option("--nonzero", default=0.5, show_default=True, help="Share of these above 0.")
@click.option("--steps", type=int, help="Optimiser steps.")
@click.option("--epochs", type=int, help="Passes over the cells, instead of steps.  [default: 10]")
@click.option("--batch-tokens", type=int, help="Tokens per step.  [default: the preset's]")
@click.option("--accumulate", default=1, show_default=True, help="Parts of a step: so much less memory.")
@click.option("--lr", type=float, help="Largest learning rate.  [default: the preset's]")
@click.option("--warmup", default=2000, show_default=True, help="Steps of warm-up, at most a tenth of all.")
@click.option("--held-out", default=0.1, show_default=True, help="Share of the cells never trained on.")
@click.option(
    "--patience", type=int, help="Stop after so many evaluations without a lower loss; keep the best."
)
@click.option(
    "--precision", default="auto", show_default=True, help="float32, bf16, or auto: bf16 where it is fast."
)
@click.option("--device", help="cpu, cuda or cuda:N.  [default: the GPU where there is one]")
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--restart", is_flag=True, help="Start again where a run was killed or finished, instead of resuming."
)
@dry_run_option
@json_option
def bioformers(
    data: Path,
    folder: Path,
    preset: str,
    genes: str,
    binning: str,
    n_bins: int,
    raw: bool,
    decoder: bool,
    value_embedding: str,
    counts_layer: str | None,
    mask: float,
    nonzero: float,
    steps: int | None,
    epochs: int | None,
    batch_tokens: int | None,
    accumulate: int,
    lr: float | None,
    warmup: int,
    held_out: float,
    patience: int | None,
    precision: str,
    device: str | None,
    seed: int,
    restart: bool,
    dry_run: bool,
    as_json: bool | None,
) -> None:
    """Train a BioFormers on DATA (.h5ad or .zarr, raw counts, or the word pbmc68k) by guessing the bins of counts.

    Held-out cells are scored beside each gene's bin frequencies, which is what one reaches without looking at the
    cell. Killed? Type the same command again and it continues.

    \b
    Examples:
      scfast train bioformers cells.h5ad -o my_model
      scfast train bioformers cells.h5ad -o my_model --preset paper --genes hvg:2000 --binning segment
      scfast train bioformers cells.h5ad -o my_model --dry-run
      scfast train bioformers pbmc68k -o blood --genes all --epochs 20
    """  # noqa: D301
    from scfast import tl
    from scfast.cli.data import load
    from scfast.cli.rehearsed import maybe_rehearsal, show_rehearsal
    from scfast.tl.train_bioformers import progress_line

    console = Console(as_json)
    adata = load(data)
    console.event(
        "start",
        f"Training {preset} on {adata.n_obs:,} cells of {data}, genes {genes}, into {folder}",
        command="train",
        cells=adata.n_obs,
        genes=genes,
        preset=preset,
        output=folder,
    )
    with maybe_rehearsal(dry_run) as planned:
        log = tl.train_bioformers(
            adata, folder, preset=preset, genes=genes, binning=binning, n_bins=n_bins, normalise=not raw,
            architecture="decoder" if decoder else "encoder", value_embedding=value_embedding,
            counts_layer=counts_layer, mask=mask, nonzero=nonzero, steps=steps, epochs=epochs,
            batch_tokens=batch_tokens, accumulate=accumulate, lr=lr, warmup=warmup, seed=seed, held_out=held_out,
            patience=patience, precision=precision, device=device, resume=not restart,
            progress=lambda entry: console.training(entry, progress_line(entry)),
        )  # fmt: skip
    if dry_run:
        show_rehearsal(console, "train bioformers", planned, {"cells": adata.n_obs, "genes": genes}, folder)
        return
    last, baseline = log.get("best", log["history"][-1]), log["baseline"]
    exact, without = last.get("held_out_sensitivity", math.nan), baseline.get("sensitivity", math.nan)
    console.event(
        "done",
        f"Held-out loss {last['held_out_loss']:.3f}, exact bins above 0: {exact:.1%}; without "
        f"looking at the cell {baseline['loss']:.3f} and {without:.1%}. {last['step']} steps in "
        f"{log['seconds']:.0f} s.\nUse it:  scfast run {data} --model bioformers:{folder} --groupby COLUMN -o results",
        held_out_loss=last["held_out_loss"],
        baseline_loss=baseline["loss"],
        steps=last["step"],
        output=folder,
        files=sorted(folder.iterdir()),
    )


command.add_command(perturbation)
