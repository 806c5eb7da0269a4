"""The strongest edges of every cell, as genes."""

from __future__ import annotations

import numpy as np
import torch

from scfast.analyses.base import Batch, RowBlock


class CellEdges:
    """One row per cell: n weights, the columns of the n genes that are read from, and of the n that read.

    Parameters
    ----------
    n
        Edges of a cell.
    name
        The observable that holds them, [B, n, 3].
    """

    fill: float | None = float("nan")

    def __init__(self, n: int, name: str = "strongest_edges") -> None:
        self.n, self.n_columns, self.name = n, 3 * n, name

    def rows(self, batch: Batch) -> RowBlock:
        """float32 [B, 3n]; nan where a cell has fewer edges."""
        edges = batch.observed[self.name].to(torch.float32).numpy()
        weight, places = edges[..., 0], edges[..., 1:]
        start = np.asarray(batch.tokens.packing.starts_q).reshape(-1, 1, 1)
        known = np.isfinite(places)
        token = np.where(known, places, 0).astype(np.int64) + start
        genes = np.where(known, batch.tokens.gene_index.numpy()[np.where(known, token, 0)], np.nan)
        columns = np.concatenate([weight, genes[..., 0], genes[..., 1]], axis=1)
        return RowBlock(batch.rows, columns.astype(np.float32))
