"""Work that is done ahead, in threads, and handed out in its order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import torch

from scfast.models.base import AttentionSource
from scfast.ops._threads import op_threads
from scfast.run.stages import beside, stage

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Threads that make tokens, at most: more would wait for the interpreter's lock.
THREADS = 4


def token_threads(source: AttentionSource) -> int:
    """Threads that make tokens of a model's cells, each on some cells of its own."""
    alone = not source.tokenizes_in_threads or source.prepared is not None
    return 1 if alone else min(torch.get_num_threads(), THREADS)


def in_order(work: Callable[[Item], Result], items: Iterable[Item], threads: int) -> Iterator[Result]:
    """``work(item)`` for every item, in their order.

    Each thread works on an item of its own, and shares the cores with the others within an op. As many results as
    there are threads are made ahead of the one that is asked for, and one error ends it all in the order of the items.

    Parameters
    ----------
    work
        May be called from any thread.
    items
        Are drawn in the thread that asks for results.
    threads
        1: nothing is done ahead.

    Examples
    --------
    >>> list(in_order(lambda x: x * x, range(5), threads=2))
    [0, 1, 4, 9, 16]
    """
    rest, inner = iter(items), max(1, torch.get_num_threads() // threads)
    # The first one here in any case: what it learns of the genes, threads find ready.
    yield from map(work, rest if threads == 1 else islice(rest, 1))

    def work_beside(item: Item) -> Result:
        with op_threads(inner):
            return work(item)

    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(
        threads, "scfast-tokens", initializer=beside
    )  # starts threads as they are needed
    try:
        for item in rest:
            waiting.append(pool.submit(work_beside, item))
            if len(waiting) > threads:
                yield _result(waiting.popleft())
        while waiting:
            yield _result(waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _result(future: Future[Result]) -> Result:
    with stage("waiting for tokens"):
        return future.result()
