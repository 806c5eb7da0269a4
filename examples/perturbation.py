"""Does a small transformer predict perturbations it never saw better than a sum of effects? One command, real data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import click
import numpy as np
import pandas as pd
import torch
from _findings import Part, as_markdown, told, verdict

import scfast
from scfast.cli.console import Console, json_option
from scfast.train.perturbation_scores import METRICS, halves, most_changed, pearson

#: Training of every model, which ends after three passes over the cells without a lower validation loss.
TRAINING: dict[str, Any] = {
    "preset": "tiny",
    "patience": 3,
    "counts_layer": "counts",
    "precision": "float32",
}
QUICK: dict[str, Any] = {**TRAINING, "epochs": 1, "patience": 1}
#: What is no prediction, but how far the measured change repeats itself.
REPEATS = ("half of the cells", "half of the cells, halved controls")
ABOUT = [
    "Methods are scored on cells of perturbations that none of them was trained on; *change* is against control cells"
    " of the same data set and cell line, *top* are the 20 genes that change most for their standard error. Brackets"
    " hold 95 % t intervals between perturbations; *seeds* those between seeds. Of no change the change is constant: it"
    " has no correlation.",
    "*half of the cells* is no prediction: the mean of a random half of the perturbed cells against the other half,"
    " with the same control mean, as predictions are scored. Its noise is then in both changes, and in every prediction"
    " that starts from control cells. With *halved controls* the two changes share no cell: what is left is the part of"
    " the change that the data repeat.",
]


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--data", type=click.Path(path_type=Path, file_okay=False), required=True,
    help="Folder with norman_mcfaline_devel.h5ad (Norman et al. 2019: double CRISPRa perturbations of K562) and"
    " jurkat_tcr_cropseq.h5ad (Datlinger et al. 2017: knock-outs of the T cell receptor's pathway).",
)  # fmt: skip
@click.option(
    "-o", "--output", "out", type=click.Path(path_type=Path), default=Path("perturbation"), show_default=True,
    help="Folder for models, tables and figures.",
)  # fmt: skip
@click.option("--seeds", default=3, show_default=True, help="Models per data set.")
@click.option("--threads", default=2, show_default=True, help="Threads of torch and of the kernels.")
@click.option("--quick", is_flag=True, help="A rehearsal: few cells, one pass, one seed; no findings.")
@json_option
def command(data: Path, out: Path, seeds: int, threads: int, quick: bool, as_json: bool | None) -> None:
    """Predict double perturbations from single ones, and knock-outs of genes never knocked out before.

    \b
    1. Norman: K562 cells of one data set; all double perturbations whose two parts were applied alone are held
       out, and predicted from control cells.
    2. Jurkat: stimulated cells; each seed holds out two of the six knocked-out genes that the file measures,
       which are told to the model by a mark on the gene's token alone.
    3. McFaline: three glioblastoma lines, each by itself. No target is among the file's genes and nothing was
       combined, so nothing can be held out that a model could know: how far changes repeat themselves, and how
       far the other knock-downs tell them.
    4. The first two beside a perceptron, the sum of single effects, the mean of training perturbations and no change;
       training runs until the loss of validation cells stops falling.

    Allow half an hour on one thread. Killed? Type the same command again and it continues.

    \b
    Examples:
      python examples/perturbation.py --data cells
      python examples/perturbation.py --data cells --seeds 5 -o five_seeds
      python examples/perturbation.py --data cells --quick -o rehearsal
    """  # noqa: D301
    if seeds < 1:
        raise click.BadParameter("at least one is needed", param_hint="--seeds")
    torch.set_num_threads(threads)
    console, options = Console(as_json), QUICK if quick else TRAINING
    parts: dict[str, Part] = {}
    for name, cells, asked in (
        ("Norman: double perturbations from single ones", norman(data, quick), lambda seed: NORMAN),
        (
            "Jurkat: knock-outs never seen",
            jurkat(data, quick),
            lambda seed: {**JURKAT, "held_out": MEASURED[seed % 3]},
        ),
    ):
        stem = name.split(":")[0].lower()
        console.title(name)
        logs = [
            train(console, cells, out / "models" / f"{stem}_{seed}", seed, {**asked(seed), **options})
            for seed in range(1 if quick else seeds)
        ]
        summary = scfast.tl.perturbation_summary(logs)
        summary.to_csv(out / f"{stem}.csv", index=False, float_format="%.6g")
        scores = pd.concat([pd.DataFrame(log["scores"]) for log in logs])
        scores.to_csv(out / f"{stem}_scores.csv", index=False, float_format="%.6g")
        for metric in ("pearson_change", "pearson_change_top"):
            scfast.pl.perturbation(logs, metric=metric, show=False, save=out / f"{stem}_{metric}.png")
        parts[name] = table(summary), findings(cells, logs, summary)
    parts["McFaline: what three cell lines can bear"] = mcfaline(data, quick, out)
    page = as_markdown("Perturbations never seen", ABOUT, parts)
    if quick:
        page = page.replace("\n\n", "\n\n**A rehearsal: too little was trained to say anything.**\n\n", 1)
    (out / "summary.md").write_text(page)
    for name, (rows, found) in parts.items():
        console.title(name)
        console.table(list(rows.columns), rows.to_numpy().tolist())
        for sentence in found:
            console.note(sentence)
    console.event("done", f"Written: {out / 'summary.md'}", output=out)


NORMAN: dict[str, Any] = {
    "perturbation": "condition", "within": ["dataset", "cell_type"], "held_out": "combinations", "share": 1.0,
    "genes": "hvg:60",
    "epochs": 25,
}  # fmt: skip
JURKAT: dict[str, Any] = {
    "perturbation": "target", "within": "stimulation", "genes": "hvg:30", "epochs": 15,
}  # fmt: skip
#: Knocked-out genes that the Jurkat file measures: each seed holds out two, three seeds all.
MEASURED = (("EGR1", "JUN"), ("EGR3", "NR4A1"), ("JUND", "RELA"))


def norman(data: Path, quick: bool) -> ad.AnnData:
    """K562 cells of Norman et al. 2019, counts recovered.

    The file's ``ncounts`` were summed before genes were removed, and cells normalised after that. The total that a cell
    was divided by is 10,000 over what one count became; its smallest value is that of one count, or of two or more,
    which ``ncounts`` tells.
    """
    cells = scfast.io.read(data / "norman_mcfaline_devel.h5ad")
    cells = some(cells[(cells.obs["dataset"] == "norman19").to_numpy()].copy(), "condition", quick)
    matrix = cells.X.tocsr()
    least = np.expm1(np.minimum.reduceat(matrix.data, matrix.indptr[:-1]).astype(np.float64))
    counts_of_least = np.rint(cells.obs["ncounts"].to_numpy() * least / 1e4)
    cells.obs["n_counts"] = 1e4 * counts_of_least / least
    scfast.pp.recover_counts(cells, use_raw=False)
    return cells


def mcfaline(data: Path, quick: bool, out: Path) -> Part:
    """Changes by nine knock-downs in each line: between halves that share no cell, and beside the others' mean change.

    The control cells are halved for the other knock-downs too: one half is theirs, the other that of the one predicted.
    """
    cells = scfast.io.read(data / "norman_mcfaline_devel.h5ad")
    cells = cells[(cells.obs["dataset"] == "mcfaline23").to_numpy()].copy()
    rows = []
    for line in cells.obs["cell_type"].astype("category").cat.categories:
        own = some(cells[(cells.obs["cell_type"] == line).to_numpy()].copy(), "condition", quick)
        levels, label = own.X.toarray().astype(np.float64), own.obs["condition"].astype(str).to_numpy()
        by = {name: levels[label == name] for name in np.unique(label)}
        control, draws = by.pop("control"), np.random.default_rng(0)
        for name, perturbed in by.items():
            top = most_changed(perturbed, control)
            repeated = halves(perturbed, control, top, draws)[REPEATS[1]]
            told_by_others = []
            for _ in range(20):
                order = draws.permutation(len(control))
                mine, theirs = (control[half].mean(0) for half in np.array_split(order, 2))
                others = np.mean([x.mean(0) for other, x in by.items() if other != name], axis=0) - theirs
                told_by_others.append(pearson(others, perturbed.mean(0) - mine))
            rows.append(
                {
                    "line": line, "perturbation": name, "cells": len(perturbed),
                    "halves": repeated["pearson_change"], "others": float(np.mean(told_by_others)),
                }
            )  # fmt: skip
    every = pd.DataFrame(rows)
    every.to_csv(out / "mcfaline.csv", index=False, float_format="%.6g")
    shown = [
        {
            "line": line, "knock-downs": len(part), "cells of each": f"{part['cells'].median():.0f}",
            "change between halves": told(part["halves"]), "beside the others' mean": told(part["others"]),
        }
        for line, part in every.groupby("line", observed=True)
    ]  # fmt: skip
    findings = []
    for line, part in every.groupby("line", observed=True):
        more = part["halves"] - part["others"]
        found = verdict(part["halves"], "the change repeats itself", "the change does not repeat itself")
        findings.append(
            f"{line}: Pearson of change over {cells.n_vars} genes between halves of the cells that share no control:"
            f" {told(part['halves'])}: {found}."
        )
        found = verdict(more, "a knock-down changes what the others do not", "the others tell more")
        findings.append(f"{line}: that less Pearson beside the mean of the others: {told(more)}: {found}.")
    return pd.DataFrame(shown), findings


def jurkat(data: Path, quick: bool) -> ad.AnnData:
    """Stimulated Jurkat cells of Datlinger et al. 2017; totals are those of all genes."""
    cells = scfast.io.read(data / "jurkat_tcr_cropseq.h5ad")
    cells = some(cells[(cells.obs["stimulation"] == "stimulated").to_numpy()].copy(), "target", quick)
    cells.layers["counts"], cells.obs["n_counts"] = cells.X, cells.obs["ncounts_full"].to_numpy()
    return cells


def some(cells: ad.AnnData, column: str, quick: bool) -> ad.AnnData:
    """All cells, or ten of every perturbation."""
    first = cells.obs.groupby(column, observed=True).cumcount() < 10
    return cells[first.to_numpy()].copy() if quick else cells


def train(
    console: Console, cells: ad.AnnData, folder: Path, seed: int, options: dict[str, Any]
) -> dict[str, Any]:
    """One model; its log."""
    from scfast.tl.train_perturbation import progress_line

    return scfast.tl.train_perturbation(
        cells, folder, seed=seed, **options,
        progress=lambda entry: console.event("training", f"  seed {seed}  " + progress_line(entry), **entry),
    )  # fmt: skip


def table(summary: pd.DataFrame) -> pd.DataFrame:
    """A row per method, a column per metric: mean and interval between perturbations, and that between seeds."""

    def text(row: pd.Series) -> str:
        if not row["perturbations"]:
            return "–"
        ends = [
            f"[{row[low]:.3f}, {row[high]:.3f}]" for low, high in (("low", "high"), ("seed_low", "seed_high"))
        ]
        between = f"; seeds {ends[1]}" if np.isfinite(row["seed_low"]) else ""
        return f"{row['mean']:.3f} " + (ends[0] if np.isfinite(row["low"]) else "") + between

    rows = summary.assign(text=summary.apply(text, axis=1))
    wide = rows.pivot_table(index="method", columns="metric", values="text", aggfunc="first", sort=False)
    return wide[list(METRICS)].reset_index()


def findings(cells: ad.AnnData, logs: list[dict[str, Any]], summary: pd.DataFrame) -> list[str]:
    """What the intervals say."""
    held_out = sorted({name for log in logs for name in log["settings"]["held_out"]})
    counts = cells.layers["counts"][:, cells.var_names.isin(_genes(logs))]
    detected = np.asarray((counts > 0).sum(1)).ravel()
    entries = [log["best"] for log in logs]
    losses = ", ".join(f"{entry['validation_loss']:.4f}" for entry in entries)
    epochs = ", ".join(str(entry["epoch"]) for entry in entries)
    ended = sum(log["history"][-1]["step"] < log["settings"]["steps"] for log in logs)
    found = [
        f"Held out: {', '.join(held_out)}. {logs[0]['train_cells']:,} cells are trained on by seed 0; a cell has"
        f" {detected.mean():.1f} of the {counts.shape[1]} input genes above 0, and"
        f" {cells.obs['n_counts'].median():,.0f} counts in all (median).",
        f"Validation loss, nats per gene: {losses}; the best epochs were {epochs}, and {ended} of {len(logs)} trainings"
        f" ended because it had stopped falling{'' if ended == len(logs) else ', the others at a learning rate of 0'}.",
    ]
    scores = pd.concat([pd.DataFrame(log["scores"]) for log in logs])
    for metric, what in (("pearson_change", "all input genes"), ("pearson_change_top", "the top 20")):
        means = scores.pivot_table(index=["perturbation", "context"], columns="method", values=metric)
        for other in [name for name in summary["method"].unique() if name != "model" and name not in REPEATS]:
            if other in means and len(ahead := (means["model"] - means[other]).dropna()):
                found.append(
                    f"Pearson of change over {what}, model minus {other}: {told(ahead)}: "
                    + verdict(ahead, "the model is better.", "the baseline wins.")
                )
        repeated = means[REPEATS[1]].dropna()
        found.append(
            f"Pearson of change over {what} between halves of the cells that share no control: {told(repeated)}: "
            + verdict(repeated, "the change repeats itself.", "the change does not repeat itself.")
        )
    return found


def _genes(logs: list[dict[str, Any]]) -> list[str]:
    return sorted({gene for log in logs for gene in log["genes"]})


if __name__ == "__main__":
    command()
