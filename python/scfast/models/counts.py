"""Counts as a tokeniser wants them: CSR, a column per gene of var; a warning where they are no counts."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

#: Stored values looked at to tell counts from normalised values.
_SAMPLE = 10_000
#: Whether somebody has looked at the values already.
_LOOKED_AT: ContextVar[bool] = ContextVar("scfast_looked_at", default=False)


@contextmanager
def looked_at() -> Iterator[None]:
    """In this block, and this thread, nobody is warned of values that are no counts: they were looked at as a whole."""
    before = _LOOKED_AT.set(True)
    try:
        yield
    finally:
        _LOOKED_AT.reset(before)


def as_csr(counts: Any, var: pd.DataFrame, made: str = "ranks") -> sparse.csr_matrix:
    """Counts as CSR without duplicate entries; the caller's matrix is left as it is. Tokens are ``made`` of them.

    Raises
    ------
    TypeError
        When they are no numbers.
    ValueError
        When the columns are not those that ``var`` describes.

    Warns
    -----
    UserWarning
        When most values are not whole numbers: normalised or log-transformed values.
    """
    if not sparse.issparse(counts):
        counts = np.asarray(counts)
        if counts.ndim != 2:
            raise TypeError(f"counts must be a matrix [cells, genes], got shape {counts.shape}")
    if counts.dtype.kind not in "biuf":
        raise TypeError(f"counts are {counts.dtype}; numbers are needed")
    # A new matrix would not know that its columns were looked at already.
    matrix = counts if isinstance(counts, sparse.csr_matrix) else sparse.csr_matrix(counts)
    if matrix.shape[1] != len(var):
        raise ValueError(f"counts have {matrix.shape[1]} columns, but var describes {len(var)} genes")
    if not matrix.has_canonical_format:
        matrix = matrix.copy()
        matrix.sum_duplicates()
    sample = matrix.data[: 0 if _LOOKED_AT.get() else _SAMPLE]
    if sample.dtype.kind == "f" and sample.size and (sample != np.rint(sample)).mean() > 0.5:
        warnings.warn(
            f"most values are not whole numbers: they look normalised or log-transformed, and {made} will "
            "not be those of raw counts. Use raw counts, or restore them with scfast.pp.recover_counts",
            UserWarning,
            stacklevel=3,
        )
    return matrix


def check_counts(counts: sparse.csr_matrix, var: pd.DataFrame) -> None:
    """Refuse values that no count can become.

    Raises
    ------
    ValueError
        When a value is negative or not finite; names its cell and gene.
    """
    wrong = np.flatnonzero(~((counts.data >= 0) & np.isfinite(counts.data)))
    if wrong.size:
        cell = int(np.searchsorted(counts.indptr, wrong[0], side="right")) - 1
        gene = var.index[counts.indices[wrong[0]]]
        raise ValueError(
            f"cell {cell} has {counts.data[wrong[0]]} of {gene}; counts are finite and at least 0: pass raw counts,"
            " not centred or scaled values, or restore them with scfast.pp.recover_counts"
        )


def totals_of(counts: sparse.csr_matrix, n_counts: np.ndarray | None) -> np.ndarray:
    """Total counts of each cell [cells]: those given, else the sums over all genes."""
    if n_counts is None:
        return np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    return np.asarray(n_counts)
