"""How the cells of a batch lie side by side: the one layout that every op reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import torch

#: Query rows per unit of work. A partial sum belongs to one unit and units are added in order, so results
#: do not depend on how many threads there are; every instruction set's strip height divides it.
ROWS_PER_UNIT = 480
#: The fields of a packing that are tensors.
_INDEX = ("cu_seqlens_q", "cu_seqlens_k", "work", "causal_offset")


@dataclass(frozen=True)
class Packing:
    """Cells packed one after another, without padding.

    Build it once per batch with :meth:`from_lengths`; every layer and every op then shares it.

    Attributes
    ----------
    cu_seqlens_q, cu_seqlens_k
        int32 [B + 1]: where each cell's queries and keys start; the last entry is the total.
    work
        int32 [W, 2]: (cell, first query row within the cell) of every unit of work, longest cell first.
    causal_offset
        int32 [B]: under ``causal=True`` query i sees keys j <= i + offset.
    lengths_q, lengths_k
        The same lengths as Python integers, for checks without a device synchronisation.
    """

    cu_seqlens_q: torch.Tensor
    cu_seqlens_k: torch.Tensor
    work: torch.Tensor
    causal_offset: torch.Tensor
    lengths_q: tuple[int, ...] = field(repr=False)
    lengths_k: tuple[int, ...] = field(repr=False)

    @classmethod
    def from_lengths(
        cls,
        lengths: Sequence[int] | torch.Tensor,
        lengths_k: Sequence[int] | torch.Tensor | None = None,
        *,
        device: torch.device | str | None = None,
        causal_offset: Sequence[int] | None = None,
    ) -> Packing:
        """Pack cells of the given lengths.

        Parameters
        ----------
        lengths
            Queries per cell; zero is allowed.
        lengths_k
            Keys per cell, where they differ (query blocks, one-row readouts). Default: ``lengths``.
        device
            Where the index tensors live. Default: the CPU.
        causal_offset
            Per cell. Default: the last query is aligned with the last key.

        Examples
        --------
        >>> packing = Packing.from_lengths([3, 0, 2])
        >>> packing.cu_seqlens_q.tolist(), packing.total_q
        ([0, 3, 3, 5], 5)
        """
        queries = _as_lengths(lengths, "lengths")
        keys = queries if lengths_k is None else _as_lengths(lengths_k, "lengths_k")
        if len(keys) != len(queries):
            raise ValueError(
                f"lengths_k has {len(keys)} cells and lengths has {len(queries)}: give one of each per cell"
            )
        n_q, n_k = np.array(queries, dtype=np.int64), np.array(keys, dtype=np.int64)
        offsets = n_k - n_q
        if causal_offset is not None:
            offsets = np.array([int(offset) for offset in causal_offset], dtype=np.int64)
            if len(offsets) != len(queries):
                raise ValueError(f"causal_offset has {len(offsets)} entries for {len(queries)} cells")
        longest_first = np.argsort(-n_q * np.maximum(n_k, 1), kind="stable")
        units = -(-n_q[longest_first] // ROWS_PER_UNIT)
        first = np.arange(units.sum()) - np.repeat(np.cumsum(units) - units, units)
        work = np.stack([np.repeat(longest_first, units), first * ROWS_PER_UNIT], axis=-1)

        def index(values: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(values.astype(np.int32)).to(device)

        cu_seqlens_q = index(np.concatenate([[0], np.cumsum(n_q)]))
        return cls(
            cu_seqlens_q=cu_seqlens_q,
            cu_seqlens_k=cu_seqlens_q if lengths_k is None else index(np.concatenate([[0], np.cumsum(n_k)])),
            work=index(work),
            causal_offset=index(offsets),
            lengths_q=queries,
            lengths_k=keys,
        )

    @property
    def n_cells(self) -> int:
        """Cells of the batch."""
        return len(self.lengths_q)

    @cached_property
    def total_q(self) -> int:
        """Queries of all cells."""
        return sum(self.lengths_q)

    @cached_property
    def total_k(self) -> int:
        """Keys of all cells."""
        return sum(self.lengths_k)

    @property
    def device(self) -> torch.device:
        """Where the index tensors live."""
        return self.cu_seqlens_q.device

    @cached_property
    def starts_q(self) -> tuple[int, ...]:
        """First packed row of each cell's queries."""
        return tuple(accumulate(self.lengths_q, initial=0))[:-1]

    @cached_property
    def starts_k(self) -> tuple[int, ...]:
        """First packed row of each cell's keys."""
        return tuple(accumulate(self.lengths_k, initial=0))[:-1]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Packing:
        """The same cells with the index tensors on ``device``; itself where they are there already.

        Parameters
        ----------
        device
            Where to.
        non_blocking
            Do not wait for the copies: from pinned memory to a GPU they run beside the computation.
        """
        return self._map(lambda index: index.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Packing:
        """The same cells with the index tensors in page-locked memory, from which a GPU copies by itself."""
        return self._map(torch.Tensor.pin_memory)

    def tensors(self) -> list[torch.Tensor]:
        """The index tensors, each once: queries and keys may share theirs."""
        return list({id(x): x for x in (getattr(self, name) for name in _INDEX)}.values())

    def _map(self, move: Callable[[torch.Tensor], torch.Tensor]) -> Packing:
        moved = {id(index): move(index) for index in self.tensors()}
        if all(moved[id(index)] is index for index in self.tensors()):
            return self
        fields: dict[str, Any] = {name: moved[id(getattr(self, name))] for name in _INDEX}
        return replace(self, **fields)

    def split_q(self, packed: torch.Tensor, dim: int = 0) -> tuple[torch.Tensor, ...]:
        """Views of a packed tensor, one per cell, along its query dimension."""
        return packed.split(list(self.lengths_q), dim=dim)

    def split_k(self, packed: torch.Tensor, dim: int = 0) -> tuple[torch.Tensor, ...]:
        """Views of a packed tensor, one per cell, along its key dimension."""
        return packed.split(list(self.lengths_k), dim=dim)

    def of_queries(self, rows: torch.Tensor) -> Packing:
        """The same keys, and of the queries only the packed rows int64 [M], which rise.

        Examples
        --------
        >>> packing = Packing.from_lengths([3, 2]).of_queries(torch.tensor([0, 2, 3]))
        >>> packing.lengths_q, packing.lengths_k
        ((2, 1), (3, 2))
        """
        ends = torch.searchsorted(rows.cpu(), torch.tensor(list(accumulate(self.lengths_q))))
        counts = torch.diff(ends, prepend=ends.new_zeros(1))
        return Packing.from_lengths(counts, self.lengths_k, device=self.device)

    def cell_of_query(self) -> torch.Tensor:
        """int64 [Tq]: the cell that each packed query row belongs to."""
        lengths = torch.tensor(self.lengths_q, dtype=torch.int64, device=self.device)
        cells = torch.arange(self.n_cells, device=self.device)
        return torch.repeat_interleave(cells, lengths, output_size=self.total_q)

    def position_of_query(self) -> torch.Tensor:
        """int64 [Tq]: place of each query within its cell, from 0."""
        starts = torch.tensor(self.starts_q, dtype=torch.int64, device=self.device)
        return torch.arange(self.total_q, device=self.device) - starts[self.cell_of_query()]

    def uniform_row_weights(self) -> torch.Tensor:
        """float32 [Tq]: 1/n for each of a cell's n queries, so that every cell's weights sum to 1."""
        lengths = torch.tensor(self.lengths_q, dtype=torch.int64, device=self.device)
        share = 1.0 / lengths.clamp(min=1)
        return torch.repeat_interleave(share, lengths, output_size=self.total_q).to(torch.float32)


def _as_lengths(lengths: Sequence[int] | torch.Tensor, name: str) -> tuple[int, ...]:
    values = tuple(map(int, lengths.tolist() if isinstance(lengths, (torch.Tensor, np.ndarray)) else lengths))
    if min(values, default=0) < 0:
        raise ValueError(
            f"{name} must not be negative; got {min(values)} for cell {values.index(min(values))}"
        )
    if sum(values) >= 2**31:
        raise ValueError(f"{name} add up to {sum(values)} tokens; one batch holds fewer than 2**31: split it")
    return values
