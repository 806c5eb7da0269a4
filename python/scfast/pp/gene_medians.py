"""Non-zero medians of genes: what the rank-value encoding divides by."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

if TYPE_CHECKING:
    from anndata import AnnData


def gene_medians(
    adata: AnnData, *, layer: str | None = None, n_counts: str | None = None, target: float = 1e4
) -> pd.Series:
    """Median over cells of each gene's non-zero normalised count, count / n_counts * target.

    The factor that Geneformer (Theodoris et al. 2023) divides by, so that a gene ranks high where it is high
    for that gene. Computed exactly; the original estimates it with t-digests over its corpus.

    Parameters
    ----------
    adata
        Cells x genes, counts.
    layer
        Layer of the counts. Default: ``adata.X``.
    n_counts
        Column of ``adata.obs`` with each cell's total. Default: ``"n_counts"`` if it is there, else row sums.
    target
        The total that cells are normalised to.

    Returns
    -------
    float64 Series by gene (``adata.var_names``); NaN for a gene that no cell expresses.

    Examples
    --------
    >>> import numpy as np, anndata as ad, scfast
    >>> scfast.pp.gene_medians(ad.AnnData(np.array([[1.0, 0.0], [3.0, 1.0]])), target=1.0).tolist()
    [0.875, 0.25]
    """
    counts = sparse.csr_matrix(adata.X if layer is None else adata.layers[layer], dtype=np.float64)
    if n_counts is None and "n_counts" in adata.obs:
        n_counts = "n_counts"
    totals = counts.sum(axis=1).A1 if n_counts is None else adata.obs[n_counts].to_numpy(dtype=np.float64)
    per_count = np.divide(target, totals, out=np.zeros_like(totals), where=totals > 0)
    normalised = sparse.csc_matrix(sparse.diags_array(per_count) @ counts)
    normalised.eliminate_zeros()
    medians = np.full(normalised.shape[1], np.nan)
    for gene in np.flatnonzero(np.diff(normalised.indptr)):
        medians[gene] = np.median(normalised.data[normalised.indptr[gene] : normalised.indptr[gene + 1]])
    return pd.Series(medians, index=adata.var_names, name="nonzero_median")
