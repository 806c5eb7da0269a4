"""Where well-known marker genes stand in a ranking of genes by attention."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy.stats import rankdata

if TYPE_CHECKING:
    from anndata import AnnData

#: Lineage -> (its labels in pbmc68k, markers from the usual blood panels). Genes the data lack are left out.
MARKERS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "B cells": (
        ("CD19+ B",),
        ("CD79A", "CD79B", "MS4A1", "CD19", "BANK1", "TCL1A", "CD74", "HLA-DRA"),
    ),
    "T cells": (
        (
            "CD4+/CD25 T Reg",
            "CD4+/CD45RA+/CD25- Naive T",
            "CD4+/CD45RO+ Memory",
            "CD8+ Cytotoxic T",
            "CD8+/CD45RA+ Naive Cytotoxic",
        ),
        ("CD3D", "CD3E", "CD3G", "CD2", "IL7R", "CD27", "LTB", "TRAC"),
    ),
    "Monocytes": (
        ("CD14+ Monocyte",),
        ("LYZ", "S100A8", "S100A9", "CST3", "FCN1", "CD14", "LST1", "VCAN"),
    ),
    "NK cells": (
        ("CD56+ NK",),
        ("GNLY", "NKG7", "PRF1", "GZMB", "GZMA", "KLRB1", "KLRD1", "FGFBP2"),
    ),
}


def marker_ranks(adata: AnnData, *, key: str = "rollout") -> pd.DataFrame:
    """Ranks of the marker genes of each lineage, by the trained and by the untrained model.

    Parameters
    ----------
    adata
        After :func:`scfast.tl.rollout` with ``groupby="cell_type"`` and ``null="untrained"``.
    key
        Name of its results.

    Returns
    -------
    DataFrame with one row per lineage and marker: ``lineage``, ``gene``, ``trained``, ``untrained``: the
    gene's place, 1 the best, among all genes by mean score over all cells of the lineage; ties share their
    mean place.
    """
    cells = adata.uns[key]["groups"]["cells"]
    parts = []
    for lineage, (labels, panel) in MARKERS.items():
        genes = [gene for gene in panel if gene in adata.var_names]
        present = [label for label in labels if label in cells.index]
        weights = cells[present].to_numpy(dtype=np.float64)
        columns = [label.replace("/", "|") for label in present]
        ranks = {}
        for name, table in (("trained", adata.varm[key]), ("untrained", adata.varm[f"{key}_null"])):
            score = table[columns].to_numpy() @ (weights / weights.sum())
            ranks[name] = pd.Series(rankdata(-score), index=adata.var_names)[genes].to_numpy()
        parts.append(pd.DataFrame({"lineage": lineage, "gene": genes, **ranks}))
    return pd.concat(parts, ignore_index=True)
