"""Tables that several commands print."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

    from scfast.cli.console import Console

#: Genes printed per group.
TOP = 6


def show_top_genes(console: Console, genes: pd.DataFrame, groups: pd.DataFrame) -> None:
    """Top genes of each group by mean score, and how the ranking correlates with what it must beat."""
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
    console.title("Genes with the largest share of attention")
    console.table(["group", "top genes", "cells", *(beside[column] for column in columns)], rows, left=2)
    if not console.json:
        console.note(
            "Right: rank correlation of the scores with mean expression, detection and the untrained model."
        )
