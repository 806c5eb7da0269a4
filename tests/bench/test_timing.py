"""Clocks and turns."""

from __future__ import annotations

import pytest
import torch

from scfast.bench.micro import OPS, PEER, time_ops
from scfast.bench.timing import Inputs, host_clock, medians


def test_contenders_take_turns_and_the_median_counts() -> None:
    order: list[str] = []
    seconds = {"a": iter([3.0, 1.0, 2.0]), "b": iter([9.0, 9.0, 1.0])}

    def clock(run):
        run()
        elapsed = next(seconds[order[-1]])
        return lambda: elapsed

    found = medians({name: (lambda name=name: order.append(name)) for name in "ab"}, 3, clock)
    assert order == list("ababab")
    assert found == {"a": 2.0, "b": 9.0}


def test_the_hosts_clock_takes_the_time_of_the_run() -> None:
    calls = []
    seconds = host_clock(lambda: calls.append(1))
    assert calls == [1]
    assert seconds() > 0


def test_inputs_are_the_same_every_time_and_may_be_empty() -> None:
    one, two = (Inputs.random([3, 0, 2], 2, 4, torch.float32, "cpu") for _ in range(2))
    assert torch.equal(one.q, two.q)
    assert one.lse.shape == (5, 2)
    assert Inputs.random([], 2, 4, torch.float32, "cpu").out.shape == (0, 2, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_op_is_timed_beside_torch(dtype: torch.dtype) -> None:
    rows = time_ops(cells=2, tokens=9, heads=2, dim=8, dtype=dtype, rounds=1)
    assert [row["name"] for row in rows] == [*OPS, PEER]
    assert all(row["seconds"] > 0 for row in rows)
    assert rows[-1]["ratio"] == 1
