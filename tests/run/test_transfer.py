"""Copies beside the computation: nothing moves on a CPU; on a GPU each step waits for what it must, no more."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from scfast import Packing
from scfast.models.base import Tokens
from scfast.run.transfer import GpuTransfer, Transfer, transfer_to
from tests.run.test_out_of_memory import (
    OFFSETS,
    TOKENS,
    Fuse,
    Source,
    as_planned,
    assert_same_results,
    go,
)


class Event:
    def __init__(self, log, name):
        self.log, self.name = log, name

    def synchronize(self):
        self.log.append(f"host waits for {self.name}")


class Stream:
    """Notes what is done on it."""

    def __init__(self, log, name):
        self.log, self.name, self.events = log, name, 0

    def record_event(self):
        self.events += 1
        self.log.append(f"{self.name} marks {self.name}{self.events}")
        return Event(self.log, f"{self.name}{self.events}")

    def wait_event(self, event):
        self.log.append(f"{self.name} waits for {event.name}")


@pytest.fixture
def cuda(monkeypatch):
    """torch.cuda's streams as a log, and tensors on the CPU in the place of the GPU's."""
    log: list[str] = []
    current = [Stream(log, "compute")]
    names = iter(("up", "down"))

    @contextmanager
    def stream(chosen):
        current.append(chosen)
        yield
        current.pop()

    def read_by(tensor, chosen):
        log.append(f"{chosen.name} reads")

    def copied(host, result, non_blocking=False):
        assert non_blocking
        log.append(f"{current[-1].name} copies to the host")
        return real_copy(host, result)

    real_copy, real_empty = torch.Tensor.copy_, torch.empty
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream(log, next(names)))
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current[-1])
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: log.append("cache emptied"))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.clone())
    monkeypatch.setattr(torch.Tensor, "record_stream", read_by)
    monkeypatch.setattr(torch.Tensor, "copy_", copied)
    monkeypatch.setattr(torch, "empty", lambda *size, pin_memory=False, **kw: real_empty(*size, **kw))
    return log


def test_tokens_go_up_beside_the_computation(cuda):
    transfer = GpuTransfer(torch.device("cpu"))
    hand_over = transfer.upload(TOKENS)
    assert cuda == ["up marks up1"]  # nobody waits yet
    cuda.clear()
    arrived = hand_over()
    assert cuda == ["compute waits for up1", *["compute reads"] * len(TOKENS.tensors())]
    assert arrived is not TOKENS
    assert torch.equal(arrived.ids, TOKENS.ids)


def test_results_come_down_beside_the_computation(cuda):
    transfer = GpuTransfer(torch.device("cpu"))
    results = {"a": torch.arange(3.0), "b": torch.arange(6.0).view(2, 3)}
    wait = transfer.download(results)
    copies = ["down reads", "down copies to the host"] * 2
    assert cuda == ["compute marks compute1", "down waits for compute1", *copies, "down marks down1"]
    cuda.clear()
    host = wait()
    assert cuda == ["host waits for down1"]  # for its own copies, not for the batches that follow
    assert all(torch.equal(host[name], results[name]) for name in results)
    transfer.release()
    assert cuda[-1] == "cache emptied"


def test_nothing_moves_on_a_cpu():
    transfer = transfer_to(torch.device("cpu"))
    results = {"a": torch.arange(3.0)}
    assert type(transfer) is Transfer
    assert not transfer.overlaps
    assert transfer.upload(TOKENS)() is TOKENS
    assert transfer.download(results)()["a"] is results["a"]


@pytest.mark.parametrize("share", [True, False])
def test_tokens_and_packing_move_as_a_whole(share):
    packing = Packing.from_lengths([2, 1], None if share else [2, 1])
    plain = {name: torch.zeros(3, dtype=torch.int64) for name in ("ids", "positions", "gene_index")}
    lost = {name: torch.zeros(2, dtype=torch.int64) for name in ("lost_vocabulary", "lost_truncation")}
    kind = torch.zeros(3, dtype=torch.uint8)
    tokens = Tokens(**plain, **lost, packing=packing, kind=kind, values=torch.zeros(3))
    moved = tokens.to("meta")
    assert {x.device.type for x in moved.tensors()} == {"meta"}
    assert (moved.packing.cu_seqlens_q is moved.packing.cu_seqlens_k) == share
    assert len(moved.tensors()) == 7 + 3 + (not share)
    assert moved.device == moved.packing.device == torch.device("meta")
    assert moved.lengths == (2, 1)
    assert tokens.to("cpu") is tokens
    assert moved.select([1]).packing.device.type == "meta"
    assert moved.external is None


class Overlapping(Transfer):
    """A device of its own, as far as the order of things goes."""

    overlaps = True

    def __init__(self, log, fuse):
        self.log, self.fuse = log, fuse

    def upload(self, tokens):
        self.log.append(f"up {tokens.n_cells}")
        self.fuse()
        return lambda: tokens

    def download(self, results):
        cells = len(results["hidden_states"])
        self.log.append(f"computed {cells}")

        def wait():
            self.log.append(f"added {cells}")
            return dict(results)

        return wait


@pytest.fixture
def overlapping(monkeypatch):
    log, fuse = [], Fuse()
    monkeypatch.setattr("scfast.run.runner.transfer_to", lambda device: Overlapping(log, fuse))
    return log, fuse


def test_the_next_batch_goes_up_and_the_one_before_is_added_while_one_is_computed(overlapping):
    log, _ = overlapping
    results = go(Source())
    assert np.diff(OFFSETS).tolist() == [2, 3, 2]
    assert log == [
        "up 2", "computed 2", "up 3",
        "computed 3", "up 2", "added 2",
        "computed 2", "added 3",
        "added 2",
    ]  # fmt: skip
    np.testing.assert_array_equal(results["scores"].cells, [3, 2, 2])


def test_memory_that_runs_out_at_any_operation_beside_another_batch(overlapping):
    for at in range(1, 1000, 7):
        source = Source(Fuse(at))
        got = go(source)
        cuts = set(got.plan.offsets.tolist()) - set(OFFSETS.tolist())
        if source.fuse.calls < at:
            assert not cuts
            return
        (cut,) = cuts
        assert len(source.forwards) == len(OFFSETS) + 1
        assert_same_results(got, as_planned(cut))
    raise AssertionError("the last operation was not reached")


@pytest.mark.parametrize("at", [1, 2, 3])
def test_tokens_that_do_not_fit_yet_go_up_later(at, overlapping):
    log, fuse = overlapping
    fuse.at = at
    got = go(Source())
    assert got.plan.n_batches == len(OFFSETS) - 1  # no batch was halved
    assert sum(entry.startswith("up") for entry in log) == len(OFFSETS)


def test_tokens_that_do_not_fit_at_all(overlapping):
    _, fuse = overlapping
    fuse.at, fuse.blown = 1, True
    with pytest.raises(MemoryError, match="no other cell beside it"):
        go(Source())
