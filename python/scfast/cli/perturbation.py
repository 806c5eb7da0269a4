"""``scfast train perturbation``."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from scfast.cli.console import Console, dry_run_option, json_option


@click.command("perturbation")
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", "folder", type=click.Path(path_type=Path), required=True, help="Folder of the model."
)
@click.option(
    "--perturbation", required=True, help="Column of obs: what was done to each cell, such as KLF1+MAP2K6."
)
@click.option("--control", default="control", show_default=True, help="Its value in unperturbed cells.")
@click.option(
    "--within", multiple=True, help="Column whose cells are compared among themselves; may be repeated."
)
@click.option("--separator", default="+", show_default=True, help="Between the parts of a combination.")
@click.option(
    "--held-out", default="combinations", show_default=True,
    help="combinations, perturbations (of genes among the inputs), or names with commas between them.",
)  # fmt: skip
@click.option("--share", default=0.5, show_default=True, help="Of those that a rule finds.")
@click.option(
    "--genes", default="hvg:500", show_default=True, help="Input genes: hvg:N (and the targets), or all."
)
@click.option("--preset", default="tiny", show_default=True, help="Size: tiny, small or paper.")
@click.option("--counts-layer", help="Layer that holds the counts.  [default: X]")
@click.option("--epochs", default=50, show_default=True, help="Passes over the cells at most.")
@click.option("--patience", default=5, show_default=True, help="Passes without a lower validation loss.")
@click.option("--batch-tokens", type=int, help="Tokens per step.  [default: the preset's]")
@click.option("--lr", type=float, help="Largest learning rate.  [default: the preset's]")
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--restart", is_flag=True, help="Start again where a run was killed or finished, instead of resuming."
)
@dry_run_option
@json_option
def command(
    data: Path,
    folder: Path,
    perturbation: str,
    control: str,
    within: tuple[str, ...],
    separator: str,
    held_out: str,
    share: float,
    genes: str,
    preset: str,
    counts_layer: str | None,
    epochs: int,
    patience: int,
    batch_tokens: int | None,
    lr: float | None,
    seed: int,
    restart: bool,
    dry_run: bool,
    as_json: bool | None,
) -> None:
    """Train a BioFormers on DATA (raw counts) to predict perturbations that it never sees, and score it.

    Scores stand beside a perceptron, the sum of single effects, the mean of training perturbations and no change, and
    beside what one half of the measured cells says of the other. Killed? Type the same command again and it continues.

    \b
    Examples:
      scfast train perturbation cells.h5ad -o model --perturbation condition --within cell_type
      scfast train perturbation cells.h5ad -o model --perturbation target --held-out perturbations
      scfast train perturbation cells.h5ad -o model --perturbation condition --held-out KLF1+MAP2K6,SET+KLF1
    """  # noqa: D301
    from scfast import tl
    from scfast.cli.data import load
    from scfast.cli.rehearsed import maybe_rehearsal, show_rehearsal
    from scfast.tl.train_perturbation import progress_line
    from scfast.train.perturbed_cells import SPLITS

    console = Console(as_json)
    adata = load(data)
    console.event(
        "start",
        f"Training {preset} on {adata.n_obs:,} cells of {data}, perturbations in {perturbation}, into {folder}",
        command="train perturbation", cells=adata.n_obs, perturbation=perturbation, preset=preset, output=folder,
    )  # fmt: skip
    with maybe_rehearsal(dry_run) as planned:
        log = tl.train_perturbation(
            adata, folder, perturbation=perturbation, control=control, within=within, separator=separator,
            held_out=held_out if held_out in SPLITS else [name.strip() for name in held_out.split(",")], share=share,
            genes=genes, preset=preset, counts_layer=counts_layer, epochs=epochs, patience=patience,
            batch_tokens=batch_tokens, lr=lr, seed=seed, resume=not restart,
            progress=lambda entry: console.training(entry, progress_line(entry)),
        )  # fmt: skip
    if dry_run:
        facts = {"cells": adata.n_obs, "genes": genes, "perturbations in": perturbation}
        show_rehearsal(console, "train perturbation", planned, facts, folder)
        return
    summary = tl.perturbation_summary(log)
    wide = summary.pivot_table(index="method", columns="metric", values="mean", sort=False, dropna=False)
    console.title(f"Pearson correlations over {len(log['settings']['held_out'])} perturbations held out")
    rows = [
        [method, *("–" if np.isnan(value) else f"{value:.3f}" for value in values)]
        for method, values in zip(wide.index, wide.to_numpy(), strict=True)
    ]
    console.table(["", *wide.columns], rows)
    scores = {
        method: {metric: None if np.isnan(value) else value for metric, value in row.items()}
        for method, row in wide.to_dict("index").items()
    }
    console.event(
        "done",
        f"Written: {folder}",
        scores=scores,
        steps=log["history"][-1]["step"],
        output=folder,
        files=sorted(folder.iterdir()),
    )
