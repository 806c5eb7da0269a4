"""Inputs and clocks: contenders take turns, a figure is the median over the rounds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch

from scfast import ops
from scfast.packing import Packing

Run = Callable[[], object]
#: Does a run, and returns what gives its seconds: on a GPU they are known once the queue is through.
Clock = Callable[[Run], Callable[[], float]]
Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Inputs:
    """A batch of cells: q, k, v, d_out [T, H, D] of one dtype, and what a forward pass leaves for the backward."""

    packing: Packing
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    d_out: torch.Tensor
    out: torch.Tensor
    lse: torch.Tensor  # float32 [T, H]
    weights: torch.Tensor  # float32 [3, T]

    @cached_property
    def gram(self) -> torch.Tensor:
        """[T, H, H]: inner products of the values of every token's heads, for maps of norms."""
        return torch.einsum("jhd,jgd->jhg", self.v.float(), self.v.float())

    @classmethod
    def random(
        cls, lengths: Sequence[int], heads: int, dim: int, dtype: torch.dtype, device: torch.device | str
    ) -> Inputs:
        """Normal numbers, the same ones every time."""
        random = torch.Generator(device).manual_seed(0)
        packing = Packing.from_lengths(lengths, device=device)
        shape = (4, packing.total_q, heads, dim)
        q, k, v, d_out = torch.randn(shape, generator=random, device=device).to(dtype).unbind(0)
        weights = torch.rand((3, packing.total_q), generator=random, device=device) + 0.5
        out = torch.empty_like(v)
        lse = torch.empty((packing.total_q, heads), device=device)
        if packing.total_q:
            full = ops.attention_forward(q, k, v, packing)
            out, lse = full.out, full.lse
        return cls(packing, q, k, v, d_out, out.contiguous(), lse, weights)


def host_clock(run: Run) -> Callable[[], float]:
    """Seconds of the host's clock around a run."""
    start = time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    return lambda: seconds


def gpu_clock(run: Run) -> Callable[[], float]:
    """Seconds between two events of the GPU around a run; asking for them waits for the GPU."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()

    def seconds() -> float:
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    return seconds


def clock_of(device: torch.device) -> Clock:
    """The clock that a device is timed by."""
    return gpu_clock if device.type == "cuda" else host_clock


def medians(runs: Mapping[Name, Run], rounds: int, clock: Clock) -> dict[Name, float]:
    """Seconds of every run: each once per round, in turn.

    Examples
    --------
    >>> from scfast.bench.timing import host_clock, medians
    >>> sorted(medians({"nothing": lambda: None, "a sum": lambda: sum(range(99))}, 3, host_clock))
    ['a sum', 'nothing']
    """
    waiting: dict[Name, list[Callable[[], float]]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            waiting[name].append(clock(run))
    return {name: statistics.median(seconds() for seconds in them) for name, them in waiting.items()}
