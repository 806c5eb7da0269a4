"""Where well-known marker genes stand in a ranking of genes by attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import scipy

if TYPE_CHECKING:
    from anndata import AnnData


class Lineage(NamedTuple):
    """Its labels in pbmc68k, and two panels of markers; genes that the data lack are left out."""

    labels: tuple[str, ...]
    tutorial: tuple[str, ...]
    usual: tuple[str, ...]


T_CELLS = (
    "CD4+/CD25 T Reg",
    "CD4+/CD45RA+/CD25- Naive T",
    "CD4+/CD45RO+ Memory",
    "CD8+ Cytotoxic T",
    "CD8+/CD45RA+ Naive Cytotoxic",
)

#: ``tutorial``: the literature markers that scanpy's plotting tutorial names for these very cells. ``usual``: a wider
#: panel of blood markers. Most of the cells labelled CD14+ monocytes here express FCGR3A (96 %) rather than S100A8
#: (28 %), a marker of classical monocytes: read that lineage's usual panel with this in mind.
MARKERS: dict[str, Lineage] = {
    "B cells": Lineage(
        ("CD19+ B",),
        ("CD79A", "MS4A1"),
        ("CD79A", "CD79B", "MS4A1", "CD19", "BANK1", "TCL1A", "CD74", "HLA-DRA"),
    ),
    "T cells": Lineage(T_CELLS, ("CD3D",), ("CD3D", "CD3E", "CD3G", "CD2", "IL7R", "CD27", "LTB", "TRAC")),
    "Monocytes": Lineage(
        ("CD14+ Monocyte",), ("FCGR3A",), ("LYZ", "S100A8", "S100A9", "CST3", "FCN1", "CD14", "LST1", "VCAN")
    ),
    "NK cells": Lineage(
        ("CD56+ NK",),
        ("GNLY", "NKG7"),
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
    pandas.DataFrame
        One row per lineage, panel and marker: ``lineage``, ``panel`` ("tutorial" or "usual"), ``gene``, and
        ``trained``, ``untrained``: the gene's place, 1 the best, among all genes by mean score over all cells of the
        lineage; ties share their mean place.

    Examples
    --------
    >>> import scfast
    >>> adata, model = scfast.datasets.toy()
    >>> adata.obs["cell_type"] = adata.obs["cell_type"].cat.rename_categories({"B cell": "CD19+ B"})
    >>> scfast.tl.rollout(adata, model, groupby="cell_type", null="untrained")
    >>> markers = marker_ranks(adata)
    >>> markers.loc[markers["panel"] == "tutorial", ["lineage", "gene"]].values.tolist()[:2]
    [['B cells', 'CD79A'], ['B cells', 'MS4A1']]
    """
    cells = adata.uns[key]["groups"]["cells"]
    parts = []
    for name, lineage in MARKERS.items():
        present = [label for label in lineage.labels if label in cells.index]
        weights = cells[present].to_numpy(dtype=np.float64)
        columns = [label.replace("/", "|") for label in present]
        ranks = {}
        for model, table in (("trained", adata.varm[key]), ("untrained", adata.varm[f"{key}_null"])):
            score = table[columns].to_numpy() @ (weights / weights.sum())
            ranks[model] = pd.Series(scipy.stats.rankdata(-score), index=adata.var_names)
        for panel in ("tutorial", "usual"):
            genes = [gene for gene in getattr(lineage, panel) if gene in adata.var_names]
            places = {model: rank[genes].to_numpy() for model, rank in ranks.items()}
            parts.append(pd.DataFrame({"lineage": name, "panel": panel, "gene": genes, **places}))
    return pd.concat(parts, ignore_index=True)
