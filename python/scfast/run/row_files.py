"""Results of every cell, shard after shard: in memory, or in a file where they may be larger than it."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import h5py
import numpy as np
from scipy import sparse

from scfast.analyses.base import RowWriter

#: Values of a chunk of the file.
CHUNK = 2**16
#: gzip's fastest level: files of scores shrink by half, and the others give little more.
LEVEL = 1

Block: TypeAlias = sparse.csr_matrix | np.ndarray


class HeldRows:
    """Blocks of rows, by the name of their writer, put together at the end: the peak is twice their size.

    Parameters
    ----------
    writers
        What the blocks come from.
    """

    def __init__(self, writers: Mapping[str, RowWriter]) -> None:
        self._blocks: dict[str, list[Block]] = {name: [] for name in writers}

    def append(self, name: str, block: Block) -> None:
        """Take the next rows of a writer."""
        self._blocks[name].append(block)

    def result(self, name: str) -> Any:
        """All rows of a writer, CSR or dense [cells, columns]."""
        blocks = self._blocks[name]
        return sparse.vstack(blocks, format="csr") if sparse.issparse(blocks[0]) else np.concatenate(blocks)


class RowFile:
    """Blocks of rows that go to an HDF5 file as they come; one is in memory at a time.

    Sparse rows are a group and dense rows a data set as AnnData's files have them. The file has no name: it is there as
    long as somebody holds a result, and gone with the process, however that ends.

    Parameters
    ----------
    writers
        What the blocks come from.
    folder
        Where the file lies.

    Examples
    --------
    >>> from scfast.analyses import CellScores
    >>> rows = RowFile({"scores": CellScores(3)}, getfixture("tmp_path"))
    >>> for block in ([[0, 1.5, 0]], [[0, 0, 0], [2.5, 0, 0]]):
    ...     rows.append("scores", sparse.csr_matrix(np.array(block, dtype=np.float32)))
    >>> rows.result("scores")["indptr"][:].tolist()
    [0, 1, 1, 2]
    """

    def __init__(self, writers: Mapping[str, RowWriter], folder: Path) -> None:
        path = folder / f".rows-{os.getpid()}-{secrets.token_hex(4)}.h5"
        self._file = h5py.File(path, "w-")
        path.unlink()
        self._columns = {name: writer.n_columns for name, writer in writers.items()}

    def append(self, name: str, block: Block) -> None:
        """Write the next rows of a writer."""
        if sparse.issparse(block):
            self._append_sparse(name, block)
        else:
            width = self._columns[name]
            rows = self._array(self._file, name, block.dtype, (max(1, CHUNK // width), width))
            rows.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
            _extend(rows, np.asarray(block))

    def _append_sparse(self, name: str, block: sparse.csr_matrix) -> None:
        group = self._file.require_group(name)
        pointers = self._array(group, "indptr", np.int64)
        if not len(pointers):
            _extend(pointers, np.zeros(1, dtype=np.int64))
        _extend(pointers, block.indptr[1:].astype(np.int64) + int(pointers[-1]))
        _extend(self._array(group, "data", np.float32), block.data)
        _extend(self._array(group, "indices", np.int32), block.indices)
        shape = (len(pointers) - 1, self._columns[name])
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": shape})

    def _array(self, group: Any, name: str, dtype: Any, chunks: tuple[int, ...] = (CHUNK,)) -> Any:
        if name in group:
            return group[name]
        return group.create_dataset(
            name, (0, *chunks[1:]), dtype, chunks=chunks, maxshape=(None, *chunks[1:]), compression="gzip",
            compression_opts=LEVEL,
        )  # fmt: skip

    def result(self, name: str) -> Any:
        """All rows of a writer: a group of HDF5 with ``data``, ``indices`` and ``indptr``, or a data set."""
        self._file.flush()
        return self._file[name]


def _extend(array: Any, values: np.ndarray) -> None:
    before = len(array)
    array.resize(before + len(values), axis=0)
    array[before:] = values
