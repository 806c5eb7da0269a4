"""``scfast finetune``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from scfast.cli.console import Console, dry_run_option, json_option


@click.command("finetune")
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--model", required=True, help="KIND:FOLDER, such as geneformer:my_model.")
@click.option("--label", required=True, help="Column of obs with the classes.")
@click.option(
    "-o",
    "--output",
    "folder",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of the new model.",
)
@click.option("--where", help="Which cells, such as \"drug == 'Nutlin'\".  [default: all]")
@click.option(
    "--recode",
    multiple=True,
    metavar="CLASS=VALUE,...",
    help="Values of the column that make a class; once per class.  [default: each value]",
)
@click.option("--group", help="Column of obs (donor, batch) that no two parts share.  [default: by cell]")
@click.option("--test", default=0.2, show_default=True, help="Share of the cells to test on.")
@click.option("--test-group", "test_groups", multiple=True, help="A group to test on; may be repeated.")
@click.option(
    "--validation", default=0.1, show_default=True, help="Share of the others that decides when to stop."
)
@click.option(
    "--validate-within", is_flag=True, help="Validation cells from the training groups: for few groups."
)
@click.option(
    "--freeze",
    default="none",
    show_default=True,
    help="all: the encoder stays as it is; N: embeddings and the first N layers; none.",
)
@click.option(
    "--class-weights", type=click.Choice(["balanced", "none"]), default="balanced", show_default=True
)
@click.option("--epochs", default=10, show_default=True, help="Passes over the training cells, at most.")
@click.option("--patience", default=3, show_default=True, help="Epochs without gain before it stops.")
@click.option("--batch-tokens", default=8192, show_default=True, help="Tokens per step.")
@click.option(
    "--lr", default=5e-5, show_default=True, help="Largest learning rate; 1e-3 for small models of your own."
)
@click.option("--counts-layer", help="Layer that holds the counts.  [default: X]")
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--restart", is_flag=True, help="Start again where a run was killed or finished, instead of resuming."
)
@dry_run_option
@json_option
def command(
    data: Path,
    model: str,
    label: str,
    folder: Path,
    where: str | None,
    recode: tuple[str, ...],
    group: str | None,
    test: float,
    test_groups: tuple[str, ...],
    validation: float,
    validate_within: bool,
    freeze: str,
    class_weights: str,
    epochs: int,
    patience: int,
    batch_tokens: int,
    lr: float,
    counts_layer: str | None,
    seed: int,
    restart: bool,
    dry_run: bool,
    as_json: bool | None,
) -> None:
    """Train a Geneformer to tell classes of the cells of DATA apart, and test it on cells it never saw.

    DATA is .h5ad or .zarr with raw counts. The classifier reads the last state of each cell's first token, as
    BertForSequenceClassification does, and OUTPUT loads in transformers. Test accuracy and macro-F1 are shown
    beside those of always guessing the commonest class. Killed? Type the same command again and it continues.

    \b
    Examples:
      scfast finetune cells.h5ad --model geneformer:my_model --label cell_type -o tuned --lr 1e-3
      scfast finetune cells.h5ad --model geneformer:V2-104M --label disease --group donor -o tuned
      scfast finetune cells.h5ad --model geneformer:V2-104M --label dose --where "drug == 'Nutlin'" \\
          --recode low=0,1.25,2.5 --recode high=12.5,25 --freeze 11 -o tuned
      scfast finetune cells.h5ad --model geneformer:my_model --label condition --group donor \\
          --test-group 107 --validate-within --freeze all -o tuned
    """  # noqa: D301
    from scfast import pl, tl
    from scfast.cli.data import load
    from scfast.cli.rehearsed import TABLES, maybe_rehearsal, show_rehearsal
    from scfast.tl.finetune import progress_line

    console = Console(as_json)
    values = parse_recode(recode)
    what = parse_freeze(freeze)
    adata = load(data)
    console.event(
        "start",
        f"Fine-tuning {model} on {label} of {adata.n_obs:,} cells x {adata.n_vars:,} genes of {data}, into {folder}",
        command="finetune",
        cells=adata.n_obs,
        genes=adata.n_vars,
        model=model,
        label=label,
        output=folder,
    )
    with maybe_rehearsal(dry_run) as planned:
        log = tl.finetune(
            adata,
            folder,
            model=model,
            label=label,
            where=where,
            recode=values,
            group=group,
            test=test,
            test_groups=list(test_groups) or None,
            validation=validation,
            validate_within=validate_within,
            freeze=what,
            class_weights=None if class_weights == "none" else class_weights,
            epochs=epochs,
            patience=patience,
            batch_tokens=batch_tokens,
            lr=lr,
            counts_layer=counts_layer,
            seed=seed,
            resume=not restart,
            progress=lambda entry: console.training(entry, progress_line(entry)),
        )
    if dry_run:
        facts = {"cells": adata.n_obs, "genes": adata.n_vars, "label": label}
        show_rehearsal(
            console, "finetune", planned, facts, folder, (*TABLES, "predictions.csv", "confusion.png")
        )
        return
    pl.confusion(log, show=False, save=folder / "confusion.png")
    _show(console, log, folder)


def parse_recode(given: tuple[str, ...]) -> dict[str, list[str]] | None:
    """The values of ``--recode``.

    Examples
    --------
    >>> parse_recode(("low=0,1.25", "high=25"))
    {'low': ['0', '1.25'], 'high': ['25']}
    """
    recode: dict[str, list[str]] = {}
    for text in given:
        name, equals, values = text.partition("=")
        members = [value.strip() for value in values.split(",")]
        if not equals or not name.strip() or not all(members):
            raise ValueError(f"--recode {text} must be CLASS=VALUE,..., such as low=0,1.25,2.5")
        if name.strip() in recode:
            raise ValueError(f"--recode names the class {name.strip()!r} twice: put all its values into one")
        recode[name.strip()] = members
    return recode or None


def parse_freeze(text: str) -> int | Literal["all", "none"]:
    """The value of ``--freeze``.

    Examples
    --------
    >>> parse_freeze("all"), parse_freeze("2")
    ('all', 2)
    """
    if text in ("all", "none"):
        return "all" if text == "all" else "none"
    if not text.isdecimal():
        raise ValueError(f"--freeze {text} must be all, none or a number of layers")
    return int(text)


def _show(console: Console, log: dict[str, Any], folder: Path) -> None:
    classes = log["settings"]["classes"]
    console.title("Cells")
    console.table(
        ["part", *classes, "groups"],
        [
            [part, *(f"{counts[name]:,}" for name in classes), _groups(log, part)]
            for part, counts in log["cells"].items()
        ],
    )
    left_out = {reason: cells for reason, cells in log["left_out"].items() if cells}
    if left_out:
        console.note("left out: " + ", ".join(f"{cells:,} ({reason})" for reason, cells in left_out.items()))
    known = log["vocabulary"]
    console.note(
        f"{known['data_genes_known']:,} of {known['data_genes']:,} genes of the data are in the vocabulary;"
        f" {known['mean_genes_per_cell']:.0f} genes per cell are seen,"
        f" {known['mean_lost_to_vocabulary']:.0f} lost to it, {known['mean_lost_to_truncation']:.0f} cut off"
    )
    test = log["test"]
    console.title("Test")
    console.table(
        ["true class", *(f"as {name}" for name in classes), "F1"],
        [
            [name, *map(str, row), "–" if test["f1"][name] is None else f"{test['f1'][name]:.3f}"]
            for name, row in zip(classes, test["confusion"], strict=True)
        ],
    )
    low, high = test["accuracy_interval"]
    console.event(
        "done",
        f"\nAccuracy {test['accuracy']:.3f} (95 % interval {low:.3f} to {high:.3f}), macro-F1"
        f" {test['macro_f1']:.3f}; always the commonest class: {test['majority_accuracy']:.3f},"
        f" {test['majority_macro_f1']:.3f}.\n"
        f"Best after epoch {log['best']['epoch']}, {log['seconds']:.0f} s. Use it:  scfast run DATA --model"
        f" geneformer:{folder} -o results",
        test=test,
        epoch=log["best"]["epoch"],
        output=folder,
        files=sorted(folder.iterdir()),
    )


def _groups(log: dict[str, Any], part: str) -> str:
    return "–" if log["groups"] is None else " ".join(log["groups"][part])
