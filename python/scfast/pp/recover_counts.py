"""Counts back from log-normalised values."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    from anndata import AnnData


def recover_counts(
    adata: AnnData,
    *,
    layer: str | None = None,
    use_raw: bool | None = None,
    n_counts: str = "n_counts",
    target: float = 1e4,
    key_added: str = "counts",
    tolerance: float = 0.1,
    copy: bool = False,
) -> AnnData | None:
    """Undo ``log1p`` of counts normalised per cell: counts = round(expm1(x) * n_counts / target).

    Parameters
    ----------
    adata
        Cells whose values were normalised to the same total and then logged (scanpy's ``normalize_total`` and
        ``log1p``).
    layer
        The layer that holds them. Default: ``adata.raw`` where there is one, else ``adata.X``.
    use_raw
        True insists on ``adata.raw``, False on ``adata.X``. ``raw`` must hold all of ``adata.var_names``.
    n_counts
        Column of ``adata.obs``: total counts of each cell before normalisation.
    target
        The total that each cell was normalised to.
    key_added
        Name of the layer that receives the counts: CSR float32 of whole numbers, cells x genes.
    tolerance
        Largest distance from a whole number, in counts, that passes as rounding.
    copy
        Return a changed copy and leave ``adata`` as it is.

    Returns
    -------
    The copy, or None. ``uns[key_added]`` holds the parameters and ``max_residual``, the largest distance.

    Raises
    ------
    KeyError
        If the layer, ``raw`` or the column is not there.
    ValueError
        If a value is negative or not finite, or the results are not whole numbers within ``tolerance``;
        ``adata`` is then unchanged.

    Examples
    --------
    >>> import numpy as np, anndata as ad, scfast
    >>> counts = np.array([[3.0, 0.0, 1.0], [1.0, 5.0, 2.0]], dtype=np.float32)
    >>> totals = np.array([40.0, 80.0])
    >>> adata = ad.AnnData(np.log1p(counts / totals[:, None] * 1e4))
    >>> adata.obs["n_counts"] = totals
    >>> scfast.pp.recover_counts(adata)
    >>> adata.layers["counts"].toarray().astype(int).tolist()
    [[3, 0, 1], [1, 5, 2]]
    """
    values = sparse.csr_matrix(_logged_values(adata, layer, use_raw), dtype=np.float64)
    totals = _totals(adata, n_counts)
    if not np.isfinite(values.data).all() or (values.data < 0).any():
        raise ValueError(
            "log1p-normalised values must be finite and not negative; these hold "
            f"{_what_is_wrong(values.data)} (scaling cannot be undone: name the layer from before it)"
        )
    counts = np.expm1(values.data) * np.repeat(totals, np.diff(values.indptr)) / target
    whole = np.round(counts)
    residual = np.abs(counts - whole)
    worst = float(residual.max(initial=0.0))
    if worst > tolerance:
        off = float((residual > tolerance).mean())
        raise ValueError(
            f"expm1(x) * obs[{n_counts!r}] / {target:g} is up to {worst:.3g} away from a whole number, "
            f"and {off:.1%} of the values are off by more than tolerance={tolerance:g}: "
            "check target (the total that cells were normalised to), that n_counts was taken before "
            "normalising and filtering genes, and that the values were logged once"
        )
    recovered = sparse.csr_matrix(
        (whole.astype(np.float32), values.indices, values.indptr), shape=values.shape
    )
    recovered.eliminate_zeros()
    recovered.sort_indices()
    result = adata.copy() if copy else adata
    result.layers[key_added] = recovered
    result.uns[key_added] = {
        "params": {
            "layer": layer or "",
            "n_counts": n_counts,
            "target": float(target),
            "tolerance": tolerance,
        },
        "max_residual": worst,
    }
    return result if copy else None


def _logged_values(adata: AnnData, layer: str | None, use_raw: bool | None) -> object:
    if layer is not None:
        if use_raw:
            raise ValueError(f"give layer={layer!r} or use_raw=True, not both")
        if layer not in adata.layers:
            raise KeyError(f"no layer {layer!r}; there are {sorted(adata.layers)}")
        return adata.layers[layer]
    if use_raw is False or (use_raw is None and adata.raw is None):
        return adata.X
    if adata.raw is None:
        raise KeyError(
            "use_raw=True, but adata.raw is None: name a layer, or pass use_raw=False to take adata.X"
        )
    columns = adata.raw.var_names.get_indexer(adata.var_names)
    if (columns < 0).any():
        missing = adata.var_names[columns < 0]
        raise KeyError(
            f"adata.raw lacks {missing.size} genes of adata.var_names ({', '.join(missing[:3])}, ...): "
            "pass use_raw=False or name a layer"
        )
    return sparse.csc_matrix(adata.raw.X)[:, columns]


def _totals(adata: AnnData, n_counts: str) -> np.ndarray:
    if n_counts not in adata.obs:
        raise KeyError(
            f"obs has no column {n_counts!r} with total counts per cell; it has {list(adata.obs.columns)}"
        )
    totals = adata.obs[n_counts].to_numpy(dtype=np.float64)
    if not (np.isfinite(totals) & (totals > 0)).all():
        raise ValueError(f"obs[{n_counts!r}] must be positive and finite; {_what_is_wrong(totals)}")
    return totals


def _what_is_wrong(values: np.ndarray) -> str:
    bad = int((~np.isfinite(values)).sum())
    return f"{bad} that are not finite and {int((values <= 0).sum())} that are zero or less"
