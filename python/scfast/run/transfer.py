"""Tokens to the device of the model and results back, beside the computation; on a CPU nothing moves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch

from scfast.models.base import Tokens

Results = dict[str, torch.Tensor]


class Transfer:
    """The identity: model and host share their memory.

    Attributes
    ----------
    overlaps
        Whether the host is free while a batch is computed, so that it can do the work of another one.
    """

    overlaps = False

    def active(self) -> AbstractContextManager[object]:
        """The context in which batches are computed."""
        return nullcontext()

    def upload(self, tokens: Tokens) -> Callable[[], Tokens]:
        """Start to copy tokens to the device; the call that is returned hands them to the computation."""
        return lambda: tokens

    def download(self, results: Mapping[str, torch.Tensor]) -> Callable[[], Results]:
        """Start to copy results to the host; the call that is returned waits for them, and for nothing else."""
        return lambda: dict(results)

    def release(self) -> None:
        """Give memory that the allocator holds back, before a batch is tried again."""


class GpuTransfer(Transfer):
    """Copies on two streams of their own, from and to page-locked memory.

    The computation waits for its tokens by an event, never the host for the computation: while one batch is
    computed, the tokens of the next go up and the results of the one before come down. The allocator is told of
    every stream that reads a tensor, so that none is reused too early.

    Parameters
    ----------
    device
        The GPU. Batches are computed on the stream that is current when :meth:`download` and the calls that
        :meth:`upload` returned are made.
    """

    overlaps = True

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._up, self._down = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def active(self) -> AbstractContextManager[object]:
        """The context in which batches are computed: this GPU is the current one."""
        return torch.cuda.device(self._device)

    def upload(self, tokens: Tokens) -> Callable[[], Tokens]:
        """Start to copy tokens to the GPU; the call that is returned makes the computation wait for them."""
        pinned = tokens.pin_memory()
        with torch.cuda.stream(self._up):
            moved = pinned.to(self._device, non_blocking=True)
        copied = self._up.record_event()

        def hand_over() -> Tokens:
            computing = torch.cuda.current_stream(self._device)
            computing.wait_event(copied)
            for tensor in moved.tensors():
                tensor.record_stream(computing)
            return moved

        return hand_over

    def download(self, results: Mapping[str, torch.Tensor]) -> Callable[[], Results]:
        """Start to copy results to the host as soon as they are computed; the call that is returned waits."""
        self._down.wait_event(torch.cuda.current_stream(self._device).record_event())
        host: Results = {}
        with torch.cuda.stream(self._down):
            for name, result in results.items():
                result.record_stream(self._down)
                host[name] = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
                host[name].copy_(result, non_blocking=True)
        copied = self._down.record_event()

        def wait() -> Results:
            copied.synchronize()
            return host

        return wait

    def release(self) -> None:
        """Give what the allocator holds in reserve back, before a batch is tried again."""
        torch.cuda.empty_cache()


def transfer_to(device: torch.device) -> Transfer:
    """How batches reach ``device`` and results come back."""
    return GpuTransfer(device) if device.type == "cuda" else Transfer()
