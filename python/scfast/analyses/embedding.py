"""One vector per cell."""

from __future__ import annotations

import torch

from scfast.analyses.base import Batch, RowBlock


class Embedding:
    """An observable that gives one vector per cell, such as a pooled hidden state.

    Parameters
    ----------
    n_columns
        Width d of the vectors.
    name
        The observable, [B, d].
    """

    fill: float | None = float("nan")

    def __init__(self, n_columns: int, name: str = "hidden_states") -> None:
        self.n_columns, self.name = n_columns, name

    def rows(self, batch: Batch) -> RowBlock:
        """float32 [B, d]."""
        vectors = batch.observed[self.name]
        expected = (batch.tokens.n_cells, self.n_columns)
        if tuple(vectors.shape) != expected:
            raise ValueError(f"{self.name} gave vectors of shape {tuple(vectors.shape)}; expected {expected}")
        return RowBlock(batch.rows, vectors.to(torch.float32).numpy())
