"""Does attention know which factor acts on which gene, and does it see interferon? One command, real data, baselines.

Networks of mean attention are judged by CollecTRI and TRRUST beside what any network must beat, in the manner of
BEELINE (Pratapa et al. 2020), and compared between control and stimulated cells (Kang et al. 2018).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import click
import numpy as np
import pandas as pd
import torch
from _findings import Part, as_markdown, as_text, told, verdict
from biological_priors import TRAINING, vocabulary
from expression_modelling import TRAINING as BINS_TRAINING

import scfast
from scfast.cli.console import Console, json_option
from scfast.train.bioformers import SCORES

BLOOD, KANG = "cells/pbmc_facs.h5ad", "cells/kang_ifnb_labelled.h5ad"
REFERENCES = {"CollecTRI": "grn/collectri_human.csv.gz", "TRRUST": "grn/trrust_rawdata.human.tsv"}
HALLMARKS = "genesets/msigdb_hallmark_v2025.Hs.symbols.gmt"
#: What interferon is known to act through, or on.
KNOWN = ("STAT1", "IRF7", "ISG15")
#: Cells that must hold both genes of an edge.
MIN_CELLS = 10
GENEFORMER, BIOFORMERS = "geneformer", "bioformers"
NAMES = {GENEFORMER: "Geneformer", BIOFORMERS: "BioFormers"}
MEASURES = {"auprc_ratio": "AUPRC ratio", "epr": "EPR"}


@dataclass(frozen=True)
class Size:
    """How much is computed."""

    steps: int
    bins_steps: int
    seeds: int
    cells: int | None
    null: int
    regulators: int
    targets: int
    correlated: int


FULL, QUICK = Size(2000, 3000, 3, None, 100, 100, 220, 300), Size(4, 4, 1, 240, 5, 30, 60, 50)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--data", type=click.Path(path_type=Path, file_okay=False), envvar="SCFAST_TEST_DATA", required=True,
    help="Folder with the cells of Zheng et al. 2017 and Kang et al. 2018, CollecTRI, TRRUST and hallmark gene sets."
    "  [default: SCFAST_TEST_DATA]",
)  # fmt: skip
@click.option(
    "-o", "--output", "out", type=click.Path(path_type=Path), default=Path("networks"), show_default=True,
    help="Folder for models, tables, figures and summary.md.",
)  # fmt: skip
@click.option("--seeds", type=click.IntRange(1), help="Models that are pretrained.  [default: 3]")
@click.option("--threads", default=2, show_default=True, help="Threads of torch and of the kernels.")
@click.option("--quick", is_flag=True, help="A rehearsal: few cells, few steps, one seed; no findings.")
@json_option
def command(
    data: Path, out: Path, seeds: int | None, threads: int, quick: bool, as_json: bool | None
) -> None:
    """Gene networks from attention, what they are worth, and what interferon changes in them.

    \b
    1. Geneformers of two layers are pretrained on sorted blood cells, one per seed, and as many BioFormers, whose
       320 genes are the most variable regulators and targets of the references.
    2. Networks of mean attention, in all cells and in five populations, judged by CollecTRI and TRRUST:
       AUPRC and early precision over chance, beside co-expression, detection rates, the untrained model,
       and references of the same degrees; intervals by jackknife over blocks of cells.
    3. How far seeds agree: rank correlation of edges, adjusted Rand index of gene programs.
    4. Kang's cells, which the models have never seen: edges that differ between control and IFN-beta, and
       the genes that STAT1, IRF7 and ISG15 influence.

    Allow an hour on one thread. Killed? Type the same command again: what is finished is kept.

    \b
    Examples:
      python examples/networks.py --data data
      python examples/networks.py --data data --seeds 5 -o five_seeds
      python examples/networks.py --data data --quick -o rehearsal
    """  # noqa: D301
    torch.set_num_threads(threads)
    console, size = Console(as_json), QUICK if quick else FULL
    data = data / "data" if (data / "data").is_dir() else data
    blood, kang = (read(data / name, size) for name in (BLOOD, KANG))
    n_seeds, scores, made = seeds or size.seeds, [], {}
    for seed in range(n_seeds):
        for family in NAMES:
            folder = folder_of(out, family, seed)
            train(console, blood, folder, family, size, seed, data)
            for kind in ("trained", "untrained"):
                cells = networks_of(console, blood, folder, family, kind, seed, data, size)
                for name in REFERENCES:
                    table = cells.uns[f"score_{name}"]["table"]
                    scores.append(table.assign(reference=name, family=family, kind=kind, seed=seed))
                made[family, kind, seed] = cells
        made[GENEFORMER, "kang", seed] = interferon(
            console, kang, folder_of(out, GENEFORMER, seed), seed, data, size
        )
    every = pd.concat(scores, ignore_index=True)
    every.to_csv(out / "scores.csv", index=False)
    parts = {"Models": models(out, n_seeds)}
    for family, name in NAMES.items():
        parts[f"Blood cells, {name}"] = judged(every[every["family"] == family], made[family, "trained", 0])
        parts[f"Seeds, {name}"] = agreement({seed: made[family, "trained", seed] for seed in range(n_seeds)})
    parts["Interferon beta"] = changes(made, n_seeds, out)
    for name, (table, findings) in parts.items():
        console.title(name)
        console.table(list(table.columns), table.map(as_text).to_numpy().tolist())
        for finding in findings:
            console.note(finding)
    draw(made, out)
    about = [
        "Geneformers and BioFormers of two layers, trained on sorted blood cells; weights of edges are mean attention"
        " over layers and heads in the cells that hold both genes. Ratios are over chance: 1 knows nothing. Intervals"
        " in brackets are over seeds (t, 95 %).",
        *(["A rehearsal: no finding."] if quick else []),
    ]
    (out / "summary.md").write_text(as_markdown("Gene networks", about, parts))
    console.event("done", output=out)


def read(file: Path, size: Size) -> ad.AnnData:
    """Cells, fewer in a rehearsal."""
    cells = scfast.io.read(file)
    if size.cells is not None:
        cells = cells[np.sort(np.random.default_rng(0).permutation(cells.n_obs)[: size.cells])].copy()
    return cells


def folder_of(out: Path, family: str, seed: int) -> Path:
    """Of a model."""
    return out / "models" / family / f"seed_{seed}"


def train(
    console: Console, cells: ad.AnnData, folder: Path, family: str, size: Size, seed: int, data: Path
) -> None:
    """A model of that kind and seed, in ``folder`` then; a BioFormers with its scores beside linear regression."""
    from scfast.tl.pretrain import progress_line
    from scfast.tl.train_bioformers import progress_line as progress_of_bins

    console.title(f"Training {NAMES[family]}, seed {seed}")
    if family == GENEFORMER:
        scfast.tl.pretrain(
            cells, folder, vocabulary=list(cells.var_names[vocabulary(cells)]), steps=size.steps, seed=seed,
            progress=lambda entry: console.event("pretraining", "  " + progress_line(entry), training=entry),
            **TRAINING,
        )  # fmt: skip
        return
    scfast.tl.train_bioformers(
        cells, folder, genes=inputs(cells, data, size), steps=size.bins_steps, seed=seed,
        progress=lambda entry: console.event("training", "  " + progress_of_bins(entry), training=entry),
        **BINS_TRAINING,
    )  # fmt: skip
    if not (folder / SCORES).exists():
        scfast.tl.expression_modelling(cells, folder, correlated=size.correlated)


def inputs(cells: ad.AnnData, data: Path, size: Size) -> list[str]:
    """Genes that a BioFormers reads: of the references' regulators, and of their other genes, those that vary most."""
    named = genes_of(cells, data)
    levels = cells.X.multiply(1e4 / cells.X.sum(1)).tocsr().log1p()
    variance = np.asarray(levels.power(2).mean(0) - np.square(levels.mean(0))).ravel()
    symbols, chosen = cells.var["symbol"].astype(str), np.zeros(cells.n_vars, dtype=bool)
    regulators = symbols.isin(named["sources"]).to_numpy()
    others = symbols.isin(named["genes"]).to_numpy() & ~regulators
    for kind, n in ((regulators, size.regulators), (others, size.targets)):
        chosen[np.argsort(-np.where(kind, variance, -1.0), kind="stable")[:n]] = True
    return list(cells.var_names[chosen])


def genes_of(cells: ad.AnnData, data: Path) -> dict[str, Any]:
    """The genes that any reference names, and its regulators, as arguments."""
    tables = [scfast.io.read_network(data / path) for path in REFERENCES.values()]
    sources = set().union(*(table["source"] for table in tables)) & set(cells.var["symbol"])
    targets = set().union(*(table["target"] for table in tables)) & set(cells.var["symbol"])
    return {
        "genes": sorted(sources | targets),
        "sources": sorted(sources | set(KNOWN)),
        "gene_symbols": "symbol",
    }


def networks_of(
    console: Console,
    cells: ad.AnnData,
    folder: Path,
    family: str,
    kind: str,
    seed: int,
    data: Path,
    size: Size,
) -> ad.AnnData:
    """Networks of blood cells and their scores; kept beside the model, and read from there."""
    file = folder / f"networks_{kind}.h5ad"
    if file.exists():
        return ad.read_h5ad(file)
    console.title(f"Networks of blood cells, {kind} {NAMES[family]}, seed {seed}")
    model = scfast.models.load(family, folder)
    model = model if kind == "trained" else model.untrained(seed)
    made = cells.copy()
    scfast.tl.grn(
        made, model, groupby="subpop", min_cells=MIN_CELLS, keep_blocks=True, seed=0,
        training=folder if kind == "trained" else None, **genes_of(cells, data),
    )  # fmt: skip
    for name, path in REFERENCES.items():
        scfast.tl.grn_score(
            made, data / path, gene_symbols="symbol", n_null=size.null, key_added=f"score_{name}"
        )
    del made.uns["grn"]["blocks"]  # hundreds of MB
    if kind == "trained":
        names = [str(name) for name in made.uns["grn"]["genes"]]
        scfast.tl.similarity(made, model, tokens=False, genes=names, min_cells=MIN_CELLS)
        scfast.tl.gene_programs(made, gene_sets=data / HALLMARKS, gene_symbols="symbol", share=0.02)
        del made.uns["similarity"]
    scfast.io.write_h5ad(made, file)
    return made


def interferon(
    console: Console, cells: ad.AnnData, folder: Path, seed: int, data: Path, size: Size
) -> ad.AnnData:
    """Networks of control and stimulated cells; kept beside the model, and read from there."""
    file = folder / "networks_kang.h5ad"
    if file.exists():
        return ad.read_h5ad(file)
    console.title(f"Networks of control and stimulated cells, seed {seed}")
    made = cells.copy()
    model = scfast.models.load("geneformer", folder)
    scfast.tl.grn(
        made, model, groupby="condition", compare=("ctrl", "stim"), min_cells=MIN_CELLS, training=folder,
        keep_blocks=True, **genes_of(cells, data) | {"genes": sorted(set(cells.var["symbol"]))},
    )  # fmt: skip
    for name, path in REFERENCES.items():
        scfast.tl.grn_score(
            made, data / path, gene_symbols="symbol", n_null=size.null, key_added=f"score_{name}"
        )
    del made.uns["grn"]["blocks"]
    read_from = set(made.var.loc[list(made.uns["grn"]["sources"]), "symbol"])
    for gene in KNOWN:
        if gene in read_from:
            scfast.tl.regulator(
                made, gene, reference=data / REFERENCES["CollecTRI"], gene_sets=data / HALLMARKS,
                gene_symbols="symbol", key_added=f"regulator_{gene}",
            )  # fmt: skip
    scfast.io.write_h5ad(made, file)
    return made


def models(out: Path, seeds: int) -> Part:
    """What the models' training says: a network is worth no more than its model."""
    from scfast.tl._model_verdict import model_verdict

    rows = [
        {"model": NAMES[family], "seed": seed, "verdict": model_verdict(folder_of(out, family, seed))}
        for family in NAMES
        for seed in range(seeds)
    ]
    return pd.DataFrame(rows), [
        "A Geneformer guesses which gene is hidden, for which there is no linear regression; a BioFormers guesses bins"
        " of counts, and stands beside regression of each gene's bin on those of the most correlated genes."
    ]


def judged(scores: pd.DataFrame, first: ad.AnnData) -> Part:
    """Ratios over chance by reference and network, means over seeds; attention against each baseline."""
    shown, findings = [], []
    for name in REFERENCES:
        about = first.uns[f"score_{name}"]["params"]
        findings.append(
            f"{name}: {about['edges']:,} edges among {about['pairs']:,} pairs of {about['regulators']} regulators and"
            f" {about['targets']} genes."
        )
    for (reference, network), part in scores.groupby(["reference", "network"], sort=False, observed=True):
        row: dict[str, Any] = {"reference": reference, "network": network}
        by = {
            "attention": part[(part["score"] == "network") & (part["kind"] == "trained")],
            "untrained": part[(part["score"] == "network") & (part["kind"] == "untrained")],
            "coexpression": part[(part["score"] == "coexpression") & (part["kind"] == "trained")],
            "detection": part[(part["score"] == "detection") & (part["kind"] == "trained")],
        }
        for measure, label in MEASURES.items():
            values = {name: rows.sort_values("seed")[measure].to_numpy() for name, rows in by.items()}
            for name, of_seeds in values.items():
                row[f"{label}, {name}"] = (
                    told(of_seeds, ".2f") if name in ("attention", "untrained") else f"{of_seeds.mean():.2f}"
                )
            row[f"{label}, degrees alone"] = f"{by['attention'][f'null_{measure}'].mean():.2f}"
            if network in ("all", "stratified"):
                best = max(("coexpression", "detection"), key=lambda name: values[name].mean())
                for name, other in (
                    (f"the better baseline ({best})", best),
                    ("the untrained model", "untrained"),
                ):
                    more = values["attention"] - values[other]
                    said = verdict(more, "attention finds more", "attention finds less")
                    findings.append(
                        f"{reference}, {network}: {label} of attention less that of {name} {told(more, '+.2f')}:"
                        f" {said}."
                    )
        shown.append(row)
    return pd.DataFrame(shown), findings


def agreement(made: dict[int, ad.AnnData]) -> Part:
    """Rank correlation of edges and Rand index of programs between seeds."""
    if len(made) < 2:
        return pd.DataFrame(), ["One seed says nothing."]
    cells = made[0].copy()
    for seed, own in made.items():
        for place in ("grn", "gene_programs"):
            cells.uns[f"{place}_{seed}"] = own.uns[place]
        cells.varp[f"grn_{seed}"] = own.varp["grn"]
        cells.uns[f"grn_{seed}"]["networks"]["varp"] = f"grn_{seed}"
        cells.var[f"gene_programs_{seed}"] = own.var["gene_programs"]
    scfast.tl.grn_agreement(
        cells, [f"grn_{seed}" for seed in made], programs=[f"gene_programs_{seed}" for seed in made]
    )
    pairs = cells.uns["grn_consensus"]["pairs"]
    numbers = [len(own.uns["gene_programs"]["programs"]) for own in made.values()]
    consensus = cells.var["grn_consensus"].dropna().nunique()
    return pairs, [
        f"Rank correlation of edges between seeds: mean {pairs['edges'].mean():.2f}, least {pairs['edges'].min():.2f}.",
        f"{' and '.join(map(str, numbers))} programs; adjusted Rand index between seeds: mean"
        f" {pairs['programs'].mean():.2f}; {consensus} consensus programs.",
    ]


def changes(made: dict[tuple[str, str, int], ad.AnnData], seeds: int, out: Path) -> Part:
    """Known interferon genes among the edges that change, in every seed."""
    rows, findings, tables = [], [], []
    for seed in range(seeds):
        cells = made[GENEFORMER, "kang", seed]
        symbol = cells.var["symbol"].astype(str)
        table = cells.uns["grn"]["changes"].copy()
        for end in ("source", "target"):
            table[end] = symbol.loc[table[end]].to_numpy()
        tables.append(table.assign(seed=seed))
        sure = table[table["q_value"] < 0.05]
        row: dict[str, Any] = {
            "seed": seed,
            "edges, q < 0.05, of the 1000 largest": f"{len(sure)} of {len(table)}",
            "largest": "; ".join(
                f"{x.source} > {x.target} {x.change:+.4f}" for x in table.head(3).itertuples()
            ),
        }
        for gene in KNOWN:
            key = f"regulator_{gene}"
            if key not in cells.uns:
                row[gene] = "not read"
                continue
            overlap = cells.uns[key]["overlap"].iloc[0]
            best = ", ".join(cells.uns[key]["influenced"]["gene"].head(3))
            known = f"known {overlap['overlap']:.0f} of {overlap['known']:.0f}, p = {overlap['p_value']:.2g}"
            row[gene] = f"{best}; {known if overlap['known'] else 'no target is known'}"
        rows.append(row)
    pd.concat(tables).to_csv(out / "changes.csv", index=False)
    kang = made[GENEFORMER, "kang", 0]
    missing = [gene for gene in KNOWN if f"regulator_{gene}" not in kang.uns]
    if missing:
        findings.append(
            f"{', '.join(missing)}: not among the genes that model and file share, or in too few cells; nothing can be"
            " said of it."
        )
    return pd.DataFrame(rows), findings


def draw(made: dict[tuple[str, str, int], ad.AnnData], out: Path) -> None:
    """Figures of the first seed."""
    for family, label in NAMES.items():
        for name in REFERENCES:
            file = out / f"curves_{label}_{name}.png"
            scfast.pl.grn_score(made[family, "trained", 0], key=f"score_{name}", show=False, save=file)
    kang = made[GENEFORMER, "kang", 0]
    scfast.pl.grn(kang, network="change", gene_symbols="symbol", show=False, save=out / "change.png")
    for gene in KNOWN:
        if f"regulator_{gene}" in kang.uns:
            scfast.pl.regulator(kang, key=f"regulator_{gene}", show=False, save=out / f"{gene}.png")


if __name__ == "__main__":
    command()
