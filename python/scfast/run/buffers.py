"""Memory for large arrays that come and go, used again instead of given back and asked for."""

from __future__ import annotations

import ctypes
import mmap
import weakref
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

#: Buffers that wait to be used again, at most.
WAITING = 6


class Buffers:
    """Arrays outside the heap, whose memory is used again when nobody holds them, or a view of them, any more.

    Arrays of some megabytes among the small ones of a heap leave holes that nothing fits into, so that a process which
    reads block after block grows although it holds no more of them.

    Examples
    --------
    >>> buffers = Buffers()
    >>> first = buffers.empty(1000, np.float32)
    >>> address = first.ctypes.data
    >>> del first
    >>> buffers.empty(1000, np.int32).ctypes.data == address
    True
    """

    def __init__(self) -> None:
        self._waiting: list[mmap.mmap] = []

    def empty(self, n: int, dtype: DTypeLike, room: int = 0) -> np.ndarray:
        """An array [n], its values undefined.

        Parameters
        ----------
        n, dtype
            Of the array.
        room
            Values to set aside where it is given new memory: those of the largest array to come. What is not written
            takes no memory.
        """
        size = np.dtype(dtype).itemsize
        needed, room = max(1, n * size), room * size
        memory = next((self._waiting.pop(i) for i, x in enumerate(self._waiting) if len(x) >= needed), None)
        if memory is None:
            memory = mmap.mmap(-1, max(needed, room), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        array = np.frombuffer(memory, dtype, n)
        weakref.finalize(array, self._take_back, memory).atexit = False
        return array

    def _take_back(self, memory: mmap.mmap) -> None:
        if len(self._waiting) < WAITING:
            self._waiting.append(memory)


def release_freed() -> None:
    """Give the holes of the heap back to the system, where the C library can (glibc): some milliseconds."""
    if (trim := _malloc_trim()) is not None:
        trim(0)


@cache
def _malloc_trim() -> Any:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # no glibc
        return None
