"""What data on disk say of their cells, carried into the file of results column by column."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scfast.io.columns import ROWS_AT_ONCE, column_names


@dataclass(frozen=True, eq=False)
class CellsOnDisk:
    """``obs``, ``obsm`` and ``uns`` of a file whose counts stayed there: as much of them in memory as one column.

    Attributes
    ----------
    path
        The ``.h5ad`` or ``.zarr``.
    rows
        int64 [cells]: which rows of it; None: all.
    """

    path: Path
    rows: np.ndarray | None = None

    def add_to(self, target: Any) -> None:
        """Write what an open HDF5 file of an AnnData with these cells lacks; what it has stays."""
        from scfast.io.stored import root_of

        source = root_of(self.path)
        for part, rows in (("uns", None), ("obsm", self.rows)):
            for name in source.get(part, ()):
                if name not in target[part]:
                    _copy(source[part], target[part], name, rows)
        if "obs" in source:
            self._add_obs(source["obs"], target["obs"])

    def _add_obs(self, source: Any, target: Any) -> None:
        """Columns in the order of the source, those of the results last, and the names of the cells."""
        names = column_names(source)
        for name in names:
            if name not in target:
                _copy(source, target, name, self.rows)
        del target[target.attrs["_index"]]
        _copy(source, target, source.attrs["_index"], self.rows)
        added = [name for name in column_names(target) if name not in names]
        target.attrs["column-order"] = np.array([*names, *added], dtype=object)
        target.attrs["_index"] = source.attrs["_index"]


def _copy(source: Any, target: Any, name: str, rows: np.ndarray | None) -> None:
    """One element from file to file; texts, which take a hundred bytes each in memory, some at a time."""
    import anndata as ad
    import h5py

    element = source[name]
    # Old files keep categories apart, behind a reference that holds in them alone.
    plain = "encoding-type" in element.attrs and "categories" not in element.attrs
    if isinstance(element, (h5py.Group, h5py.Dataset)) and rows is None and plain:
        source.file.copy(element, target, name=name)
    elif element.attrs.get("encoding-type") == "string-array" and len(element.shape) == 1:
        _copy_texts(element, target, name, rows)
    else:
        values = (
            _old_categories(source, element) if "categories" in element.attrs else ad.io.read_elem(element)
        )
        if rows is not None:
            values = values.iloc[rows] if hasattr(values, "iloc") else values[rows]
        ad.io.write_elem(target, name, values)


def _old_categories(source: Any, column: Any) -> Any:
    import anndata as ad
    import pandas as pd

    return pd.Categorical.from_codes(column[:], ad.io.read_elem(source[column.attrs["categories"]]))


def _copy_texts(column: Any, target: Any, name: str, rows: np.ndarray | None) -> None:
    import h5py

    texts = column.asstr() if hasattr(column, "asstr") else column
    copied = target.create_dataset(
        name, shape=(column.shape[0] if rows is None else len(rows),), dtype=h5py.string_dtype(), chunks=True
    )
    copied.attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})
    done = 0
    for start in range(0, column.shape[0], ROWS_AT_ONCE):
        part = np.asarray(texts[start : start + ROWS_AT_ONCE], dtype=object)
        if rows is not None:
            first, last = np.searchsorted(rows, [start, start + ROWS_AT_ONCE])
            part = part[rows[first:last] - start]
        copied[done : done + len(part)] = part
        done += len(part)
