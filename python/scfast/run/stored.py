"""Counts on disk, read block by block as they are needed."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from scfast.run.counts import Counts
from scfast.run.extents import reader_of

#: Rows read at once, and kept.
BLOCK_CELLS = 4096
#: Values at both ends of the data that tell one file from another.
_LOOKED_AT = 2**14


@dataclass(frozen=True, eq=False)
class StoredCounts(Counts):
    """Counts in a CSR group of an h5ad or zarr file: a few blocks of rows are in memory at a time.

    While a block is worked on, a thread reads the next one.

    What is wrong with the file is an error that names it: before anything runs where the row pointers show it, else
    when the block that holds it is read.

    Attributes
    ----------
    matrix
        ``shape``, and ``group`` with the arrays ``data``, ``indices`` and ``indptr``, as
        :func:`anndata.io.sparse_dataset` gives it.
    block_cells
        Rows of a block.
    """

    block_cells: int = BLOCK_CELLS
    _indptr: np.ndarray = field(init=False, repr=False)
    _readers: tuple[Callable[[int, int], np.ndarray], ...] = field(init=False, repr=False)
    _blocks: OrderedDict[int, sparse.csr_matrix] = field(init=False, repr=False, default_factory=OrderedDict)
    _coming: dict[int, Future[sparse.csr_matrix]] = field(init=False, repr=False, default_factory=dict)
    _reader: ThreadPoolExecutor = field(
        init=False, repr=False, default_factory=lambda: ThreadPoolExecutor(1, "scfast-reader")
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "_indptr", self._row_pointers())
        readers = tuple(reader_of(self._group[part]) for part in ("data", "indices"))
        object.__setattr__(self, "_readers", readers)

    @property
    def shard_cells(self) -> int:
        """Rows whose order on disk a plan should keep together."""
        return self.block_cells

    @property
    def name(self) -> str:
        """File and group."""
        group = self._group
        file = getattr(getattr(group, "file", None), "filename", None) or getattr(group, "store", "")
        return f"{file}:{group.name}"

    @property
    def _group(self) -> Any:
        return self.matrix.group  # type: ignore[union-attr]

    def _row_pointers(self) -> np.ndarray:
        """int64 [cells + 1], checked."""
        n_cells = self.n_cells
        missing = [part for part in ("data", "indices", "indptr") if part not in self._group]
        if missing:
            raise ValueError(f"{self.name} is damaged: it lacks {', '.join(missing)}")
        sizes = {part: self._group[part].shape for part in ("data", "indices", "indptr")}
        kinds = {part: np.dtype(self._group[part].dtype).kind for part in sizes}
        if kinds["data"] not in "fiub" or kinds["indices"] not in "iu" or kinds["indptr"] not in "iu":
            types = ", ".join(f"{part} {self._group[part].dtype}" for part in sizes)
            raise TypeError(
                f"{self.name} is damaged: {types}; numbers, whole numbers and whole numbers are needed"
            )
        if any(len(size) != 1 for size in sizes.values()) or sizes["indptr"] != (n_cells + 1,):
            raise ValueError(
                f"{self.name} is damaged: {n_cells} cells need {n_cells + 1} row pointers; sizes {sizes}"
            )
        try:
            indptr = np.asarray(self._group["indptr"][:]).astype(np.int64)
        except (OSError, ValueError, RuntimeError) as error:
            raise OSError(f"{self.name} is damaged: its row pointers cannot be read ({error})") from error
        stored = sizes["data"][0]
        steps = np.diff(indptr)
        if indptr[0] != 0 or (steps < 0).any() or indptr[-1] != stored or sizes["indices"] != sizes["data"]:
            falls = np.flatnonzero(steps < 0)
            where = f" and fall at row {falls[0]}" if len(falls) else ""
            raise ValueError(
                f"{self.name} is damaged, perhaps cut off: its row pointers go from {indptr[0]} to {indptr[-1]}{where},"
                f" with {stored} values and {sizes['indices'][0]} columns stored"
            )
        return indptr

    def take(self, rows: np.ndarray) -> tuple[sparse.csr_matrix, np.ndarray | None]:
        """CSR rows with sorted columns and no stored zeros, and their total counts.

        Raises
        ------
        ValueError
            When a block holds columns that there are not, or values that are negative, nan or infinite.
        """
        rows = np.asarray(rows, dtype=np.int64)
        totals = None if self.n_counts is None else self.n_counts[rows]
        if (
            len(rows)
            and rows[-1] // self.block_cells == rows[0] // self.block_cells
            and (np.diff(rows) == 1).all()
        ):
            block, at = self._block(int(rows[0]) // self.block_cells, 1), int(rows[0]) % self.block_cells
            return _run_of_rows(block, at, at + len(rows)), totals
        number = rows // self.block_cells
        wanted = np.unique(number)
        parts = [
            self._block(int(block), len(wanted))[rows[number == block] - block * self.block_cells]
            for block in wanted
        ]
        taken = parts[0] if len(parts) == 1 else sparse.vstack([*parts, self._no_rows()], format="csr")
        if len(parts) > 1:
            order = np.argsort(number, kind="stable")
            back = np.empty_like(order)
            back[order] = np.arange(len(order))
            taken = taken[back]
        return taken if len(parts) else self._no_rows(), totals

    def _no_rows(self) -> sparse.csr_matrix:
        return sparse.csr_matrix((0, self.matrix.shape[1]), dtype=self._group["data"].dtype)

    def _block(self, number: int, together: int) -> sparse.csr_matrix:
        """A block of rows; ``together`` of them, and the one before, stay."""
        block = self._blocks.get(number)
        if block is None:
            coming = self._coming.pop(number, None)
            block = self._read_block(number) if coming is None else coming.result()
            self._blocks[number] = block
            following = number + 1
            if following * self.block_cells < self.n_cells and following not in self._blocks:
                self._coming.clear()  # who jumps about does not need what was to come
                self._coming[following] = self._reader.submit(self._read_block, following)
        self._blocks.move_to_end(number)
        while len(self._blocks) > together + 1:
            self._blocks.popitem(last=False)
        return block

    def _read_block(self, number: int) -> sparse.csr_matrix:
        return self._read(number * self.block_cells, min((number + 1) * self.block_cells, self.n_cells))

    def _read(self, first: int, last: int) -> sparse.csr_matrix:
        start, stop = int(self._indptr[first]), int(self._indptr[last])
        try:
            data, columns = (read(start, stop) for read in self._readers)
        except (OSError, ValueError, RuntimeError) as error:
            raise OSError(
                f"{self.name} is damaged: rows {first} to {last - 1} cannot be read ({error})"
            ) from error
        n_genes = self.matrix.shape[1]
        if (
            len(columns) and columns.view(f"u{columns.itemsize}").max() >= n_genes
        ):  # a negative one is large so
            raise ValueError(
                f"{self.name} is damaged: rows {first} to {last - 1} have columns {columns.min()} to {columns.max()},"
                f" and there are {n_genes} genes"
            )
        low, high = (data.min(), data.max()) if len(data) else (1, 1)  # nan, where there is one
        if data.dtype.kind == "f" and not (low >= 0 and high < np.inf):
            raise ValueError(
                f"{self.name} holds negative, nan or infinite values in rows {first} to {last - 1}; raw counts are"
                " needed: name the layer that holds them"
            )
        if low < 0:
            raise ValueError(
                f"{self.name} holds negative values in rows {first} to {last - 1}; counts are needed"
            )
        pointers = (self._indptr[first : last + 1] - start).astype(
            np.int32 if stop - start < 2**31 else np.int64
        )
        block = sparse.csr_matrix(
            (data, columns.astype(np.int32, copy=False), pointers), shape=(last - first, n_genes)
        )
        block.sum_duplicates()
        if low == 0:
            block.eliminate_zeros()
        return block

    def __reduce__(self) -> tuple[Any, ...]:
        """The place of the file in place of what it holds, for another process on the same file system."""
        group = self._group
        file = getattr(getattr(group, "file", None), "filename", None)
        kind = "h5ad" if file is not None else "zarr"
        path = file if file is not None else getattr(group.store, "root", None)
        if path is None:
            raise TypeError(f"{self.name} is no file that another process could open")
        where = (kind, os.path.abspath(os.fspath(path)), group.name)
        return _reopened, (*where, self.var, self.n_counts, self.block_cells)

    def fingerprint_parts(self) -> tuple[Any, ...]:
        """What tells these counts from others without reading all of them."""
        ends = [
            np.asarray(self._group[part][at])
            for part in ("data", "indices")
            for at in (slice(0, _LOOKED_AT), slice(max(0, int(self._indptr[-1]) - _LOOKED_AT), None))
        ]
        return (self.matrix.shape, self._indptr, ends, self.var, self.n_counts)


def _reopened(
    kind: str, path: str, name: str, var: pd.DataFrame, n_counts: np.ndarray | None, block_cells: int
) -> StoredCounts:
    from anndata.io import sparse_dataset

    if kind == "h5ad":
        import h5py

        root = h5py.File(path, "r")
    else:
        import zarr

        root = zarr.open_group(path, mode="r")
    return StoredCounts(sparse_dataset(root[name.strip("/")]), var, n_counts, block_cells)


def _run_of_rows(block: sparse.csr_matrix, first: int, last: int) -> sparse.csr_matrix:
    """Neighbouring rows without a copy of their values."""
    start, stop = block.indptr[first], block.indptr[last]
    rows = sparse.csr_matrix((last - first, block.shape[1]), dtype=block.dtype)
    # Given to its constructor, arrays that are a small part of others would be copied.
    rows.data, rows.indices = block.data[start:stop], block.indices[start:stop]
    rows.indptr = block.indptr[first : last + 1] - start
    rows.has_canonical_format = True  # as the block is; SciPy would look at every column again
    return rows
