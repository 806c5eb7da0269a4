"""Blocks of rows, as they come, to one result in the order of the data."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import sparse

from scfast.analyses.base import RowBlock, RowWriter


class Collector:
    """Takes the blocks of a row writer and builds the result of ``n_rows`` rows from ``first_row`` on at the end.

    Sparse blocks are held until then, so that the peak is twice their size; dense rows go straight to their
    place.
    """

    def __init__(self, writer: RowWriter, n_rows: int, first_row: int = 0) -> None:
        self._writer, self._n_rows, self._first_row = writer, n_rows, first_row
        self._blocks: list[tuple[np.ndarray, sparse.csr_matrix]] = []
        self._dense: np.ndarray | None = None

    def prepare(self, block: RowBlock) -> Callable[[], None]:
        """Allocate all that a block needs; the call that is returned takes it, and cannot run out of memory."""
        at = block.rows - self._first_row
        if self._writer.fill is None:
            values = sparse.csr_matrix(block.values)
            return lambda: self._blocks.append((at, values))
        if self._dense is None:
            shape = (self._n_rows, self._writer.n_columns)
            self._dense = np.full(shape, self._writer.fill, dtype=block.values.dtype)
        dense = self._dense

        def place() -> None:
            dense[at] = block.values

        return place

    def add(self, block: RowBlock) -> None:
        """Take a block; every row of the data may come once."""
        self.prepare(block)()

    def result(self) -> sparse.csr_matrix | np.ndarray:
        """[cells, columns]; the collector is empty afterwards."""
        if self._writer.fill is not None:
            shape = (self._n_rows, self._writer.n_columns)
            return np.full(shape, self._writer.fill, np.float32) if self._dense is None else self._dense
        sizes = np.zeros(self._n_rows, dtype=np.int64)
        for rows, values in self._blocks:
            sizes[rows] = np.diff(values.indptr)
        indptr = np.concatenate([[0], np.cumsum(sizes)])
        data = np.empty(indptr[-1], dtype=np.float32)
        indices = np.empty(indptr[-1], dtype=np.int32)
        while self._blocks:  # freed as they are placed
            rows, values = self._blocks.pop()
            shift = indptr[rows] - values.indptr[:-1]
            place = np.arange(values.nnz) + np.repeat(shift, np.diff(values.indptr))
            data[place], indices[place] = values.data, values.indices
        return sparse.csr_matrix((data, indices, indptr), shape=(self._n_rows, self._writer.n_columns))
