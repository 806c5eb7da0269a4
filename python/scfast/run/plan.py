"""The plan of a run: which cells share a shard and a batch, under which conditions. Made once, then frozen."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import pairwise

import numpy as np
import torch

from scfast import _kernels

#: More tokens in a batch are not faster on a CPU; fewer start the threads more often than they need to.
MAX_BATCH_TOKENS = 16384
#: The same for a GPU: four heads make 2048 tiles of 128 keys, which fill 132 multiprocessors fifteen times over,
#: while a batch stays small against a run, so that copies and sums of its neighbours find time beside it.
MAX_BATCH_TOKENS_GPU = 65536

#: Numbers that are hashed at once.
HASHED = 2**16


@dataclass(frozen=True, eq=False)
class Plan:
    """Batches of rows, in each shard the longest cells first, and what the numbers depend on.

    Under one plan, results are identical to the bit; under another they agree to rounding.

    Attributes
    ----------
    rows
        int32 [n], int64 where the data have 2^31 rows or more: row numbers of the cells to visit, in order of visit.
    offsets
        int64 [batches + 1]: where each batch starts in ``rows``.
    shard_rows
        int64 [shards + 1]: the rows of the data that belong to each shard, visited or not, from one entry to the next.
    shard_starts
        int64 [shards + 1]: where each shard starts in ``rows``; a batch starts there too.
    token_budget
        Most tokens of a batch.
    threads, dtype, instruction_set, seed, device
        The conditions of the run; the device is ``"cpu"`` or the name of a GPU.
    block_tokens
        Tokens of the blocks in which the model runs, because the longest cell does not fit as a whole; 0: whole.
    cells_in_blocks
        Cells that ran out of memory by themselves: place in ``rows``, and tokens of the smaller blocks in which they
        were run instead.
    """

    rows: np.ndarray
    offsets: np.ndarray
    shard_rows: np.ndarray
    shard_starts: np.ndarray
    token_budget: int
    threads: int
    dtype: str
    instruction_set: str
    seed: int
    device: str = "cpu"
    block_tokens: int = 0
    cells_in_blocks: tuple[tuple[int, int], ...] = ()

    @property
    def n_batches(self) -> int:
        """Number of batches."""
        return len(self.offsets) - 1

    @property
    def n_cells(self) -> int:
        """Number of cells that will be visited."""
        return len(self.rows)

    def batches(self) -> Iterator[np.ndarray]:
        """Row numbers of each batch, int64."""
        for start, stop in zip(self.offsets[:-1], self.offsets[1:], strict=True):
            yield self.rows[start:stop].astype(np.int64)

    @property
    def n_shards(self) -> int:
        """Number of shards."""
        return len(self.shard_rows) - 1

    def shard(self, index: int) -> Plan:
        """The plan of one shard alone."""
        start, stop = self.shard_starts[index : index + 2]
        first, last = np.searchsorted(self.offsets, start), np.searchsorted(self.offsets, stop, side="right")
        offsets = self.offsets[first:last] - start
        return replace(
            self,
            rows=self.rows[start:stop],
            offsets=offsets if stop > start else np.zeros(1, dtype=np.int64),
            shard_rows=self.shard_rows[index : index + 2],
            shard_starts=np.array([0, stop - start]),
            cells_in_blocks=tuple(
                (at - int(start), n) for at, n in self.cells_in_blocks if start <= at < stop
            ),
        )

    @property
    def hash(self) -> str:
        """Fingerprint of everything above, sha256 in hexadecimal."""
        digest = hashlib.sha256()
        for array in (self.rows, self.offsets, self.shard_rows, self.shard_starts, self.cells_in_blocks):
            values = np.ravel(array)
            for start in range(0, len(values), HASHED):
                digest.update(values[start : start + HASHED].astype("<i8").data)
        digest.update(json.dumps(self.conditions(), sort_keys=True).encode())
        return digest.hexdigest()

    def revised(self, cuts: Sequence[int], blocks: Mapping[int, int] | None = None) -> Plan:
        """What was run after memory ran out; run from the start, it gives the same bits.

        Parameters
        ----------
        cuts
            Places in ``rows`` at which batches end too.
        blocks
            Tokens of a block for cells that are run in smaller ones, by their place in ``rows``.

        Examples
        --------
        >>> import numpy as np
        >>> plan = make_plan(np.array([3, 5, 2, 4]), token_budget=7)
        >>> [batch.tolist() for batch in plan.revised([2]).batches()]
        [[1], [3], [0], [2]]
        """
        if not cuts and not blocks:
            return self
        offsets = np.union1d(self.offsets, np.asarray(cuts, dtype=np.int64))
        cells = dict(self.cells_in_blocks) | dict(blocks or {})
        return replace(self, offsets=offsets, cells_in_blocks=tuple(sorted(cells.items())))

    def conditions(self) -> dict[str, str | int]:
        """The plan without its rows, for a record of the run."""
        names = ("token_budget", "threads", "dtype", "instruction_set", "seed", "device", "block_tokens")
        return {name: getattr(self, name) for name in names} | {
            "cells": self.n_cells,
            "batches": self.n_batches,
            "shards": self.n_shards,
            "cells_in_blocks": len(self.cells_in_blocks),
        }


def make_plan(
    lengths: np.ndarray,
    *,
    token_budget: int,
    rows: np.ndarray | None = None,
    max_batch_tokens: int | None = None,
    dtype: str = "float32",
    seed: int = 0,
    device: torch.device | None = None,
    block_tokens: int = 0,
    shard_cells: int | None = None,
) -> Plan:
    """Pack cells into batches: sorted by length, the longest first, so that a batch's cells are alike.

    With shards, every so many rows of the data are packed by themselves.

    Parameters
    ----------
    lengths
        Whole numbers [cells]: tokens of each row of the data.
    token_budget
        Tokens that fit into memory at once.
    rows
        Rows to visit. Default: all.
    max_batch_tokens
        Upper limit for speed. Default: :data:`MAX_BATCH_TOKENS`, on a GPU :data:`MAX_BATCH_TOKENS_GPU`.
    dtype, seed
        Recorded.
    device
        Where the model runs; recorded. Default: the CPU.
    block_tokens
        Recorded.
    shard_cells
        Rows of the data in a shard. Default: all.

    Returns
    -------
    Plan
        Which cells, in which batches, in which shards.

    Raises
    ------
    ValueError
        When a cell is longer than the budget.

    Examples
    --------
    >>> import numpy as np
    >>> plan = make_plan(np.array([3, 5, 2, 4]), token_budget=7)
    >>> [batch.tolist() for batch in plan.batches()]
    [[1], [3, 0], [2]]
    >>> halves = make_plan(np.array([3, 5, 2, 4]), token_budget=8, shard_cells=2)
    >>> [[batch.tolist() for batch in halves.shard(i).batches()] for i in range(halves.n_shards)]
    [[[1, 0]], [[3, 2]]]
    """
    lengths = np.asarray(lengths)
    n_cells = len(lengths)
    number: type[np.integer] = np.int32 if n_cells < 2**31 else np.int64
    order: np.ndarray = np.arange(n_cells, dtype=number) if rows is None else np.array(rows, dtype=number)
    longest = int((lengths if rows is None else lengths[order]).max(initial=0))
    if longest > token_budget:
        raise ValueError(
            f"a cell of {longest} tokens does not fit a budget of {token_budget} tokens: grant more memory"
        )
    on_gpu, around = device is not None and device.type == "cuda", surroundings(device)
    if max_batch_tokens is None:
        max_batch_tokens = MAX_BATCH_TOKENS_GPU if on_gpu else MAX_BATCH_TOKENS
    limit = min(token_budget, max(longest, max_batch_tokens))
    size = shard_cells or max(n_cells, 1)
    bounds = np.append(np.arange(0, max(n_cells, 1), size), n_cells)
    if (order[1:] < order[:-1]).any():  # to their shards, in the order in which they were given
        order = order[np.argsort(order // size, kind="stable")]
    starts, offsets = np.searchsorted(order, bounds), [np.zeros(1, dtype=np.int64)]
    for start, stop in pairwise(starts):  # each in its place, because there may be millions of cells
        inside = order[start:stop]
        order[start:stop] = inside[np.argsort(-lengths[inside], kind="stable")]
        offsets.append(start + _batches(lengths[order[start:stop]], limit))
    return Plan(
        rows=order,
        offsets=np.concatenate(offsets),
        shard_rows=bounds.astype(np.int64),
        shard_starts=starts.astype(np.int64),
        token_budget=limit,
        threads=torch.get_num_threads(),
        dtype=dtype,
        instruction_set=around["instruction_set"],
        seed=seed,
        device=around["device"],
        block_tokens=block_tokens,
    )


def surroundings(device: torch.device | None = None) -> dict[str, str]:
    """What results depend on beside the plan: this machine, and its packages."""
    on_gpu = device is not None and device.type == "cuda"
    return {
        "scfast": version("scfast"),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
        "instruction_set": _kernels.instruction_set(),
        "torch kernels": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
    }


def _batches(lengths: np.ndarray, limit: int) -> np.ndarray:
    """int64 [batches]: where each batch of cells of these lengths ends."""
    ends, stops, done = np.cumsum(lengths), [], 0
    while done < len(lengths):
        before = int(ends[done - 1]) if done else 0
        done = max(int(np.searchsorted(ends, before + limit, side="right")), done + 1)
        stops.append(done)
    return np.array(stops, dtype=np.int64)
