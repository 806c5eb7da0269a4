"""From cells and a trained model to findings: roll out, and write what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from scfast import io, models, pl, tl
from scfast.demo.figures import draw_marker_ranks, draw_training
from scfast.demo.markers import marker_ranks

if TYPE_CHECKING:
    from anndata import AnnData


@dataclass(frozen=True)
class Findings:
    """What the demonstration found, and the files that it wrote.

    Attributes
    ----------
    adata
        The cells with all results.
    training
        Log of the training.
    genes, groups
        The tables of :func:`scfast.tl.rollout`.
    markers
        See :func:`scfast.demo.marker_ranks`.
    files
        What each file holds -> the file.
    """

    adata: AnnData
    training: dict[str, Any]
    genes: pd.DataFrame
    groups: pd.DataFrame
    markers: pd.DataFrame
    files: dict[str, Path]


def analyse(
    adata: AnnData,
    model_folder: Path,
    out: Path,
    training: dict[str, Any],
    *,
    progress: bool | None = None,
) -> Findings:
    """Roll the trained model out on the cells and write AnnData, tables and figures into ``out``.

    Parameters
    ----------
    adata
        Counts with ``obs["cell_type"]``; receives the results.
    model_folder
        The trained model.
    out
        Folder to write into.
    training
        Log of the training, for its figure.
    progress
        Show progress bars. Default: on a terminal.

    Returns
    -------
    Findings
        Results, tables and the files that were written.

    Examples
    --------
    >>> import tempfile, pathlib, scfast
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> adata, _ = scfast.datasets.toy()
    >>> adata.obs["cell_type"] = adata.obs["cell_type"].cat.rename_categories({"B cell": "CD19+ B"})
    >>> log = scfast.tl.pretrain(adata, folder / "model", steps=2, batch_tokens=512, progress=False)
    >>> findings = analyse(adata, folder / "model", folder / "out", log)
    >>> sorted(file.name for file in findings.files.values())[:4]
    ['cell_types.csv', 'genes.csv', 'marker_ranks.png', 'markers.csv']
    """
    model = models.load("geneformer", model_folder)
    tl.rollout(adata, model, groupby="cell_type", null="untrained", progress=progress)
    genes, groups = adata.uns["rollout"]["table"], adata.uns["rollout"]["groups"]
    markers = marker_ranks(adata)
    out.mkdir(parents=True, exist_ok=True)
    files = {
        "cells with scores": out / "pbmc68k.h5ad",
        "every gene of every cell type": out / "genes.csv",
        "cell types": out / "cell_types.csv",
        "marker genes": out / "markers.csv",
        "top genes": out / "top_genes.png",
        "marker ranks": out / "marker_ranks.png",
        "training": out / "training.png",
        "model": model_folder,
    }
    io.write_h5ad(adata, files["cells with scores"])
    genes.to_csv(files["every gene of every cell type"], index=False, float_format="%.6g")
    groups.to_csv(files["cell types"], float_format="%.6g")
    markers.to_csv(files["marker genes"], index=False)
    pl.rollout(adata, show=False, save=files["top genes"])
    draw_marker_ranks(markers, files["marker ranks"])
    draw_training(training, files["training"])
    return Findings(adata, training, genes, groups, markers, files)
