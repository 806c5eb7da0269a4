"""Checks shared by the ops that read counts of cells as the arrays of a CSR matrix."""

from __future__ import annotations

from typing import Any

import numpy as np

#: Count types of csrc/csr.hpp.
COUNT_TYPES = {np.dtype(name): code for code, name in enumerate(("float32", "float64", "int32", "int64"))}
INT32_MAX = np.iinfo(np.int32).max


def check_matrix(
    indptr: np.ndarray, indices: np.ndarray, data: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The arrays as kernels take them: int64; int32 or int64; a type of COUNT_TYPES."""
    indptr, indices, data = (np.asarray(x) for x in (indptr, indices, data))
    for name, x, kinds, what in (
        ("indptr", indptr, "iu", "integers"),
        ("indices", indices, "iu", "integers"),
        ("data", data, "biuf", "counts"),
    ):
        if x.ndim != 1 or x.dtype.kind not in kinds:
            raise TypeError(
                f"{name} must be a 1-D array of {what}, got {x.dtype} {x.shape}: pass a CSR matrix's own"
            )
    indptr = np.ascontiguousarray(indptr, dtype=np.int64)
    if len(indices) != len(data):
        raise ValueError(f"indices has {len(indices)} entries and data has {len(data)}; they must agree")
    if len(indptr) == 0 or indptr[0] < 0 or indptr[-1] > len(data) or (np.diff(indptr) < 0).any():
        raise ValueError(
            f"indptr must rise from 0 to at most {len(data)}, the entries of data, got {indptr[:4]}...: "
            "pass the arrays of a CSR matrix"
        )
    indices = np.ascontiguousarray(indices, dtype=np.int32 if indices.dtype == np.int32 else np.int64)
    if data.dtype not in COUNT_TYPES:  # up to 16 bits fit float32, 32 bits fit int64
        small = data.dtype.itemsize <= 2
        data = data.astype(np.float32 if small else np.int64 if data.dtype == np.uint32 else np.float64)
    return indptr, indices, np.ascontiguousarray(data)


def numbers(name: str, values: Any, n: int, of: str) -> np.ndarray:
    """``values`` as an array, refused unless it is ``n`` real numbers."""
    values = np.asarray(values)
    if values.shape != (n,) or values.dtype.kind not in "iuf":
        raise ValueError(
            f"{name} must be {n} numbers, one for each of the {of}, got {values.dtype} {values.shape}"
        )
    return values


def check_positive(name: str, value: int) -> int:
    """``value``, refused below 1; at most what the kernels count to."""
    if not isinstance(value, int | np.integer) or value < 1:
        raise ValueError(
            f"{name} must be an integer of at least 1, got {value!r}; leave it out for the default"
        )
    return min(int(value), INT32_MAX)
