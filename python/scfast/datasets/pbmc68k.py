"""700 blood cells that come with scanpy."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from scfast.pp import recover_counts

if TYPE_CHECKING:
    from anndata import AnnData


def pbmc68k() -> AnnData:
    """Peripheral blood mononuclear cells of one donor: 700 cells x 765 variable genes, with counts.

    scanpy's ``pbmc68k_reduced`` (10x Genomics; Zheng et al. 2017), which holds scaled and log-normalised
    values; the counts are recovered from the latter by :func:`scfast.pp.recover_counts`.

    Returns
    -------
    AnnData with counts in ``X`` (CSR float32), totals over all genes in ``obs["n_counts"]``, ten cell types
    from bead-purified references in ``obs["cell_type"]`` (also ``bulk_labels``), symbols as ``var_names``.

    Raises
    ------
    ModuleNotFoundError
        If scanpy is not installed.

    Examples
    --------
    >>> import scfast
    >>> adata = scfast.datasets.pbmc68k()
    >>> adata.shape
    (700, 765)
    """
    try:
        import scanpy
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "datasets.pbmc68k reads a file that comes with scanpy: pip install 'scfast[scanpy]'"
        ) from error
    import anndata as ad

    with warnings.catch_warnings():
        # The file was written by an old anndata, which newer ones mention at every read.
        warnings.simplefilter("ignore")
        source = scanpy.datasets.pbmc68k_reduced()
    recover_counts(source, use_raw=True)
    adata = ad.AnnData(source.layers["counts"], obs=source.obs.copy(), var=source.var[[]].copy())
    adata.obs["cell_type"] = adata.obs["bulk_labels"]
    adata.obsm["X_umap"] = source.obsm["X_umap"]
    adata.uns["counts"] = source.uns["counts"]
    return adata
