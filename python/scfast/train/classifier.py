"""A classifier of whole cells on a BERT: what is frozen, losses and predictions of packed cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from scfast.packing import Packing
from scfast.train.fit import packed_states
from scfast.train.masking import TokenisedCells

#: What is not trained: nothing; embeddings and the first N layers; embeddings and all layers.
Freeze = int | Literal["none", "all"]


@dataclass(frozen=True)
class LabelledCells:
    """Tokenised cells, the class of each, and what each is used for.

    Attributes
    ----------
    cells
        The tokens; every cell has one at least.
    labels
        int64 [B]: classes, from 0.
    parts
        int8 [B]: TRAIN, VALIDATION or TEST of :mod:`scfast.train.split`.
    names
        [B]: what the table of predictions calls the cells.
    """

    cells: TokenisedCells
    labels: np.ndarray
    parts: np.ndarray
    names: np.ndarray

    def rows(self, part: int) -> np.ndarray:
        """int64: the cells of one part."""
        return np.flatnonzero(self.parts == part)


def freeze(model: torch.nn.Module, what: Freeze) -> list[torch.nn.Module]:
    """Take the gradients of embeddings and layers away; the modules that are frozen now.

    Raises
    ------
    ValueError
        When the model has fewer layers.
    """
    bert = model.get_submodule("bert")
    layers = list(bert.get_submodule("encoder.layer").children())
    if what == "none":
        return []
    n_frozen = len(layers) if what == "all" else what
    if not isinstance(n_frozen, int) or isinstance(n_frozen, bool) or not 0 <= n_frozen <= len(layers):
        raise ValueError(
            f"freeze={what!r}: use 'all', 'none', or the number of layers, 0 to {len(layers)} in this model"
        )
    frozen = [bert.get_submodule("embeddings"), *layers[:n_frozen]]
    for module in frozen:
        module.requires_grad_(False)
    return frozen


class Classifier:
    """Losses and predictions of cells, by row; states of a wholly frozen encoder are computed once."""

    def __init__(
        self,
        model: torch.nn.Module,
        data: LabelledCells,
        *,
        what: Freeze,
        class_weights: Sequence[float],
        batch_tokens: int,
    ) -> None:
        self.model, self.data, self.batch_tokens = model, data, batch_tokens
        self.bert = model.get_submodule("bert")
        self.labels = torch.from_numpy(data.labels)
        self.weights = torch.tensor(class_weights)
        self.frozen = freeze(model, what)
        self.known: torch.Tensor | None = None
        if self.frozen and not any(p.requires_grad for p in self.bert.get_submodule("encoder").parameters()):
            self.known = self._in_batches(np.arange(data.labels.size), self._first_states)  # [B, d]

    def loss(self, rows: np.ndarray) -> torch.Tensor:
        """Weighted cross-entropy, in nats, in training."""
        for module in self.frozen:
            module.eval()  # no dropout where nothing can adapt to it
        return self.loss_of(self._logits(rows), rows)

    def predict(self, rows: np.ndarray) -> torch.Tensor:
        """Logits [n, K], without dropout."""
        return self._in_batches(rows, self._logits)

    def loss_of(self, logits: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
        """Weighted cross-entropy, in nats, of logits that were computed."""
        return cross_entropy(logits, self.labels[rows], weight=self.weights)

    def _logits(self, rows: np.ndarray) -> torch.Tensor:
        return class_logits(self.model, self._first_states(rows) if self.known is None else self.known[rows])

    def _first_states(self, rows: np.ndarray) -> torch.Tensor:
        """The last hidden state [n, d] of each cell's first token."""
        cells = self.data.cells
        ids = np.concatenate([cells.cell(int(row)) for row in rows])
        packing = Packing.from_lengths(cells.lengths[rows].tolist())
        return packed_states(self.bert, torch.from_numpy(ids), packing)[packing.cu_seqlens_q[:-1].long()]

    @torch.no_grad()
    def _in_batches(self, rows: np.ndarray, compute: Callable[[np.ndarray], torch.Tensor]) -> torch.Tensor:
        """``compute`` of all rows, without dropout, in batches of similar lengths."""
        self.model.eval()
        order = np.argsort(self.data.cells.lengths[rows], kind="stable")
        tokens = np.cumsum(self.data.cells.lengths[rows][order])
        batch = (tokens - 1) // self.batch_tokens
        parts = np.split(order, np.flatnonzero(np.diff(batch)) + 1)
        computed = torch.cat([compute(rows[part]) for part in parts])
        return computed[np.argsort(order)]


def class_logits(model: torch.nn.Module, first_states: torch.Tensor) -> torch.Tensor:
    """Logits [n, K] of a ``BertForSequenceClassification``, from each cell's first state [n, d]."""
    pooled = model.get_submodule("bert.pooler")(first_states[:, None])
    return model.get_submodule("classifier")(model.get_submodule("dropout")(pooled))
