"""Counts on disk, read block by block as they are needed."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from scfast.run.buffers import Buffers, release_freed
from scfast.run.counts import Counts
from scfast.run.extents import reader_of
from scfast.run.stages import beside, stage

#: Rows read at once, and kept.
BLOCK_CELLS = 2048
#: Row pointers read at once: 2 MB.
POINTERS_AT_ONCE = 2**18
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
    var, n_counts
        As of :class:`Counts`.
    matrix
        ``shape``, and ``group`` with the arrays ``data``, ``indices`` and ``indptr``, as
        :func:`anndata.io.sparse_dataset` gives it. Where it has ``rows`` int64 [cells], it is these rows of ``whole``.
    block_cells
        Rows of a block.
    """

    block_cells: int = BLOCK_CELLS
    _readers: tuple[Callable[[int, int], np.ndarray], ...] = field(init=False, repr=False)
    _starts: np.ndarray = field(init=False, repr=False)  # int64 [blocks + 1]: first value of each block
    _sizes: np.ndarray = field(init=False, repr=False)  # uint16 or more [cells]: values of each row
    _buffers: Buffers = field(init=False, repr=False, default_factory=Buffers)
    _blocks: OrderedDict[int, sparse.csr_matrix] = field(init=False, repr=False, default_factory=OrderedDict)
    _coming: dict[int, Future[sparse.csr_matrix]] = field(init=False, repr=False, default_factory=dict)
    _reader: ThreadPoolExecutor = field(
        init=False,
        repr=False,
        default_factory=lambda: ThreadPoolExecutor(1, "scfast-reader", initializer=beside),
    )
    _lock: threading.Lock = field(init=False, repr=False, default_factory=threading.Lock)

    def __post_init__(self) -> None:
        starts, sizes = self._row_pointers()
        object.__setattr__(self, "_starts", starts)
        object.__setattr__(self, "_sizes", sizes)
        empty = partial(self._buffers.empty, room=int(np.diff(starts).max(initial=0)))
        readers = tuple(reader_of(self._group[part], empty) for part in ("data", "indices"))
        object.__setattr__(self, "_readers", readers)

    @property
    def on_disk(self) -> bool:
        """They are."""
        return True

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

    @property
    def _chosen(self) -> np.ndarray | None:
        """int64 [cells]: which rows on disk these are; None: all."""
        return getattr(self.matrix, "rows", None)

    @property
    def _n_stored(self) -> int:
        """Rows on disk."""
        return int(getattr(self.matrix, "whole", self.matrix).shape[0])

    def _row_pointers(self) -> tuple[np.ndarray, np.ndarray]:
        """First value of each block, and number of values of each row, checked; pointers would take four times that."""
        n_cells = self._n_stored
        try:
            missing = [part for part in ("data", "indices", "indptr") if part not in self._group]
            _ = [self._group[part].dtype for part in ("data", "indices", "indptr") if part not in missing]
        except Exception as error:  # whatever a reader makes of a description that is not what it should be
            raise OSError(f"{self.name} is damaged: its arrays cannot be opened ({error})") from error
        if missing:
            raise ValueError(f"{self.name} is damaged: it lacks {', '.join(missing)}")
        shapes = {part: self._group[part].shape for part in ("data", "indices", "indptr")}
        kinds = {part: np.dtype(self._group[part].dtype).kind for part in shapes}
        if kinds["data"] not in "fiub" or kinds["indices"] not in "iu" or kinds["indptr"] not in "iu":
            types = ", ".join(f"{part} {self._group[part].dtype}" for part in shapes)
            raise TypeError(
                f"{self.name} is damaged: {types}; numbers, whole numbers and whole numbers are needed"
            )
        if any(len(shape) != 1 for shape in shapes.values()) or shapes["indptr"] != (n_cells + 1,):
            raise ValueError(
                f"{self.name} is damaged: {n_cells} cells need {n_cells + 1} row pointers; sizes {shapes}"
            )
        stored = shapes["data"][0]
        starts = np.zeros(-(-n_cells // self.block_cells) + 1, dtype=np.int64)
        sizes = np.zeros(n_cells, dtype=np.uint16)
        low, high, fall = 0, 0, -1
        for first in range(0, n_cells + 1, POINTERS_AT_ONCE):
            # with the one before, so that every step is seen
            pointers = self._pointers(max(first - 1, 0), min(first + POINTERS_AT_ONCE, n_cells + 1))
            low, high = int(pointers[0]) if first == 0 else low, int(pointers[-1])
            steps, at = np.diff(pointers), max(first - 1, 0)
            if fall < 0 and (steps < 0).any():
                fall = at + int(np.argmax(steps < 0))
            sizes = sizes.astype(
                np.promote_types(sizes.dtype, np.min_scalar_type(steps.max(initial=0))), copy=False
            )
            sizes[at : at + len(steps)] = np.maximum(steps, 0)
            block = np.arange(-(-at // self.block_cells), (at + len(steps)) // self.block_cells + 1)
            starts[block] = pointers[block * self.block_cells - at]
        starts[-1] = high
        if low != 0 or fall >= 0 or high != stored or shapes["indices"] != shapes["data"]:
            where = f" and fall at row {fall}" if fall >= 0 else ""
            raise ValueError(
                f"{self.name} is damaged, perhaps cut off: its row pointers go from {low} to {high}{where},"
                f" with {stored} values and {shapes['indices'][0]} columns stored"
            )
        return starts, sizes

    def _pointers(self, first: int, last: int) -> np.ndarray:
        """int64: row pointers ``first`` to ``last - 1``."""
        try:
            return np.asarray(self._group["indptr"][first:last]).astype(np.int64, copy=False)
        except (OSError, ValueError, RuntimeError) as error:
            raise OSError(f"{self.name} is damaged: its row pointers cannot be read ({error})") from error

    def take(self, rows: np.ndarray) -> tuple[sparse.csr_matrix, np.ndarray | None]:
        """CSR rows with sorted columns and no stored zeros, and their total counts.

        Raises
        ------
        ValueError
            When a block holds columns that there are not, or values that are negative, nan or infinite.
        """
        rows = np.asarray(rows, dtype=np.int64)
        totals = None if self.n_counts is None else self.n_counts[rows]
        rows = rows if self._chosen is None else self._chosen[rows]
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
        """A block of rows; ``together`` of them stay, and one that a thread may be at; the next is on its way."""
        with stage("waiting for counts"), self._lock:
            return self._find_block(number, together)

    def _find_block(self, number: int, together: int) -> sparse.csr_matrix:
        if number not in self._blocks:
            while len(self._blocks) > together:
                self._blocks.popitem(last=False)
            release_freed()
            coming = self._coming.pop(number, None)
            self._blocks[number] = self._read_block(number) if coming is None else coming.result()
            following = self._after(number)
            if following is not None and following not in self._blocks:
                self._coming.clear()  # who jumps about does not need what was to come
                self._coming[following] = self._reader.submit(self._read_block, following)
        self._blocks.move_to_end(number)
        return self._blocks[number]

    def _after(self, number: int) -> int | None:
        """The next block that holds any of the rows."""
        chosen, end = self._chosen, (number + 1) * self.block_cells
        if chosen is None:
            return number + 1 if end < self._n_stored else None
        at = int(np.searchsorted(chosen, end))
        return int(chosen[at]) // self.block_cells if at < len(chosen) else None

    def _read_block(self, number: int) -> sparse.csr_matrix:
        with stage("reading"):
            return self._checked(number)

    def _checked(self, number: int) -> sparse.csr_matrix:
        first, last = number * self.block_cells, min((number + 1) * self.block_cells, self._n_stored)
        start, stop = (int(at) for at in self._starts[number : number + 2])
        try:
            data, columns = (read(start, stop) for read in self._readers)
        except (OSError, ValueError, RuntimeError) as error:
            raise OSError(
                f"{self.name} is damaged: rows {first} to {last - 1} cannot be read ({error})"
            ) from error
        if data.dtype.kind == "b":
            data = data.astype(np.float32)  # arithmetic needs numbers
        n_genes = self.matrix.shape[1]
        unsigned = columns.view(columns.dtype.str.replace("i", "u"))  # in which negative ones are the largest
        if len(columns) and unsigned.max() >= n_genes:
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
        pointers = np.zeros(last - first + 1, dtype=np.int32 if stop - start < 2**31 else np.int64)
        np.cumsum(self._sizes[first:last], out=pointers[1:])
        shape = (last - first, n_genes)
        block = sparse.csr_matrix(
            (data, columns.astype(np.int32, copy=False), pointers), shape=shape, copy=False
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
            for at in (slice(0, _LOOKED_AT), slice(max(0, int(self._starts[-1]) - _LOOKED_AT), None))
        ]
        return (self.matrix.shape, self._chosen, self._starts, self._sizes, ends, self.var, self.n_counts)


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
