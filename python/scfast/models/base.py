"""What a model hands to the rest of the package: packed tokens, and a forward that reports to a recorder."""

from __future__ import annotations

import abc
import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NotRequired, Self, TypedDict

import numpy as np
import torch

from scfast.packing import Packing

if TYPE_CHECKING:
    import pandas as pd
    from scipy import sparse

    from scfast.attention.recorder import Recorder
    from scfast.observables.target import Target, TargetLike


class TokenKind(enum.IntEnum):
    """What a token stands for; stored as uint8 in :attr:`Tokens.kind`."""

    GENE = 0
    SPECIAL = 1
    CHROMOSOME = 2
    PAD = 3


_PER_TOKEN = {
    "ids": torch.int64,
    "positions": torch.int64,
    "gene_index": torch.int64,
    "kind": torch.uint8,
    "values": torch.float32,
    "external": torch.int64,
}
_PER_CELL = {"lost_vocabulary": torch.int64, "lost_truncation": torch.int64}


@dataclass(frozen=True)
class Tokens:
    """The tokens of a number of cells, laid end to end. Tokenisers make them on the CPU; see :meth:`to`.

    Attributes
    ----------
    ids
        int64 [T]: rows of the model's token table.
    positions
        int64 [T]: position of each token within its cell, from 0.
    packing
        Where each cell starts and ends.
    gene_index
        int64 [T]: column of the counts matrix that the token stands for; -1 where it stands for no gene.
    kind
        uint8 [T]: :class:`TokenKind` of each token.
    lost_vocabulary
        int64 [B]: expressed genes of each cell that the model's vocabulary lacks.
    lost_truncation
        int64 [B]: gene tokens of each cell cut off because the model's context ended.
    values
        float32 [T], for models that embed a value beside the gene; else None.
    external
        int64 [T], for models with an external (condition) token; or [T, W] where tokens have up to W of them, -1 where
        one has fewer; else None.

    Examples
    --------
    >>> import torch
    >>> from scfast import Packing
    >>> tokens = Tokens(
    ...     ids=torch.tensor([7, 9, 4]),
    ...     positions=torch.tensor([0, 1, 0]),
    ...     packing=Packing.from_lengths([2, 1]),
    ...     gene_index=torch.tensor([5, 0, 3]),
    ...     kind=torch.zeros(3, dtype=torch.uint8),
    ...     lost_vocabulary=torch.tensor([0, 2]),
    ...     lost_truncation=torch.tensor([0, 0]),
    ... )
    >>> tokens.select([1, 0]).ids.tolist()
    [4, 7, 9]
    """

    ids: torch.Tensor
    positions: torch.Tensor
    packing: Packing
    gene_index: torch.Tensor
    kind: torch.Tensor
    lost_vocabulary: torch.Tensor
    lost_truncation: torch.Tensor
    values: torch.Tensor | None = None
    external: torch.Tensor | None = None

    def __post_init__(self) -> None:
        for expected, size in ((_PER_TOKEN, self.packing.total_q), (_PER_CELL, self.packing.n_cells)):
            for name, dtype in expected.items():
                tensor = getattr(self, name)
                if tensor is None and name in ("values", "external"):
                    continue
                per_token = tensor[:, 0] if name == "external" and tensor.dim() == 2 else tensor
                if tensor.dtype != dtype or tuple(per_token.shape) != (size,):
                    raise ValueError(
                        f"Tokens.{name} must be {dtype} of shape ({size},): the packing has {self.n_cells}"
                        f" cells, {self.n_tokens} tokens; got {tensor.dtype} of shape {tuple(tensor.shape)}"
                    )

    @property
    def n_cells(self) -> int:
        """Number of cells, B."""
        return self.packing.n_cells

    @property
    def n_tokens(self) -> int:
        """Number of tokens of all cells together, T."""
        return self.packing.total_q

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each cell."""
        return self.packing.lengths_q

    @cached_property
    def _extent(self) -> tuple[np.ndarray, np.ndarray]:
        """Start and length of each cell, int64 [B] each."""
        lengths = np.asarray(self.lengths, dtype=np.int64)
        return np.cumsum(lengths) - lengths, lengths

    def select(self, cells: Sequence[int] | np.ndarray | torch.Tensor) -> Tokens:
        """The tokens of some cells, in the order asked for: one gather, no loop over tokens.

        Parameters
        ----------
        cells
            Numbers of the cells, 0 to B - 1; a cell may be named more than once.

        Raises
        ------
        IndexError
            When a cell does not exist.
        """
        chosen = np.asarray(cells, dtype=np.int64).reshape(-1)
        if chosen.size and (chosen.min() < 0 or chosen.max() >= self.n_cells):
            raise IndexError(
                f"cells {chosen.min()} to {chosen.max()} were asked for, but there are {self.n_cells} (0 to"
                f" {self.n_cells - 1})"
            )
        starts, lengths = self._extent
        taken = lengths[chosen]
        shift = starts[chosen] - (np.cumsum(taken) - taken)  # from the new place of a cell to the old one
        gather = torch.from_numpy(np.arange(int(taken.sum()), dtype=np.int64) + np.repeat(shift, taken))
        gather, cell = gather.to(self.device), torch.from_numpy(chosen).to(self.device)
        picked: dict[str, torch.Tensor | None] = {}
        for field in fields(self):
            if field.name == "packing":
                continue
            tensor = getattr(self, field.name)
            index = cell if field.name in _PER_CELL else gather
            picked[field.name] = None if tensor is None else tensor.index_select(0, index)
        packing = Packing.from_lengths(taken.tolist(), device=self.device)
        return Tokens(packing=packing, **picked)  # type: ignore[arg-type]

    def keep(self, which: np.ndarray) -> Tokens:
        """Some of the tokens, in their order, at positions that leave no gap; what was lost stays what it was.

        Parameters
        ----------
        which
            bool [T]: the tokens that stay.

        Examples
        --------
        >>> import torch
        >>> from scfast import Packing
        >>> cell = dict(ids=torch.tensor([7, 9, 4]), positions=torch.arange(3), gene_index=torch.tensor([5, 0, 3]))
        >>> none = dict(lost_vocabulary=torch.tensor([0]), lost_truncation=torch.tensor([0]))
        >>> tokens = Tokens(packing=Packing.from_lengths([3]), kind=torch.zeros(3, dtype=torch.uint8), **cell, **none)
        >>> kept = tokens.keep(np.array([True, False, True]))
        >>> kept.ids.tolist(), kept.positions.tolist()
        ([7, 4], [0, 1])
        """
        _, lengths = self._extent
        cell = np.repeat(np.arange(self.n_cells), lengths)[which]
        left = np.bincount(cell, minlength=self.n_cells)
        positions = np.arange(len(cell)) - (np.cumsum(left) - left)[cell]
        gather = torch.from_numpy(np.flatnonzero(which)).to(self.device)
        parts: dict[str, Any] = {name: getattr(self, name) for name in _PER_CELL}
        for name in _PER_TOKEN:
            tensor = getattr(self, name)
            parts[name] = None if tensor is None else tensor.index_select(0, gather)
        parts["positions"] = torch.from_numpy(positions).to(self.device)
        return Tokens(packing=Packing.from_lengths(left.tolist(), device=self.device), **parts)

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.ids.device

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Tokens:
        """The same tokens on another device; itself where they are there already.

        Parameters
        ----------
        device
            Where to.
        non_blocking
            Do not wait for the copies: from pinned memory to a GPU they run beside the computation.
        """
        return self._map(lambda part: part.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Tokens:
        """The same tokens in page-locked memory, from which a GPU copies by itself."""
        return self._map(lambda part: part.pin_memory())

    def _map(self, move: Callable[[Any], Any]) -> Tokens:
        moved: dict[str, Any] = {}
        for field in fields(self):
            part = getattr(self, field.name)
            moved[field.name] = None if part is None else move(part)
        here = all(moved[name] is getattr(self, name) for name in moved)
        return self if here else Tokens(**moved)

    def tensors(self) -> list[torch.Tensor]:
        """Every tensor, those of the packing among them."""
        parts = [getattr(self, field.name) for field in fields(self)]
        own = [part for part in parts if isinstance(part, torch.Tensor)]
        return [*own, *self.packing.tensors()]


class TokenBytes(TypedDict):
    """What one token costs in memory, in bytes: figures for the planner of batches."""

    #: Peak of the forward's own activations (states, fused q, k, v, feed-forward), per token of a batch.
    activations: int
    #: q and k of one layer, or what they are made from, which a backward sweep keeps for every layer.
    qk_per_layer: int
    #: One hidden state, for observables that keep states.
    hidden: int
    #: What a layer leaves for the backward pass of a differentiated forward, beside q and k.
    graph_per_layer: NotRequired[int]
    #: Of a source that runs in blocks: what one block takes beside, whatever the batch holds.
    block: NotRequired[int]


class AttentionSource(abc.ABC):
    """A model that can be asked for its attention: it tokenises counts and runs packed under a recorder.

    Attributes
    ----------
    name
        What the model is called in reports, such as "geneformer-v2".
    n_layers, n_heads, head_dim, hidden_size
        Its shape.
    max_tokens
        Longest cell that it takes, special tokens included.
    genes
        Gene ids, in the order of the vocabulary.
    default_readout
        The token or average that the model's authors read a cell's embedding from.
    cls_position
        Position of the cls token within each cell, or None when there is none.
    dtype
        Of the weights and activations.
    device
        Where the weights are, and the model runs.
    prepared
        Tokens of all cells of the data, in their order, where they were made beforehand; else None.
    cells_together
        So many cells in a row of the data are tokenised together, because each one's tokens depend on the others; 1
        for almost all models.
    distinct_genes
        Whether no gene has two tokens in a cell, so that nobody needs to look.
    tokenizes_in_threads
        Whether :meth:`tokenize` may be called from several threads at once.
    """

    name: str
    n_layers: int
    n_heads: int
    head_dim: int
    hidden_size: int
    max_tokens: int
    genes: list[str]
    default_readout: Literal["cls", "mean"]
    cls_position: int | None
    dtype: torch.dtype
    device: torch.device
    prepared: Tokens | None = None
    cells_together: int = 1
    distinct_genes: bool = False
    tokenizes_in_threads: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """Options of the model on which results depend, for the record of a run."""
        return {}

    @abc.abstractmethod
    def tokenize(
        self, counts: sparse.csr_matrix, var: pd.DataFrame, n_counts: np.ndarray | None = None
    ) -> Tokens:
        """Tokens of every row of ``counts`` [cells, genes], whose columns ``var`` describes."""

    def gene_report(self, var: pd.DataFrame) -> str | None:
        """One sentence: which genes of the data the vocabulary knows, how they were found, which are lost.

        None where tokens do not come from names of genes.
        """
        match = getattr(self, "match", None)
        return None if match is None else match(var).describe()

    @abc.abstractmethod
    def forward(self, tokens: Tokens, recorder: Recorder) -> None:
        """Run the model over all cells of ``tokens`` at once; ``recorder`` computes the attention.

        Tokens on another device are copied to that of the model; what is recorded stays there.
        """

    def check_target(self, target: TargetLike, gene_names: Sequence[str] | None = None) -> Target:
        """The target of a gradient, with all that :meth:`forward` needs to know of it.

        Parameters
        ----------
        target
            Given to the observables.
        gene_names
            Names of the counts' columns.

        Raises
        ------
        ValueError
            A head, a class or a gene that the model does not have.
        """
        raise ValueError(f"target={str(target)!r}: {self.name} cannot be differentiated")

    @abc.abstractmethod
    def to(self, device: torch.device | str) -> Self:
        """The same model with its weights on ``device``, itself where they are there already; else a copy."""

    def in_blocks(self, tokens: int) -> AttentionSource | None:
        """The same model, its queries and what follows them in blocks of so many tokens; None: it cannot.

        A cell that does not fit into memory as a whole may fit so; its results are the same up to rounding.
        """
        return None

    @abc.abstractmethod
    def untrained(self, seed: int = 0) -> AttentionSource:
        """The same architecture, vocabulary and device with freshly initialised weights: the null model."""

    @abc.abstractmethod
    def bytes_per_token(self) -> TokenBytes:
        """What one token costs in memory."""
