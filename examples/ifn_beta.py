"""Which genes does a model turn to when it learns what interferon beta does to blood cells? One command, real data.

The experiment of the thesis "Attention on Key Genes" (Falkenstein 2024) on other cells: pretrain a small Geneformer,
fine-tune it to tell stimulated from control cells, and ask what fine-tuning changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import anndata as ad
import click
import numpy as np
import pandas as pd
import torch

import scfast
from scfast.cli.console import Console, json_option

#: What IFN-beta is known to switch on (Kang et al. 2018).
KEY_GENES = ("ISG15", "IFI6", "IFIT1", "IFIT3", "MX1")
#: What is trained, by name: the classifier alone, with the last of the two layers, or everything.
SETTINGS: dict[str, Any] = {"encoder frozen": "all", "last layer free": 1, "all free": "none"}
#: A small model on few cells takes a larger rate and smaller batches than Geneformer's authors use.
TRAINING = {"lr": 1e-3, "batch_tokens": 2048, "patience": 2, "validate_within": True}


@dataclass(frozen=True)
class Size:
    """How much is computed."""

    pretraining_steps: int
    epochs: int
    seeds: int
    cells: int | None


FULL, QUICK = Size(1000, 3, 3, None), Size(4, 1, 1, 240)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option(
    "--data",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Folder with pbmc_facs.h5ad (sorted blood cells, Zheng et al. 2017) and kang_ifnb_labelled.h5ad (control and"
    " IFN-beta, two donors, Kang et al. 2018).",
)
@click.option(
    "-o", "--output", "out", type=click.Path(path_type=Path), default=Path("ifn_beta"), show_default=True,
    help="Folder for models, tables and figures.",
)  # fmt: skip
@click.option("--seeds", type=int, help="Fine-tunings per setting and direction.  [default: 3]")
@click.option("--threads", default=2, show_default=True, help="Threads of torch and of the kernels.")
@click.option(
    "--quick", is_flag=True, help="A rehearsal in a minute: few cells, few steps, one seed; no findings."
)
@json_option
def command(
    data: Path, out: Path, seeds: int | None, threads: int, quick: bool, as_json: bool | None
) -> None:
    """Pretrain, fine-tune on IFN-beta, and compare what the models attend to.

    \b
    1. A Geneformer of two layers is pretrained on sorted blood cells, until it guesses hidden genes better
       than their frequencies allow (held-out loss below the unigram loss).
    2. It is fine-tuned to tell stimulated from control cells of one donor and tested on the other, both ways,
       with the encoder frozen, its last layer free, and all free; three seeds each.
    3. Attention maps before and after on the test donor: their cosine, layer by layer and head by head.
    4. Attention received, before and after: the places of ISG15, IFI6, IFIT1, IFIT3 and MX1 in stimulated cells
       of the test donor, beside their places by expression and by a Wilcoxon test.

    Allow twenty minutes on two threads. Killed? Type the same command again: finished models are kept.

    \b
    Examples:
      python examples/ifn_beta.py --data cells
      python examples/ifn_beta.py --data cells --seeds 5 -o five_seeds
      python examples/ifn_beta.py --data cells --quick -o rehearsal
    """  # noqa: D301
    torch.set_num_threads(threads)
    console = Console(as_json)
    size = QUICK if quick else FULL
    if seeds is not None and seeds < 1:
        raise click.BadParameter("at least one is needed", param_hint="--seeds")
    n_seeds = seeds or size.seeds
    blood, kang = read(data, size)
    vocabulary = shared_vocabulary(console, blood, kang)
    base = pretrain(console, blood, vocabulary, out / "pretrained", size)
    logs = finetune_all(console, kang, base, out, size, n_seeds)
    accuracy = accuracy_table(kang, logs)
    show(console, "Accuracy on the donor that was not trained on", accuracy, out / "accuracy.csv")
    draw_confusion(logs, out)
    shift = shift_table(console, kang, base, logs, out)
    show(
        console,
        "Cosine of the attention maps with the pretrained model's: mean [range over seeds]",
        by_head(shift),
    )
    genes = gene_places(console, kang, base, logs, out)
    show(
        console,
        "Places of the key genes among the genes of stimulated cells (1: the top)",
        genes,
        out / "genes.csv",
    )
    console.title("Written")
    console.fields({file.name: str(file) for file in sorted(out.glob("*.*"))})
    console.event("done", output=out)


def read(data: Path, size: Size) -> tuple[ad.AnnData, ad.AnnData]:
    """Blood cells to pretrain on, and Kang's cells."""
    both = [scfast.io.read(data / name) for name in ("pbmc_facs.h5ad", "kang_ifnb_labelled.h5ad")]
    if size.cells is not None:
        rows = [np.random.default_rng(0).permutation(cells.n_obs)[: size.cells] for cells in both]
        both = [cells[np.sort(chosen)].copy() for cells, chosen in zip(both, rows, strict=True)]
    return both[0], both[1]


def shared_vocabulary(console: Console, blood: ad.AnnData, kang: ad.AnnData) -> list[str]:
    """Genes, by Ensembl id, that both files measured and some blood cell expresses; says what is lost."""
    expressed = np.asarray((blood.X > 0).sum(0)).ravel() > 0
    shared = expressed & blood.var_names.isin(kang.var_names)
    known = kang.var_names.isin(blood.var_names[shared])

    def share(cells: ad.AnnData, kept: np.ndarray) -> str:
        return f"{np.asarray(cells.X[:, kept].sum()) / cells.X.sum():.1%} of the counts"

    console.title("Genes")
    facts = {
        "blood cells": f"{shared.sum():,} of {expressed.sum():,} expressed genes kept ({share(blood, shared)})",
        "Kang": f"{known.sum():,} of {kang.n_vars:,} genes kept ({share(kang, known)}); the file has been filtered to"
        " well-expressed genes, and counts per cell are sums over those",
        "key genes": ", ".join(name for name in KEY_GENES if name in set(kang.var["symbol"][known])),
    }
    console.fields(facts)
    console.event("genes", vocabulary=int(shared.sum()), **facts)
    return list(blood.var_names[shared])


def pretrain(console: Console, blood: ad.AnnData, vocabulary: list[str], folder: Path, size: Size) -> str:
    """The pretrained model's name for ``model=``."""
    from scfast.tl.pretrain import progress_line

    console.title("Pretraining")
    log = scfast.tl.pretrain(
        blood, folder, vocabulary=vocabulary, steps=size.pretraining_steps,
        progress=lambda entry: console.event("pretraining", "  " + progress_line(entry), training=entry),
    )  # fmt: skip
    console.event(
        "pretrained",
        f"  Better than gene frequencies by {log['gain']:.3f} ± {1.96 * log['gain_se']:.3f} nats per hidden gene",
        gain=log["gain"],
        gain_se=log["gain_se"],
    )
    return f"geneformer:{folder}"


@dataclass(frozen=True)
class Run:
    """One fine-tuning."""

    trained_on: str
    tested_on: str
    setting: str
    seed: int
    model: str
    log: dict[str, Any]


def finetune_all(
    console: Console, kang: ad.AnnData, base: str, out: Path, size: Size, n_seeds: int
) -> list[Run]:
    """Every direction, setting and seed."""
    console.title("Fine-tuning")
    donors = sorted(kang.obs["donor"].astype(str).unique())
    runs = []
    for seed, tested, setting in product(range(n_seeds), donors, SETTINGS):
        trained = " ".join(donor for donor in donors if donor != tested)
        folder = out / "models" / f"test_{tested}_{setting.replace(' ', '_')}_{seed}"
        log = scfast.tl.finetune(
            kang, folder, model=base, label="condition", group="donor", test_groups=[tested],
            freeze=SETTINGS[setting], seed=seed, epochs=size.epochs, progress=False, **TRAINING,
        )  # fmt: skip
        runs.append(Run(trained, tested, setting, seed, f"geneformer:{folder}", log))
        console.event(
            "finetuned",
            f"  {trained} -> {tested}   {setting:<16}   seed {seed}   accuracy {log['test']['accuracy']:.3f}"
            f"   macro-F1 {log['test']['macro_f1']:.3f}   {log['seconds']:>4.0f} s",
            tested_on=tested,
            setting=setting,
            seed=seed,
            test=log["test"],
        )
    return runs


def accuracy_table(kang: ad.AnnData, runs: list[Run]) -> pd.DataFrame:
    """Means over seeds, their range, and the union of the seeds' 95 % intervals between cells; baselines below."""
    rows = []
    for (trained, tested, setting), group in _by(runs, "trained_on", "tested_on", "setting"):
        tests = [run.log["test"] for run in group]
        rows.append(_row(trained, tested, setting, tests))
    for trained, tested in dict.fromkeys((run.trained_on, run.tested_on) for run in runs):
        rows += [_row(trained, tested, name, [scores]) for name, scores in baselines(kang, tested).items()]
    return pd.DataFrame(rows)


def _row(trained: str, tested: str, setting: str, tests: list[dict[str, Any]]) -> dict[str, Any]:
    accuracy, f1 = ([test[name] for test in tests] for name in ("accuracy", "macro_f1"))
    low, high = zip(*(test["accuracy_interval"] for test in tests), strict=True)
    return {
        "trained": trained, "tested": tested, "setting": setting, "seeds": len(tests),
        "accuracy": np.mean(accuracy), "least": min(accuracy), "most": max(accuracy),
        "interval_low": min(low), "interval_high": max(high), "macro_f1": np.mean(f1),
    }  # fmt: skip


def baselines(kang: ad.AnnData, tested: str) -> dict[str, dict[str, Any]]:
    """What needs no transformer: the commoner class, one gene with a threshold, and logistic regression."""
    from sklearn.linear_model import LogisticRegression

    from scfast.train.scores import classification_scores, confusion_matrix

    counts = np.asarray(kang.X.todense())
    logged = np.log1p(1e4 * counts / counts.sum(1, keepdims=True))
    classes, codes = np.unique(kang.obs["condition"].astype(str), return_inverse=True)
    test = (kang.obs["donor"].astype(str) == tested).to_numpy()
    one = logged[:, [list(kang.var["symbol"]).index(KEY_GENES[0])]]
    predicted = {
        "commoner class": np.full(test.sum(), np.bincount(codes[~test]).argmax()),
        f"{KEY_GENES[0]} alone": LogisticRegression().fit(one[~test], codes[~test]).predict(one[test]),
        "logistic regression": LogisticRegression(max_iter=2000)
        .fit(logged[~test], codes[~test])
        .predict(logged[test]),
    }
    return {
        name: classification_scores(confusion_matrix(codes[test], guess, classes.size), list(classes), 0)
        for name, guess in predicted.items()
    }


def draw_confusion(runs: list[Run], out: Path) -> None:
    """The first seed of every setting, side by side, for each test donor."""
    for (tested,), group in _by(runs, "tested_on"):
        first = {run.setting: run.log for run in group if run.seed == 0}
        scfast.pl.confusion(first, show=False, save=out / f"confusion_tested_on_{tested}.png")


def shift_table(console: Console, kang: ad.AnnData, base: str, runs: list[Run], out: Path) -> pd.DataFrame:
    """Cosine of the attention maps of the pretrained and the fine-tuned model, by layer and head, over seeds."""
    console.title("Attention maps, before and after")
    tables = []
    for (tested,), group in _by(runs, "tested_on"):
        cells = _cells_of(kang, tested)
        for run in group:
            key = f"{run.setting}, seed {run.seed}"
            scfast.tl.attention_shift(cells, base, run.model, key_added=key, progress=False)
            tables.append(cells.uns[key]["cosine"].assign(tested=tested, setting=run.setting, seed=run.seed))
        keys = [f"{setting}, seed 0" for setting in SETTINGS]
        scfast.pl.attention_shift(cells, keys=keys, show=False, save=out / f"shift_tested_on_{tested}.png")
        console.event("shift", f"  donor {tested}: {len(group)} models", tested_on=tested)
    cosines = pd.concat(tables).groupby(["tested", "setting", "layer", "head"], sort=False)["mean"]
    table = cosines.agg(["mean", "min", "max"]).set_axis(["cosine", "least", "most"], axis=1).reset_index()
    table.to_csv(out / "shift.csv", index=False, float_format="%.6g")
    return table


def by_head(shift: pd.DataFrame) -> pd.DataFrame:
    """A row per layer, a column per head, as text."""
    text = [f"{row.cosine:.3f} [{row.least:.3f}, {row.most:.3f}]" for row in shift.itertuples()]
    wide = shift.assign(text=text).pivot_table(
        index=["tested", "setting", "layer"], columns="head", values="text", aggfunc="first", sort=False
    )
    return wide.add_prefix("head ").reset_index()


def _cells_of(kang: ad.AnnData, donor: str) -> ad.AnnData:
    return kang[(kang.obs["donor"].astype(str) == donor).to_numpy()].copy()


def gene_places(console: Console, kang: ad.AnnData, base: str, runs: list[Run], out: Path) -> pd.DataFrame:
    """Places of the key genes in stimulated cells of the test donor, by attention and by what it must beat."""
    console.title("Attention received in stimulated cells")
    symbols = kang.var["symbol"].astype(str)
    tables = []
    for tested in dict.fromkeys(run.tested_on for run in runs):
        cells = _cells_of(kang, tested)
        compared = [("pretrained", 0, base)]
        compared += [(run.setting, run.seed, run.model) for run in runs if run.tested_on == tested]
        for setting, seed, model in compared:
            places = _places(cells, model).assign(tested=tested, setting=setting, seed=seed)
            tables.append(places)
        console.event("attention", f"  donor {tested}: {len(compared)} models", tested_on=tested)
    every = pd.concat(tables, ignore_index=True)
    every["symbol"] = symbols.reindex(every["gene"]).to_numpy()
    every.to_csv(out / "genes_by_seed.csv", index=False, float_format="%.6g")
    of = every[every["symbol"].isin(KEY_GENES)]
    columns = ["attention", "attention_difference", "expression", "expression_difference", "wilcoxon"]
    grouped = of.groupby(["tested", "setting", "symbol"], sort=False, observed=True)
    spread = grouped["attention"].agg(["min", "max"]).add_prefix("attention_")
    return grouped[["genes", *columns]].median().astype(int).join(spread).reset_index()


def _places(cells: ad.AnnData, model: str) -> pd.DataFrame:
    """Place of each gene that a tenth of the stimulated cells has, by mean attention, its difference to control, ..."""
    scfast.tl.received(cells, model, groupby="condition", store_cells=False, progress=False)
    scfast.tl.compare_de(cells, score="mean")
    scfast.tl.compare_de(cells, score="difference", key_added="difference")
    mean, difference = (cells.uns[key]["table"] for key in ("compare_de", "difference"))
    mean, difference = (
        table[(table["group"] == "stim").to_numpy()].set_index("gene") for table in (mean, difference)
    )
    rank = {"ascending": False, "method": "first"}
    return pd.DataFrame(
        {
            "genes": len(mean),
            "attention": mean["attention_place"],
            "attention_difference": difference["attention_place"],
            "expression": mean["expression"].rank(**rank),
            "expression_difference": difference["expression_difference"].rank(**rank),
            "wilcoxon": mean["de_place"],
        }
    ).reset_index()


def _by(runs: list[Run], *names: str) -> list[tuple[tuple[Any, ...], list[Run]]]:
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(tuple(getattr(run, name) for name in names), []).append(run)
    return list(groups.items())


def show(console: Console, title: str, table: pd.DataFrame, file: Path | None = None) -> None:
    """Print a table, and write it."""
    if file is not None:
        table.to_csv(file, index=False, float_format="%.6g")
    console.title(title)
    text = table.map(lambda value: f"{value:.3f}" if isinstance(value, float) else str(value))
    console.table(list(table.columns), text.to_numpy().tolist(), left=3)
    console.event("table", title=title, rows=table.to_dict("records"))


if __name__ == "__main__":
    command()
