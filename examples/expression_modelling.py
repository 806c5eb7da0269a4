"""What does a small BioFormers learn of blood cells? One command: expression modelling and cell embedding.

Tables 2, 3 and 4 of Amara-Belgadi et al. 2023, and their AvgBIO of <cls> vectors, asked of a small model that is
trained here from several seeds, beside what each answer must beat.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anndata as ad
import click
import numpy as np
import pandas as pd
import torch
from _findings import Part, as_markdown, as_text, told, verdict

import scfast
from scfast.cli.console import Console, json_option
from scfast.train.bioformers import SCORES

CELLS, LABEL = "cells/pbmc_facs.h5ad", "celltype"
MODEL, EXPECTED = "BioFormers", "BioFormers, expected bin"
#: What a guess is fairly compared with: likeliest bins with likeliest bins, expected ones with expected ones.
PEERS = {
    MODEL: ("the gene's bin frequencies",),
    EXPECTED: ("the gene's mean", "linear regression", "linear regression under masks"),
}
MEASURES = ("sensitivity", "hel_sensitivity", "npv", "accuracy")
CLS, POOLED, UNTRAINED = "<cls>", "mean of the genes", "<cls>, untrained"
#: Principal components of expression, as scanpy takes by default.
COMPONENTS = 50
GENES, MOST = f"the same genes, {COMPONENTS} components", f"2,000 variable genes, {COMPONENTS} components"
#: Many small steps: on few cells the tiny preset learns faster so.
TRAINING: dict[str, Any] = {
    "preset": "tiny", "batch_tokens": 2600, "lr": 5e-3, "evaluations": 15, "patience": 6, "precision": "float32",
    "device": "cpu",
}  # fmt: skip


@dataclass(frozen=True)
class Size:
    """How much is computed."""

    steps: int
    seeds: int
    cells: int | None
    genes: int
    correlated: int


FULL, QUICK = Size(3000, 3, None, 320, 300), Size(4, 1, 120, 40, 30)


@dataclass(frozen=True)
class Run:
    """How a model is trained: m and p of its masks, normalised counts or not, share of the cells, times the steps."""

    normalise: bool = True
    mask: float = 0.1
    nonzero: float = 0.5
    share: float = 1.0
    times: int = 1

    @property
    def name(self) -> str:
        """Of its folder."""
        kind = "normalised" if self.normalise else "raw"
        longer = f"_times{self.times}" if self.times > 1 else ""
        return f"{kind}_m{self.mask:g}_p{self.nonzero:g}_n{self.share:g}{longer}"

    @property
    def binning(self) -> str:
        """For a table."""
        return "normalised" if self.normalise else "raw"


BOTH = (Run(True), Run(False))
TABLES = {
    "Table 2: mask ratio m": ("mask", [replace(run, mask=m) for run in BOTH for m in (0.1, 0.05, 0.025)]),
    "Table 3: share p of hidden genes above 0": (
        "nonzero", [replace(run, nonzero=p) for run in BOTH for p in (0.25, 0.5, 0.75)],
    ),
    "Table 4: cells trained on": ("share", [Run(share=share) for share in (0.25, 0.5, 1.0)]),
}  # fmt: skip
RUNS = [*BOTH, *(run for _, runs in TABLES.values() for run in runs)]
RUNS = list(dict.fromkeys(RUNS))
#: Of the first seed: what is left to be learnt after the steps of all others.
LONGER = Run(times=2)

Trained = dict[tuple[Run, int], tuple[dict[str, Any], pd.DataFrame]]


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--data", type=click.Path(path_type=Path, file_okay=False), envvar="SCFAST_TEST_DATA", required=True,
    help=f"Folder with {CELLS} (sorted blood cells, Zheng et al. 2017).  [default: SCFAST_TEST_DATA]",
)  # fmt: skip
@click.option(
    "-o", "--output", "out", type=click.Path(path_type=Path), default=Path("expression_modelling"), show_default=True,
    help="Folder for models, tables, figures and summary.md.",
)  # fmt: skip
@click.option("--seeds", type=click.IntRange(1), help="Models of each kind.  [default: 3]")
@click.option("--threads", default=2, show_default=True, help="Threads of torch and of the kernels.")
@click.option("--kept", is_flag=True, help="Train nothing: tables of the models that are finished.")
@click.option("--quick", is_flag=True, help="A rehearsal: few cells, few steps, one seed; no findings.")
@json_option
def command(
    data: Path, out: Path, seeds: int | None, threads: int, kept: bool, quick: bool, as_json: bool | None
) -> None:
    """Train small BioFormers on blood cells; score hidden counts and cell vectors, beside what they must beat.

    \b
    Tables 2 and 3: what is guessed of hidden counts, by the masks trained with, with and without normalisation.
    Table 4: the same, by the number of cells trained on.
    Cell embedding: AvgBIO of <cls> vectors, beside highly variable genes, and UMAPs.

    Findings are sentences made from the measured numbers, whoever wins. Allow an hour on one thread. Killed, or more
    seeds wanted? Type the command again: what is finished is kept.

    \b
    Examples:
      python examples/expression_modelling.py --data data
      python examples/expression_modelling.py --data data --seeds 5
      python examples/expression_modelling.py --data data --quick -o rehearsal
    """  # noqa: D301
    torch.set_num_threads(threads)
    console, size = Console(as_json), QUICK if quick else FULL
    cells = read((data / "data" if (data / "data").is_dir() else data) / CELLS, size)
    trained: Trained = {}
    for run, seed in in_order(seeds or size.seeds):
        if not kept or (folder_of(out, run, seed) / SCORES).exists():
            trained[run, seed] = train_and_score(console, cells, run, seed, size, out)
    parts = {"Training": training(trained, out)}
    for name, (field, runs) in TABLES.items():
        parts[name] = table(trained, runs, field)
    parts |= {"Baselines": baselines(trained), "Cell embedding": embedding(cells, trained, out)}
    for name, (frame, findings) in parts.items():
        console.title(name)
        console.table(list(frame.columns), frame.map(as_text).to_numpy().tolist())
        for finding in findings:
            console.note(finding)
        console.event("findings", part=name, findings=findings, rows=frame.to_dict("records"))
    about = [
        f"{cells.n_obs:,} cells of {cells.obs[LABEL].nunique()} sorted populations, the {size.genes} genes that vary"
        f" most; {len(trained)} models. Brackets hold 95 % t intervals over seeds; ± is 1.96 standard errors between"
        " held-out cells, the mean of the seeds'.",
        *["**A rehearsal: too little was trained and measured for any finding.**"] * quick,
    ]
    (out / "summary.md").write_text(as_markdown("Expression modelling by a small BioFormers", about, parts))
    console.title("Written")
    console.fields({file.name: str(file) for file in sorted(out.glob("*.*"))})
    console.event("done", output=out)


def in_order(seeds: int) -> list[tuple[Run, int]]:
    """The models: those that are compared with baselines and make vectors first, of all seeds."""
    own = [(run, seed) for seed in range(seeds) for run in BOTH]
    return [*own, *((run, seed) for seed in range(seeds) for run in RUNS if run not in BOTH), (LONGER, 0)]


def read(file: Path, size: Size) -> ad.AnnData:
    """The sorted cells; in a rehearsal few of them, and the genes with most counts."""
    cells = scfast.io.read(file)
    if size.cells is not None:
        rows = np.sort(np.random.default_rng(0).permutation(cells.n_obs)[: size.cells])
        most = np.sort(np.argsort(-np.asarray(cells.X.sum(0)).ravel(), kind="stable")[:500])
        cells = cells[rows, most].copy()
    return cells


def folder_of(out: Path, run: Run, seed: int) -> Path:
    """Of a model."""
    return out / "models" / run.name / f"seed_{seed}"


def train_and_score(
    console: Console, cells: ad.AnnData, run: Run, seed: int, size: Size, out: Path
) -> tuple[dict[str, Any], pd.DataFrame]:
    """The log of a model and its scores beside the baselines; kept in its folder, and read from there."""
    from scfast.tl.train_bioformers import progress_line

    folder = folder_of(out, run, seed)
    console.title(f"{run.name}, seed {seed}")
    log = scfast.tl.train_bioformers(
        cells, folder, genes=f"hvg:{size.genes}", normalise=run.normalise, mask=run.mask, nonzero=run.nonzero,
        train_share=run.share, steps=run.times * size.steps, seed=seed,
        progress=lambda entry: console.event("training", "  " + progress_line(entry), training=entry), **TRAINING,
    )  # fmt: skip
    if not (folder / SCORES).exists():
        # Baselines are those of binning, cells and seed: other masks and lengths share them.
        scfast.tl.expression_modelling(cells, folder, correlated=size.correlated if run in BOTH else None)
    return log, pd.read_csv(folder / SCORES, index_col="guess")


def seeds_of(trained: Trained, run: Run) -> list[int]:
    """Seeds that a kind of model was trained from."""
    return [seed for other, seed in trained if other == run]


def training(trained: Trained, out: Path) -> Part:
    """Whether the models learnt anything, and whether they had learnt all they would."""
    rows = []
    for (run, seed), (log, _) in trained.items():
        best, steps, baseline = log["best"], log["settings"]["steps"], log["baseline"]["loss"]
        before = [x["held_out_loss"] for x in log["history"] if x["step"] <= 0.75 * steps]
        rows.append(
            {
                "model": f"{run.name}, seed {seed}", "best step": best["step"], "of": steps,
                "held-out loss": best["held_out_loss"], "bin frequencies": baseline,
                "fall in the last quarter": min(before, default=np.nan) - best["held_out_loss"],
                "seconds": log["seconds"],
            }
        )  # fmt: skip
    every = pd.DataFrame(rows)
    every.to_csv(out / "training.csv", index=False, float_format="%.6g")
    logs = {run.binning: trained[run, 0][0] for run in BOTH if (run, 0) in trained}
    scfast.pl.training(logs, show=False, save=out / "training.png")
    lead = every["bin frequencies"] - every["held-out loss"]
    last = every["fall in the last quarter"].clip(lower=0)
    findings = [
        f"{int((lead > 0).sum())} of {len(every)} models guess hidden bins of held-out cells better than the genes' bin"
        f" frequencies do, by {lead.mean():.3f} nats on average.",
        f"{int((every['best step'] < every['of']).sum())} of {len(every)} were best before their last step. The"
        " learning rate falls to 0 over the steps, so a loss that stands still at their end does not say that nothing"
        f" was left: the last quarter of the steps lowered it by {last.mean():.4f} nats on average, at most by"
        f" {last.max():.4f}.",
    ]
    if (LONGER, 0) in trained and (BOTH[0], 0) in trained:
        loss, longer = (trained[run, 0][0]["best"]["held_out_loss"] for run in (BOTH[0], LONGER))
        findings.append(
            f"Twice the steps lower the loss of {BOTH[0].name}, seed 0, from {loss:.4f} to {longer:.4f}, by"
            f" {(loss - longer) / loss:.2%}."
        )
    return every, findings


def row_of(trained: Trained, run: Run, guess: str) -> dict[str, str]:
    """A row of scores: interval over seeds, and error between cells."""
    found = pd.DataFrame([trained[run, seed][1].loc[guess] for seed in seeds_of(trained, run)])
    return {
        score: f"{told(found[score], '.3f')} ± {1.96 * found[f'{score}_se'].mean():.3f}" for score in MEASURES
    }


def table(trained: Trained, runs: list[Run], field: str) -> Part:
    """Scores by one property of the training, and what the extremes differ by, within seeds."""
    runs = [run for run in runs if seeds_of(trained, run)]
    rows = [
        {"counts": run.binning, field: getattr(run, field), **row_of(trained, run, MODEL)} for run in runs
    ]
    findings = []
    for binning in dict.fromkeys(run.binning for run in runs):
        own = sorted((run for run in runs if run.binning == binning), key=lambda run: getattr(run, field))
        low, high = own[0], own[-1]
        both = [seed for seed in seeds_of(trained, high) if seed in seeds_of(trained, low)]
        if low == high or not both:
            continue
        for score in MEASURES:
            change = pd.Series(
                [trained[high, s][1].loc[MODEL, score] - trained[low, s][1].loc[MODEL, score] for s in both]
            )
            findings.append(
                f"{binning}, {score}, {field} {getattr(high, field):g} minus {getattr(low, field):g}:"
                f" {told(change)}: {verdict(change, 'it rises', 'it falls')}."
            )
    return pd.DataFrame(rows), findings


def baselines(trained: Trained) -> Part:
    """The models of m = .1, p = .5 beside all that they must beat."""
    rows, findings = [], []
    for run in BOTH:
        seeds = seeds_of(trained, run)
        if not seeds:
            continue
        scored = [trained[run, seed][1] for seed in seeds]
        rows += [
            {"counts": run.binning, "guess": name, **row_of(trained, run, name)} for name in scored[0].index
        ]
        for ours, other in ((ours, other) for ours, others in PEERS.items() for other in others):
            for score in MEASURES:
                gain = pd.Series([table.loc[ours, score] - table.loc[other, score] for table in scored])
                said = verdict(gain, "the model wins", f"{other} wins")
                findings.append(f"{run.binning}, {score}, {ours} minus {other}: {told(gain)}: {said}.")
    return pd.DataFrame(rows), findings


def embedding(cells: ad.AnnData, trained: Trained, out: Path) -> Part:
    """AvgBIO of cell vectors, and UMAPs of the first seed's."""
    variable_genes(cells, out)
    plain = pd.DataFrame([{"vectors": key, "seed": 0, **avg_bio(cells, key)} for key in (GENES, MOST)])
    ours = [vectors_of(cells, folder_of(out, BOTH[0], seed), seed) for seed in seeds_of(trained, BOTH[0])]
    every = pd.concat([plain, *ours], ignore_index=True)
    every.to_csv(out / "avg_bio.csv", index=False, float_format="%.6g")
    best = plain["avg_bio"].max()
    by_name = {name: every.loc[every["vectors"] == name, "avg_bio"] for name in (CLS, POOLED, UNTRAINED)}
    first = scfast.models.load("bioformers", folder_of(out, BOTH[0], 0))
    scfast.tl.embed(cells, first, pool="cls", key_added=CLS, device="cpu", progress=False)
    draw_umaps(cells, [CLS, GENES], out)
    findings = [
        f"AvgBIO, {name}, minus the better of expression's ({best:.3f}): {told(values - best)}:"
        f" {verdict(values - best, 'the model wins', 'expression without a model wins')}."
        for name, values in by_name.items()
    ]
    gain = by_name[CLS].to_numpy() - by_name[UNTRAINED].to_numpy()
    findings.append(
        f"AvgBIO, {CLS}, trained minus untrained: {told(gain)}:"
        f" {verdict(gain, 'training helps', 'the untrained network is better')}."
    )
    return every, findings


def vectors_of(cells: ad.AnnData, folder: Path, seed: int) -> pd.DataFrame:
    """AvgBIO of what one model and its untrained network make of the cells; kept beside the model."""
    file, rows = folder / "avg_bio.csv", []
    if file.exists():
        return pd.read_csv(file)
    model = scfast.models.load("bioformers", folder)
    for name, source, pool in (
        (CLS, model, "cls"), (POOLED, model, "mean"), (UNTRAINED, model.untrained(seed), "cls"),
    ):  # fmt: skip
        scfast.tl.embed(cells, source, pool=pool, key_added=name, device="cpu", progress=False)
        rows.append({"vectors": name, "seed": seed, **avg_bio(cells, name)})
    pd.DataFrame(rows).to_csv(file, index=False)
    return pd.DataFrame(rows)


def avg_bio(cells: ad.AnnData, key: str) -> dict[str, float]:
    """Figures of the vectors ``key``."""
    return scfast.tl.avg_bio(cells, LABEL, use_rep=key).to_dict()


def variable_genes(cells: ad.AnnData, out: Path) -> None:
    """Put principal components of log-normalised genes beside the cells: those that the models read, and scanpy's."""
    import scanpy as sc

    plain = ad.AnnData(cells.X.copy(), var=cells.var)
    sc.pp.normalize_total(plain, target_sum=1e4)
    sc.pp.log1p(plain)
    sc.pp.highly_variable_genes(plain, n_top_genes=2000)
    read_by_models = scfast.models.load("bioformers", folder_of(out, BOTH[0], 0)).genes
    for key, genes in ((GENES, read_by_models), (MOST, plain.var_names[plain.var["highly_variable"]])):
        chosen = plain[:, list(genes)].copy()
        sc.pp.pca(chosen, n_comps=min(COMPONENTS, chosen.n_vars - 1), mask_var=None, random_state=0)
        cells.obsm[key] = chosen.obsm["X_pca"]


def draw_umaps(cells: ad.AnnData, keys: list[str], out: Path) -> None:
    """UMAPs of cell vectors side by side, coloured by population."""
    import matplotlib.pyplot as plt
    import scanpy as sc

    figure, axes = plt.subplots(1, len(keys), figsize=(5 * len(keys) + 2.4, 4.6), layout="constrained")
    for number, (key, ax) in enumerate(zip(keys, axes, strict=True)):
        shown = ad.AnnData(obs=cells.obs[[LABEL]].copy(), obsm={"X": cells.obsm[key]})
        sc.pp.neighbors(shown, use_rep="X", random_state=0)
        sc.tl.umap(shown, random_state=0)
        last = number == len(keys) - 1
        legend = "right margin" if last else "none"
        sc.pl.umap(shown, color=LABEL, ax=ax, show=False, title=key, frameon=False, legend_loc=legend)
    figure.savefig(out / "umap.png", dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    command()
