"""Where does biology live in a model of blood cells? One command, real data, and what each answer must beat.

The questions of "Identifying Biological Priors and Structure in Single-Cell Foundation Models", asked of a small
Geneformer that is pretrained here from several seeds, of the same network untrained, and of expression itself.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import click
import numpy as np
import pandas as pd
import torch
from _findings import Part, as_markdown, as_text, told, verdict
from scipy import sparse, stats

import scfast
from scfast.cli.console import Console, json_option

CELLS, LABEL = "cells/pbmc_facs.h5ad", "celltype"
#: A table that was not made from these cells: RNA of bulk tissues, from the highest.
TISSUES, TISSUE_COLUMN = "genes/hpa_gene_annotation_2019.csv.gz", "RNA TS TPM"
HALLMARKS = "genesets/msigdb_hallmark_v2025.Hs.symbols.gmt"
TRAINED, UNTRAINED, EXPRESSION = "trained", "untrained", "expression"
KINDS = (TRAINED, UNTRAINED)
#: Genes in so many of the cells are learnt: of rarer ones, few cells teach too little.
MIN_DETECTION = 0.05
#: Many small steps, and half the cells as they were counted: on few cells the tiny preset learns faster so.
TRAINING: dict[str, Any] = {"batch_tokens": 2048, "lr": 4e-3, "count_noise": 0.5, "held_out": 0.05}
#: What is called significant.
Q = 0.05


@dataclass(frozen=True)
class Size:
    """How much is computed."""

    steps: int
    seeds: int
    cells: int | None
    resamplings: int


FULL, QUICK = Size(2000, 3, None, 1000), Size(4, 1, 200, 50)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--data", type=click.Path(path_type=Path, file_okay=False), envvar="SCFAST_TEST_DATA", required=True,
    help=f"Folder with {CELLS} (sorted blood cells, Zheng et al. 2017), {TISSUES} (Human Protein Atlas) and"
    f" {HALLMARKS}.  [default: SCFAST_TEST_DATA]",
)  # fmt: skip
@click.option(
    "-o", "--output", "out", type=click.Path(path_type=Path), default=Path("biological_priors"), show_default=True,
    help="Folder for models, tables, figures and summary.md.",
)  # fmt: skip
@click.option("--seeds", type=click.IntRange(1), help="Models that are pretrained.  [default: 3]")
@click.option("--threads", default=2, show_default=True, help="Threads of torch and of the kernels.")
@click.option("--quick", is_flag=True, help="A rehearsal: few cells, few steps, one seed; no findings.")
@json_option
def command(
    data: Path, out: Path, seeds: int | None, threads: int, quick: bool, as_json: bool | None
) -> None:
    """Pretrain a model of blood cells, and ask where concepts are in it, beside the same network untrained.

    \b
    1. Probes: how well ten sorted populations can be read from each layer; beside it shuffled labels, logistic
       regression of the same states, and classifiers of expression, without any model.
    2. Similarity: how much each layer changes the vector of a cell, and how alike it makes the cell's genes.
    3. Prevalence: whether genes of a tissue get more attention than their share of the cell, against clusters
       permuted over genes of like detection and rank.
    4. Enrichment: hallmark gene sets among the genes attended to most, population by population.

    Findings are sentences made from the measured numbers, whoever wins. Allow twenty minutes on two threads. Killed,
    or more seeds wanted? Type the command again: what is finished is kept.

    \b
    Examples:
      python examples/biological_priors.py --data data
      python examples/biological_priors.py --data data --seeds 5
      python examples/biological_priors.py --data data --quick -o rehearsal
    """  # noqa: D301
    torch.set_num_threads(threads)
    console, size = Console(as_json), QUICK if quick else FULL
    data = data / "data" if (data / "data").is_dir() else data
    cells = read(data, size)
    logs: dict[int, dict[str, Any]] = {}
    measured: dict[str, ad.AnnData] = {}
    for seed in range(seeds or size.seeds):
        folder = out / "models" / f"seed_{seed}"
        logs[seed] = pretrain(console, cells, folder, size, seed)
        for kind in KINDS:
            measured[f"{kind}, seed {seed}"] = measure(console, cells, folder, kind, logs[seed])
    parts = {
        "Pretraining": pretraining(logs, cells),
        "Probes": probes(cells, measured, out),
        "Similarity of layers": similarity(measured, out),
        "Prevalence of tissues": prevalence(cells, measured, data / TISSUES, size, out),
        "Hallmark gene sets": enrichment(cells, measured, data / HALLMARKS, out),
    }
    for name, (table, findings) in parts.items():
        console.title(name)
        console.table(list(table.columns), table.map(as_text).to_numpy().tolist())
        for finding in findings:
            console.note(finding)
        console.event("findings", part=name, findings=findings, rows=table.to_dict("records"))
    about = [
        f"{cells.n_obs:,} cells of {cells.obs[LABEL].nunique()} sorted populations; {len(logs)} models. Brackets hold"
        " 95 % t intervals over seeds.",
        *["**A rehearsal: too little was trained and measured for any finding.**"] * quick,
    ]
    (out / "summary.md").write_text(
        as_markdown("Biological priors of a small model of blood cells", about, parts)
    )
    console.title("Written")
    console.fields({file.name: str(file) for file in sorted(out.glob("*.*"))})
    console.event("done", output=out)


def read(data: Path, size: Size) -> ad.AnnData:
    """The sorted cells."""
    cells = scfast.io.read(data / CELLS)
    if size.cells is not None:
        cells = cells[np.sort(np.random.default_rng(0).permutation(cells.n_obs)[: size.cells])].copy()
    return cells


def vocabulary(cells: ad.AnnData) -> np.ndarray:
    """Which genes enough cells have, bool [genes]."""
    return np.asarray((cells.X > 0).mean(0)).ravel() >= MIN_DETECTION


def pretrain(console: Console, cells: ad.AnnData, folder: Path, size: Size, seed: int) -> dict[str, Any]:
    """The training log of a model, which is in ``folder`` then."""
    from scfast.tl.pretrain import progress_line

    console.title(f"Pretraining, seed {seed}")
    return scfast.tl.pretrain(
        cells, folder, vocabulary=list(cells.var_names[vocabulary(cells)]), steps=size.steps, seed=seed,
        progress=lambda entry: console.event("pretraining", "  " + progress_line(entry), training=entry), **TRAINING,
    )  # fmt: skip


def measure(console: Console, cells: ad.AnnData, folder: Path, kind: str, log: dict[str, Any]) -> ad.AnnData:
    """The cells with probes, similarities and rollout of one model; kept beside it, and read from there."""
    file, made_from = folder / f"{kind}.h5ad", json.dumps([log["settings"], log["data"]])
    if file.exists() and (kept := ad.read_h5ad(file)).uns["made_from"] == made_from:
        return kept
    model = scfast.models.load("geneformer", folder)
    model = model if kind == TRAINED else model.untrained(log["settings"]["seed"])
    scfast.tl.probe(cells, model, LABEL, n_sample=cells.n_obs, confirm="all", progress=False)
    scfast.tl.similarity(cells, model, progress=False)
    scfast.tl.rollout(cells, model, groupby=LABEL, progress=False)
    found = ad.AnnData(obs=cells.obs, var=cells.var, layers={"rollout": cells.layers["rollout"]})
    found.uns = {
        **{name: cells.uns[name] for name in ("probe", "similarity", "rollout")},
        "made_from": made_from,
    }
    found.write_h5ad(file)
    console.event(
        "measured", f"  {kind}: probes, similarities and rollout of {cells.n_obs:,} cells", kind=kind
    )
    return found


def gather(measured: dict[str, ad.AnnData], tool: str) -> ad.AnnData:
    """One tool's results of all models, each under the model's name."""
    first = next(iter(measured.values()))
    together = ad.AnnData(obs=first.obs, var=first.var)
    for name, found in measured.items():
        together.uns[name] = found.uns[tool]
        if tool in found.layers:
            together.layers[name] = found.layers[tool]
    return together


def by_kind(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Tables of models below each other, with the columns ``kind`` and ``seed``."""
    split = {name: (name.partition(", seed ")[0], int(name.partition(", seed ")[2] or 0)) for name in tables}
    return pd.concat(
        [table.assign(kind=split[name][0], seed=split[name][1]) for name, table in tables.items()],
        ignore_index=True,
    )


def pretraining(logs: dict[int, dict[str, Any]], cells: ad.AnnData) -> Part:
    """Whether the models learnt anything."""
    table = pd.DataFrame(
        {
            "model": f"{TRAINED}, seed {seed}", "steps": log["settings"]["steps"],
            "held-out loss": log["history"][-1]["held_out_loss"], "unigram loss": log["unigram_loss"],
            "gain": log["gain"], "± between cells": 1.96 * log["gain_se"],
        }
        for seed, log in logs.items()
    )  # fmt: skip
    better, known = int((table["gain"] > table["± between cells"]).sum()), vocabulary(cells)
    return table, [
        f"{better} of {len(table)} models guess hidden genes of held-out cells better than gene frequencies do; gains"
        f" are {table['gain'].min():.3f} to {table['gain'].max():.3f} nats per gene.",
        f"The vocabulary has {known.sum():,} genes, each in at least {MIN_DETECTION:.0%} of {cells.n_obs:,} cells, with"
        f" {cells.X[:, known].sum() / cells.X.sum():.1%} of the counts.",
    ]


def probes(cells: ad.AnnData, measured: dict[str, ad.AnnData], out: Path) -> Part:
    """Where the sorted populations can be read."""
    together = gather(measured, "probe")
    scfast.pl.probe(together, key=list(measured)[:2], show=False, save=out / "probes.png")
    every = by_kind({name: together.uns[name]["table"] for name in measured})
    every.to_csv(out / "probes.csv", index=False, float_format="%.6g")
    plain = baselines(cells)
    columns = ["f1", "f1_se", "logistic", "control"]
    mean = every.groupby(["kind", "layer"], sort=False)[columns].mean().reset_index()
    f1 = every.pivot_table(index=["kind", "seed"], columns="layer", values="f1")
    last, gain = f1.columns[-1], f1.loc[TRAINED] - f1.loc[UNTRAINED]
    depth = {kind: f1.loc[kind][last] - f1.loc[kind][0] for kind in KINDS}
    best = plain.loc[plain["f1"].idxmax()]
    behind = f1.loc[TRAINED].max(axis=1) - best["f1"]
    off = every["f1"] - every["logistic"]
    return pd.concat([mean, plain], ignore_index=True), [
        *(
            f"Macro-F1 after layer {layer}, trained minus untrained: {told(gain[layer])}: "
            f"{verdict(gain[layer], 'training helps', 'the untrained network is better')}."
            for layer in f1.columns
        ),
        *(
            f"Macro-F1 after layer {last} minus that of the embeddings, {kind}: {told(depth[kind])}: "
            f"{verdict(depth[kind], 'layers add to what can be read', 'layers take away from it')}."
            for kind in KINDS
        ),
        f"Best layer of a trained model minus '{best['kind']}' ({best['f1']:.3f} ± {1.96 * best['f1_se']:.3f} between"
        f" folds): {told(behind)}: {verdict(behind, 'the model wins', 'expression without a model wins')}.",
        f"One-pass discriminants minus L-BFGS logistic regression of the same states: {off.min():+.3f} to"
        f" {off.max():+.3f} macro-F1, on average {off.mean():+.3f}.",
        f"Shuffled labels: macro-F1 {every['control'].min():.3f} to {every['control'].max():.3f}; chance is"
        f" {every['chance'].iloc[0]:.3f}.",
    ]


def baselines(cells: ad.AnnData) -> pd.DataFrame:
    """Macro-F1 from log-normalised expression of the same genes: no model at all."""
    from sklearn.decomposition import PCA
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import f1_score
    from sklearn.model_selection import StratifiedKFold
    from sklearn.pipeline import make_pipeline

    counts, labels = cells.X[:, vocabulary(cells)].toarray(), cells.obs[LABEL].astype(str).to_numpy()
    logged = np.log1p(1e4 * counts / counts.sum(1, keepdims=True))
    discriminant = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.1)  # as tl.probe, of as many numbers
    classifiers = {
        "64 components, discriminant": make_pipeline(PCA(64, random_state=0), discriminant),
        "all genes, logistic regression": LogisticRegression(C=0.1, max_iter=300),
    }
    rows = []
    for name, classifier in classifiers.items():
        guesses, f1 = labels.copy(), []
        for train, test in StratifiedKFold(5, shuffle=True, random_state=0).split(logged, labels):
            guesses[test] = classifier.fit(logged[train], labels[train]).predict(logged[test])
            f1.append(f1_score(labels[test], guesses[test], average="macro"))
        total = f1_score(labels, guesses, average="macro")
        rows.append({"kind": f"{EXPRESSION}: {name}", "f1": total, "f1_se": stats.sem(f1)})
    return pd.DataFrame(rows)


def similarity(measured: dict[str, ad.AnnData], out: Path) -> Part:
    """How much each layer changes the vector of a cell, and how alike the genes of a cell are after it."""
    together = gather(measured, "similarity")
    order = [name for kind in KINDS for name in measured if name.startswith(kind)]
    scfast.pl.layer_map(together, key=order, show=False, save=out / "layers.png")
    scfast.pl.similarity_distribution(together, key=list(measured)[:2], show=False, save=out / "tokens.png")
    layers, tokens = (by_kind({x: together.uns[x][part] for x in measured}) for part in ("table", "tokens"))
    genes = tokens[tokens["pair"] == "gene-gene"].rename(columns={"cell_mean": "gene_cosine"})
    every = layers.merge(genes[["kind", "seed", "layer", "gene_cosine"]], on=["kind", "seed", "layer"])
    every.to_csv(out / "similarity.csv", index=False, float_format="%.6g")
    asked = {
        "change": "Layer {} changes the vector of a cell (1 - cosine) by",
        "gene_cosine": "After layer {} the genes of a cell have a mean cosine of",
    }
    findings = []
    for column, question in asked.items():
        table = every.pivot_table(index=["kind", "seed"], columns="layer", values=column)
        for layer in table.columns:
            trained, untrained = (table.loc[kind][layer] for kind in KINDS)
            larger = verdict(trained - untrained, "training raises it", "training lowers it")
            means = f"{told(trained, '.3f')} when trained, {told(untrained, '.3f')} when not"
            findings.append(f"{question.format(layer)} {means}: {larger}.")
    shown = ["change", "to_last", "gene_cosine"]
    return every.groupby(["kind", "layer"], sort=False)[shown].mean().reset_index(), findings


def with_expression(together: ad.AnnData, cells: ad.AnnData) -> ad.AnnData:
    """The cells with one more "model": a gene's score is its share of the counts, over the same tokens."""
    first = next(iter(together.layers))
    tokens = together.layers[first].tocsr()
    rows = np.repeat(np.arange(cells.n_obs), np.diff(tokens.indptr))
    counts = np.asarray(sparse.csr_matrix(cells.X)[rows, tokens.indices], dtype=np.float64).ravel()
    share = counts / np.bincount(rows, counts)[rows]
    together.layers[EXPRESSION] = sparse.csr_matrix(
        (share, tokens.indices, tokens.indptr), shape=tokens.shape
    )
    together.uns[EXPRESSION] = {"table": together.uns[first]["table"], "params": {"groupby": LABEL}}
    return together


def prevalence(cells: ad.AnnData, measured: dict[str, ad.AnnData], file: Path, size: Size, out: Path) -> Part:
    """Whether genes of a tissue get more attention than their share of the cell."""
    together = with_expression(gather(measured, "rollout"), cells)
    scfast.tl.prevalence(
        together, scfast.io.read_clusters(file, TISSUE_COLUMN), keys=[*measured, EXPRESSION], groupby=LABEL,
        n_bootstrap=size.resamplings, n_permutations=size.resamplings,
    )  # fmt: skip
    scfast.pl.prevalence(
        together, models=list(measured)[:2], n_clusters=8, show=False, save=out / "prevalence.png"
    )
    table = together.uns["prevalence"]["table"].astype({"model": str, "group": str, "cluster": str})
    every = by_kind(dict(list(table.groupby("model", sort=False))))
    every.to_csv(out / "prevalence.csv", index=False, float_format="%.6g")
    known = every[every["cluster"] != "unassigned"]
    pairs = known.assign(sign=np.sign(known["difference"] - known["null_mean"]))
    pairs = pairs.groupby(["kind", "group", "cluster"], sort=False)
    spread = pairs.agg(
        genes=("genes", "first"), difference=("difference", "mean"), low=("low", "min"), high=("high", "max"),
        null_low=("null_low", "min"), null_high=("null_high", "max"), q=("q_value", "max"), sign=("sign", "mean"),
    ).reset_index()  # fmt: skip
    found = spread[(spread["q"] < Q) & (spread["sign"].abs() == 1)]
    mine = found[found["kind"] == TRAINED].sort_values("difference", key=abs, ascending=False)
    mine = mine.drop(columns=["kind", "q", "sign"])
    mine.loc[:, "difference":"null_high"] *= 100
    assigned, sizes = (
        together.uns["prevalence"]["groups"]["assigned"],
        known.groupby("cluster")["genes"].max(),
    )
    return mine.head(12), [
        f"{sizes.sum():,} genes of {len(sizes)} tissues have tokens: {assigned.min():.1%} to {assigned.max():.1%} of"
        " the genes of a cell.",
        *counted(found, known, "pairs of population and tissue lie beyond their null"),
        "The table holds the largest differences that all trained models share: percentage points of attention beyond"
        " the share of genes, with intervals between cells and ranges of the null, each the widest over seeds."
        if len(mine) else "No pair lies beyond its null in every trained model.",
    ]  # fmt: skip


def counted(found: pd.DataFrame, tested: pd.DataFrame, what: str) -> list[str]:
    """How many are significant, kind by kind; ``found``: in every seed."""
    sentences = []
    for kind, part in tested.groupby("kind", sort=False):
        each = (part["q_value"] < Q).groupby(part["seed"]).sum()
        together = f", {(found['kind'] == kind).sum()} in every seed" if len(each) > 1 else ""
        sentences.append(
            f"{kind}: {', '.join(map(str, each))} of {len(part) // len(each)} {what} (q < {Q:g}){together}."
        )
    return sentences


def enrichment(cells: ad.AnnData, measured: dict[str, ad.AnnData], file: Path, out: Path) -> Part:
    """Hallmark gene sets among the genes attended to most, and among those expressed most."""
    together = with_expression(gather(measured, "rollout"), cells)
    tables, tops = {}, {}
    for name in [*measured, EXPRESSION]:
        scfast.tl.enrich(together, file, key=name, groupby=LABEL, gene_symbols="symbol")
        if name == next(iter(measured)):
            scfast.pl.enrich(together, n_sets=5, show=False, save=out / "enrichment.png")
        tables[name] = together.uns["enrich"]["table"].astype({"group": str, "gene_set": str})
        top = together.uns["enrich"]["top_genes"].astype(str)
        tops[name] = set(zip(top["group"], top["gene"], strict=True))
    every = by_kind(tables)
    every.to_csv(out / "enrichment.csv", index=False, float_format="%.6g")
    pairs = every.groupby(["kind", "group", "gene_set"], sort=False)
    worst = pairs.agg(
        overlap=("overlap", "mean"), expected=("expected", "mean"), q=("q_value", "max")
    ).reset_index()
    found = worst[worst["q"] < Q]
    plain = found[found["kind"] == EXPRESSION].set_index(["group", "gene_set"]).index
    mine = found[found["kind"] == TRAINED].sort_values("q").drop(columns="kind")
    mine["by expression too"] = mine.set_index(["group", "gene_set"]).index.isin(plain)
    n, groups = int(mine["by expression too"].sum()), cells.obs[LABEL].nunique()
    shared = {
        k: [len(tops[x] & tops[EXPRESSION]) / groups for x in measured if x.startswith(k)] for k in KINDS
    }
    return mine.head(15), [
        *counted(found, every, "pairs of population and hallmark set are over-represented"),
        f"Of {len(mine)} pairs that all trained models find, expression of the same genes finds {n}.",
        *(
            f"Of its 100 most attended genes a population shares with its 100 most expressed, {kind}:"
            f" {told(counts, '.1f')}."
            for kind, counts in shared.items()
        ),
    ]


if __name__ == "__main__":
    command()
