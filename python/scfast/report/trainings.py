"""The log of a training as a section of a report: losses, scores, their intervals, and what they must beat."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from scfast.report.content import Figure, Section, Table
from scfast.report.figures import figure_from

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FILE = "training_log.json"
#: Where logs lie in a folder of results: of a training itself, and of the demo's model.
PLACES = (Path(), Path("model"))
#: What a log has that the other kinds of training lack, the most telling first -> title, meaning, caveat.
KINDS = {
    "scores": (
        "Predicting perturbations",
        "Pearson correlations between predicted and measured mean expression after perturbations that training never"
        " saw; of the changes against the control's mean, and of the 20 genes that change most.",
        "A model is worth what it adds to the sum of single effects and to the mean of the training perturbations;"
        " half of the cells says how far the measurement repeats itself.",
    ),
    "test": (
        "Telling classes apart",
        "A classifier on the first token's last state, scored once on test cells that decided nothing.",
        "Always guessing the commonest class is the baseline. Cells of one donor are alike: where no group was held"
        " out, a score says nothing of other donors.",
    ),
    "unigram_loss": (
        "Learning to guess hidden genes",
        "The cross-entropy of genes hidden in cells never trained on, in nats, as training went on.",
        "What must be beaten is the loss of gene frequencies alone, which do not look at the cell.",
    ),
    "baseline": (
        "Learning to guess the bins of counts",
        "The cross-entropy of bins hidden in cells never trained on, in nats, as training went on.",
        "What must be beaten are each gene's bin frequencies, which do not look at the cell.",
    ),
}


def logs_in(folder: Path) -> Iterator[dict[str, Any]]:
    """Logs of trainings in a folder of results.

    Raises
    ------
    ValueError
        When a file is no log.
    """
    from scfast.train.fit import read_log

    for place in PLACES:
        if (file := folder / place / FILE).is_file():
            yield read_log(file)


def section_of_log(log: Mapping[str, Any]) -> tuple[Section, list[str]]:
    """The section, and what went wrong with its figures."""
    kind = next((name for name in KINDS if name in log), None)
    title, meaning, caveat = KINDS[kind] if kind else ("Training", "A training that has not finished.", "")
    figures: list[Figure] = []
    failures = []
    for plot, caption in _pictures(kind, log):
        try:
            figures.append(figure_from(partial(_draw, plot, log), "training", f"{title}: {caption}", caption))
        except Exception as error:  # a figure that cannot be drawn takes nothing else with it
            failures.append(f"training: pl.{plot} could not be drawn: {error}")
    settings = {name: str(value) for name, value in log["settings"].items() if not isinstance(value, Mapping)}
    told = {
        name: str(log[name]) for name in ("model", "label", "where", "recode") if log.get(name) is not None
    }
    tables = [Table.of(f"training-{name}", *words, frame) for name, words, frame in _tables(log)]
    return Section(
        "training", title, meaning, caveat, told | settings, figures, tables, _warnings(log)
    ), failures


def _pictures(kind: str | None, log: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if kind == "test":
        yield "confusion", "Test cells: true classes (rows) as they were predicted (columns)."
    if kind == "scores":
        yield "perturbation", "Every perturbation that was held out (dots), their mean and 95 % interval."
    if log.get("history") and "held_out_loss" in log["history"][-1]:
        yield "training", "Losses: held out, training, and without looking at the cell."


def _draw(plot: str, log: Mapping[str, Any]) -> Axes:
    from scfast import pl

    drawn: Axes = getattr(pl, plot)(log, show=False)
    return drawn


def _tables(log: Mapping[str, Any]) -> Iterator[tuple[str, tuple[str, str], pd.DataFrame]]:
    """Name, heading and words, and rows."""
    if "test" in log:
        test, (low, high) = log["test"], log["test"]["accuracy_interval"]
        rows = [
            ("accuracy", test["accuracy"], low, high, test["majority_accuracy"]),
            ("macro-F1", test["macro_f1"], None, None, test["majority_macro_f1"]),
        ]
        columns = ["score", "value", "low", "high", "commonest class"]
        words = ("Test", "With a 95 % interval, and what always guessing the commonest class scores.")
        yield "test", words, pd.DataFrame(rows, columns=columns)
        classes = (
            pd.DataFrame(log["cells"]).rename_axis("class").assign(f1=pd.Series(test["f1"], dtype=float))
        )
        yield "classes", ("Classes", "Cells of each part of the data, and F1 on the test cells."), classes
    if "scores" in log:
        from scfast import tl

        words = ("Methods", "Means over perturbations, their 95 % interval, and how far the model is ahead.")
        yield "methods", words, tl.perturbation_summary(log)
        yield "scores", ("Perturbations", "Every score."), pd.DataFrame(log["scores"])
    if "gain" in log:
        columns = ["held-out loss", "gene frequencies", "gain", "se"]
        last = log["history"][-1]["held_out_loss"]
        values = [[last, log["unigram_loss"], log["gain"], log["gain_se"]]]
        words = (
            "Gain",
            "Nats per hidden gene under gene frequencies, with its standard error between cells.",
        )
        yield "gain", words, pd.DataFrame(values, columns=columns)
    if log.get("history"):
        yield "history", ("History", "An entry per evaluation."), pd.DataFrame(log["history"])


def _warnings(log: Mapping[str, Any]) -> list[str]:
    found = (
        []
        if log.get("finished")
        else ["This training has not finished: type its command again to continue it."]
    )
    if "gain" in log and log["gain"] <= 2 * log["gain_se"]:
        found.append("The model guesses no better than gene frequencies, within two standard errors.")
    if "test" in log and log["test"]["accuracy_interval"][0] <= log["test"]["majority_accuracy"]:
        found.append("The accuracy does not stand above that of always guessing the commonest class.")
    if "test" in log and log.get("groups") is None:
        found.append(
            "Test cells were drawn one by one: where cells come from several donors, name them with --group."
        )
    return found
