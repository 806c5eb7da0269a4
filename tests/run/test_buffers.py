"""Memory that is used again: never while somebody can still see it."""

from __future__ import annotations

import numpy as np
import torch

from scfast.run.buffers import Buffers, release_freed


def address(array):
    return array.ctypes.data


def test_memory_is_used_again_when_nobody_holds_it():
    buffers = Buffers()
    first = buffers.empty(100, np.float32, room=1000)
    place = address(first)
    first[:] = 7
    del first
    again = buffers.empty(1000, np.int32)  # fits into what was set aside
    assert address(again) == place
    assert address(buffers.empty(1000, np.int32)) != place


def test_a_view_keeps_its_memory():
    buffers = Buffers()
    whole = buffers.empty(100, np.float32)
    whole[:] = np.arange(100)
    views = [whole[10:20], whole[::2].view(np.int32), torch.from_numpy(whole)[50:]]
    del whole
    for n in range(1, 100):
        buffers.empty(n, np.float64)[:] = -1
    np.testing.assert_array_equal(views[0], np.arange(10, 20))
    np.testing.assert_array_equal(views[1].view(np.float32), np.arange(0, 100, 2))
    np.testing.assert_array_equal(views[2].numpy(), np.arange(50, 100))


def test_few_wait():
    buffers = Buffers()
    held = [buffers.empty(10, np.int8) for _ in range(50)]
    del held
    assert len(buffers._waiting) == 6
    assert buffers.empty(0, np.float64).shape == (0,)
    release_freed()
