"""Tables that several commands print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from scfast.cli.console import Console

#: Genes printed per group, and rows of a table of genes.
TOP, ROWS = 6, 12
#: Ranks that fewer cells than this share reach are no place to look for a maximum.
FEW = 0.1


def show_top_genes(console: Console, results: Mapping[str, pd.DataFrame], title: str) -> None:
    """Top genes of each group by mean score, and how the ranking correlates with what it must beat."""
    genes, groups = results["table"], results["groups"]
    beside = {
        "spearman_expression": "expression",
        "spearman_detection": "detection",
        "spearman_null": "untrained",
    }
    columns = [name for name in beside if name in groups]
    rows = []
    for name, about in groups.iterrows():
        top = genes.loc[(genes["group"] == name).to_numpy(), "gene"].astype(str).head(TOP)
        correlations = {column: float(about[column]) for column in columns}
        rows.append(
            [name, " ".join(top), f"{int(about['cells']):,}", *(f"{x:.2f}" for x in correlations.values())]
        )
        console.event(
            "group", None, group=name, cells=int(about["cells"]), top_genes=list(top), **correlations
        )
    console.title(title)
    console.table(["group", "top genes", "cells", *(beside[column] for column in columns)], rows, left=2)
    if not console.json:
        console.note(
            "Right: rank correlation of the scores with mean expression, detection and the untrained model."
        )


def show_rank_profile(console: Console, results: Mapping[str, pd.DataFrame]) -> None:
    """Length of the cells, and where attention is highest, for each model, group and bin of length."""
    lengths = results["lengths"].set_index(["group", "lengths"])
    rows = []
    for (model, group, name), part in results["table"].groupby(["model", "group", "lengths"], observed=True):
        cells, median = (float(lengths.loc[(group, name), column]) for column in ("cells", "median"))
        often = part[(part["cells"] >= FEW * cells).to_numpy()]
        top = often.loc[often["mean"].idxmax()]
        highest, rank = float(top["mean"]), int(top["rank"])
        rows.append([model, group, name, f"{cells:,.0f}", f"{median:g}", f"{highest:.3g}", rank])
        console.event(
            "profile", None, model=model, group=group, lengths=name, cells=int(cells), median_length=median,
            highest=highest, at_rank=rank,
        )  # fmt: skip
    console.title("Attention received by rank")
    header = ["model", "group", "lengths", "cells", "median length", "highest mean", "at rank"]
    console.table(header, rows, left=3)


def show_pairs(console: Console, results: Mapping[str, Any]) -> None:
    """What each target reads from most, in each group."""
    rows = []
    for (group, target), part in results["table"].groupby(["group", "target"], observed=True):
        top = part["source"].astype(str).head(TOP)
        cells, share = int(part["cells"].iloc[0]), 100 * float(part["mean"].iloc[0])
        rows.append([group, target, " ".join(top), f"{share:.2f}"])
        console.event("target", None, group=group, target=target, sources=list(top), share=share, cells=cells)
    console.title("What genes read from")
    console.table(["group", "gene", "reads from", "the first (%)"], rows[: 4 * ROWS], left=3)
    if len(rows) > 4 * ROWS and not console.json:
        console.note(f"and {len(rows) - 4 * ROWS} more rows in gene_pairs.csv")


def show_probes(console: Console, results: Mapping[str, pd.DataFrame]) -> None:
    """The best layer of each label and readout, beside the last one, shuffled labels and chance."""
    rows = []
    for (label, readout), part in results["table"].groupby(["label", "readout"], observed=True, sort=False):
        if part["f1"].isna().all():
            continue
        best, last = part.loc[part["f1"].idxmax()], part.iloc[-1]
        layer = int(best["layer"])
        values = {
            "best": float(best["f1"]), "last": float(last["f1"]), "logistic": float(best["logistic"]),
            "shuffled": float(best["control"]), "chance": float(best["chance"]),
        }  # fmt: skip
        rows.append([label, readout, layer, *(f"{x:.2f}" for x in values.values())])
        console.event("probe", None, label=str(label), readout=str(readout), layer=layer, **values)
    console.title("Macro-F1 of held-out cells")
    header = ["label", "readout", "best layer", "F1", "last layer", "logistic", "shuffled", "chance"]
    console.table(header, rows, left=2)


def show_key_genes(console: Console, results: Mapping[str, pd.DataFrame]) -> None:
    """The genes that receive most attention, and what that may merely restate."""
    name = "symbol" if "symbol" in results["table"] else "gene"
    columns = {"attention": ".2f", "cells": ",.0f", "rank": ".0f", "rank_sd": ".0f", "detection": ".0%"}
    rows = []
    for _, row in results["table"].head(ROWS).iterrows():
        values = {column: float(row[column]) for column in columns}
        mark = " *" if row["highlight"] else ""
        rows.append([f"{row[name]}{mark}", *(format(values[column], columns[column]) for column in columns)])
        console.event("gene", None, gene=str(row["gene"]), highlight=bool(row["highlight"]), **values)
    console.title("Key genes")
    console.table(["gene", *columns], rows)
    against = {str(by): float(value) for by, value in results["correlations"].loc["attention"].items()}
    console.event("correlations", None, **against)
    console.note(
        "Rank correlation of attention with " + ", ".join(f"{by} {x:.2f}" for by, x in against.items())
    )
    if "highlight" in results:
        found = {str(by): float(value) for by, value in results["highlight"]["auroc"].items()}
        console.event("highlight", None, **found)
        console.note(
            "A gene of the highlighted set (*) stands above another with probability "
            + ", ".join(f"{x:.2f} by {by}" for by, x in found.items())
        )
