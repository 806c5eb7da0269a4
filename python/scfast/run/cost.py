"""How long a run takes: a few pieces of it are timed, from which the cost of all others follows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from time import perf_counter
from typing import NamedTuple

import numpy as np
import scipy

from scfast.run.plan import Plan
from scfast.run.runner import visit
from scfast.run.shards import ShardedRun

#: Tokens of the smallest pieces; those that follow are twice as large, again and again.
SMALLEST = 512
#: Pieces that are timed however long they take: cells of three lengths.
LEAST = 3


class Sample(NamedTuple):
    """A piece that was timed: its tokens, its pairs of tokens of one cell, and what it took."""

    tokens: int
    pairs: int
    seconds: float


class Cost(NamedTuple):
    """Seconds of a batch: a constant, a part for every token, and one for every pair of tokens of one cell.

    Attributes
    ----------
    per_batch, per_token, per_pair
        Seconds.
    error
        By how much a piece is mistaken, typically, by the cost that the others show: a share; nan for fewer than three.
    samples
        What was timed.
    """

    per_batch: float
    per_token: float
    per_pair: float
    error: float
    samples: tuple[Sample, ...]

    def seconds(self, batches: float, tokens: float, pairs: float) -> float:
        """What so much takes."""
        return self.per_batch * batches + self.per_token * tokens + self.per_pair * pairs


def fit_cost(samples: Sequence[Sample]) -> Cost:
    """The cost that fits best: least squares of relative errors, no part of it negative.

    Few samples show few parts: one the tokens alone, up to three tokens and a constant.

    Examples
    --------
    >>> samples = [Sample(t, t * n, 0.1 + 2e-4 * t + 1e-8 * t * n) for t in (512, 4096) for n in (64, 128, 512)]
    >>> cost = fit_cost(samples)
    >>> f"{cost.per_batch:.3f} {cost.per_token:.2e} {cost.per_pair:.2e} {cost.error:.1%}"
    '0.100 2.00e-04 1.00e-08 0.0%'
    """
    parts = _solve(samples)
    errors = []
    for i, sample in enumerate(samples if len(samples) >= LEAST else ()):
        others = Cost(*_solve([*samples[:i], *samples[i + 1 :]]), math.nan, ())
        errors.append(abs(others.seconds(1, sample.tokens, sample.pairs) / sample.seconds - 1))
    return Cost(*parts, float(np.median(errors)) if errors else math.nan, tuple(samples))


def _solve(samples: Sequence[Sample]) -> tuple[float, float, float]:
    tokens, pairs, seconds = (np.array(x, dtype=np.float64) for x in zip(*samples, strict=True))
    columns = np.stack([np.ones(len(samples)), tokens, pairs])
    used = [1] if len(samples) == 1 else [0, 1] if len(samples) <= LEAST else [0, 1, 2]
    scale = columns[used].max(1)
    found, _ = scipy.optimize.nnls((columns[used] / scale[:, None] / seconds).T, np.ones(len(samples)))
    parts = np.zeros(3)
    parts[used] = found / scale
    return float(parts[0]), float(parts[1]), float(parts[2])


def pieces(plan: Plan, lengths: np.ndarray) -> Iterator[Plan]:
    """Growing parts of the batches of one shard, the fullest: of its shortest cells, of its longest, of those between.

    Parameters
    ----------
    plan
        Of the run.
    lengths
        int64 [cells]: tokens of each row of the data.

    Examples
    --------
    >>> from scfast.run import make_plan
    >>> lengths = np.arange(100, 120)
    >>> plan = make_plan(lengths, token_budget=2000)
    >>> [(piece.rows.tolist(), int(lengths[piece.rows].sum())) for piece in pieces(plan, lengths)][:3]
    [([4, 3, 2, 1, 0], 510), ([12, 11, 10, 9], 442), ([19, 18, 17, 16], 470)]
    """
    shard = plan.shard(int(np.argmax(np.diff(plan.shard_starts))))
    n, ends = shard.n_cells, np.concatenate([[0], np.cumsum(lengths[shard.rows])])
    done: set[tuple[int, int]] = set()
    size = SMALLEST
    while n:
        size = min(size, plan.token_budget)
        for place in (n, n // 2 + 1, 0):
            if place == 0:
                start, stop = 0, max(1, int(np.searchsorted(ends, size, side="right")) - 1)
            else:
                start = min(place - 1, int(np.searchsorted(ends, ends[place] - size)))
                stop = place
            if (start, stop) not in done:
                done.add((start, stop))
                yield _part(shard, start, stop)
        if size == plan.token_budget:
            return
        size *= 2


def _part(shard: Plan, start: int, stop: int) -> Plan:
    ends = np.array([0, stop - start])
    return replace(shard, rows=shard.rows[start:stop], offsets=ends, shard_starts=ends, cells_in_blocks=())


def calibrate(
    run: ShardedRun, lengths: np.ndarray, seconds: float, clock: Callable[[], float] = perf_counter
) -> Cost | None:
    """Run a few pieces, from small to large, for about so long; their results are thrown away.

    Parameters
    ----------
    run
        What is planned.
    lengths
        int64 [cells]: tokens of each row of the data.
    seconds
        For all pieces; three small ones are run however long they take.
    clock
        Tells the time in seconds.

    Returns
    -------
    Cost or None
        None where there is nothing to run.
    """
    samples: list[Sample] = []
    begun = clock()
    for piece in pieces(run.plan, lengths):
        sizes = lengths[piece.rows]
        tokens, pairs = int(sizes.sum()), int(np.dot(sizes, sizes))
        if len(samples) >= LEAST:
            expected = samples[-1].seconds * tokens / max(samples[-1].tokens, 1)
            if clock() - begun + expected > seconds:
                break
        run.counts.tokenize(
            run.source, piece.rows
        )  # what is on the disk is read beside the model, not before it
        for _ in range(1 if samples else 2):  # the first time, kernels are compiled and threads started
            started = clock()
            visit(run.source, run.counts, run.fresh(), piece, run.observables, done=_ignore, **run.options)
            took = clock() - started
        samples.append(Sample(tokens, pairs, max(took, 1e-9)))
    return fit_cost(samples) if samples else None


def _ignore(cells: int) -> None:
    pass
