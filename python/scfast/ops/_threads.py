"""How many threads an op of the CPU uses where it was not told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class _Here(threading.local):
    threads: int | None = None


_here = _Here()


def default_threads() -> int:
    """``torch.get_num_threads()``, unless this thread of Python's has fewer to itself."""
    return _here.threads or torch.get_num_threads()


@contextmanager
def op_threads(n: int) -> Iterator[None]:
    """Ops that are called in this block, from this thread of Python's, use ``n`` threads where they were not told."""
    before, _here.threads = _here.threads, n
    try:
        yield
    finally:
        _here.threads = before
