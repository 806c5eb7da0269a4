"""Whether two AnnData hold the same, to the bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse


def assert_same(got: Any, expected: Any, where: str = "adata") -> None:
    """Compare AnnData, mappings, frames, matrices, arrays and plain values."""
    if isinstance(expected, AnnData):
        for slot in ("X", "obs", "var", "layers", "obsm", "varm", "obsp", "varp", "uns"):
            assert_same(getattr(got, slot), getattr(expected, slot), f"{where}.{slot}")
    elif isinstance(expected, Mapping):
        assert set(got) == set(expected), where
        for key in expected:
            assert_same(got[key], expected[key], f"{where}[{key!r}]")
    elif isinstance(expected, pd.DataFrame):
        pd.testing.assert_frame_equal(
            got, expected, check_index_type=False, check_column_type=False, check_names=False
        )
    elif sparse.issparse(expected):
        assert got.format == expected.format, where
        assert got.dtype == expected.dtype, where
        for part in ("data", "indices", "indptr"):
            np.testing.assert_array_equal(getattr(got, part), getattr(expected, part), err_msg=where)
    else:
        np.testing.assert_array_equal(got, expected, err_msg=where)
