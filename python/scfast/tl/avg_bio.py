"""AvgBIO: how well vectors of cells keep known populations together and apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scfast.tl._labels import label_cells

if TYPE_CHECKING:
    from anndata import AnnData

#: Of Leiden, tried for the highest NMI (Luecken et al. 2022, scIB).
RESOLUTIONS = np.arange(1, 21) / 10
NEIGHBOURS = 15


def avg_bio(adata: AnnData, label: str, *, use_rep: str, seed: int = 0) -> pd.Series:
    """Mean of NMI, ARI and silhouette of cell vectors, given each cell's population (Cui et al. 2024; scIB).

    Clusters are those of Leiden on the graph of 15 nearest neighbours, at the resolution from 0.1 to 2.0 with the
    highest NMI: chosen by the labels that score it, for every set of vectors alike.

    Parameters
    ----------
    adata
        Cells with vectors; unchanged.
    label
        Column of ``adata.obs``; cells without a label are left out.
    use_rep
        Vectors in ``adata.obsm``, such as ``"X_bioformers"``.
    seed
        Of neighbours and Leiden.

    Returns
    -------
    pandas.Series
        ``avg_bio``; ``nmi``, normalised by the arithmetic mean; ``ari``; ``asw``, the mean silhouette s of the labels
        as (s + 1) / 2, Euclidean; ``resolution`` and number of ``clusters``.

    Raises
    ------
    KeyError
        When the column or the vectors do not exist.
    ValueError
        When there is one population only, or a vector is not finite.
    ModuleNotFoundError
        Without scanpy, igraph or scikit-learn.

    Examples
    --------
    >>> import scfast
    >>> adata, model = scfast.datasets.toy()
    >>> scfast.tl.embed(adata, model)
    >>> scores = scfast.tl.avg_bio(adata, "cell_type", use_rep="X_geneformer")
    >>> scores.index.tolist()
    ['avg_bio', 'nmi', 'ari', 'asw', 'resolution', 'clusters']
    """
    try:
        import igraph  # noqa: F401
        import scanpy as sc
        from sklearn import metrics
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"tl.avg_bio clusters with scanpy and igraph and scores with scikit-learn ({error.name} is missing):"
            " pip install 'scfast[scanpy,networks]' scikit-learn"
        ) from error
    from anndata import AnnData

    if use_rep not in adata.obsm:
        raise KeyError(f"use_rep={use_rep!r} is not in adata.obsm, which has {list(adata.obsm)}")
    labelled = label_cells(adata.obs, label)
    vectors = np.asarray(adata.obsm[use_rep])[labelled.rows]
    if lost := int((~np.isfinite(vectors).all(1)).sum()):
        raise ValueError(f"adata.obsm[{use_rep!r}] is not finite in {lost} cells: leave these out first")
    cells = AnnData(obsm={"X": vectors})
    sc.pp.neighbors(cells, n_neighbors=NEIGHBOURS, use_rep="X", random_state=seed)
    best: dict[str, float] = {}
    for resolution in RESOLUTIONS:
        sc.tl.leiden(
            cells, resolution=resolution, random_state=seed, flavor="igraph", n_iterations=2, directed=False
        )
        clusters = cells.obs["leiden"].cat.codes.to_numpy()
        nmi = float(metrics.normalized_mutual_info_score(labelled.codes, clusters))
        if not best or nmi > best["nmi"]:
            ari = float(metrics.adjusted_rand_score(labelled.codes, clusters))
            best = {"nmi": nmi, "ari": ari, "resolution": resolution, "clusters": clusters.max() + 1}
    asw = (float(metrics.silhouette_score(vectors, labelled.codes)) + 1) / 2
    mean = (best["nmi"] + best["ari"] + asw) / 3
    order = {"avg_bio": mean, "nmi": best["nmi"], "ari": best["ari"], "asw": asw}
    return pd.Series({**order, "resolution": best["resolution"], "clusters": best["clusters"]}, name=use_rep)
