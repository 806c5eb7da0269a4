"""Telling that memory ran out, and what a user can do when one cell alone is too large."""

from __future__ import annotations

import math

import torch

from scfast.models.base import AttentionSource
from scfast.run.memory import MB, USABLE_SHARE, free_device_memory

#: Errors of no type of their own: torch's allocator on a CPU (Linux, Windows), page-locked memory, cuBLAS.
MESSAGES = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was too little memory, so that a smaller batch may do."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in MESSAGES)


def cell_too_large(
    source: AttentionSource,
    row: int,
    tokens: int,
    per_token: int,
    reason: str,
    *,
    block_tokens: int = 0,
) -> MemoryError:
    """The error for a cell that does not fit by itself.

    Parameters
    ----------
    source
        The model, in the form that needs least.
    row, tokens
        Which cell, and its length.
    per_token
        Bytes that a token takes beside the block.
    reason
        What the allocator said.
    block_tokens
        Tokens of the blocks in which it was run last; 0: whole.
    """
    own = tokens * per_token + source.bytes_per_token().get("block", 0)
    needed = math.ceil(own / USABLE_SHARE / MB)
    blocks = f" in blocks of {block_tokens} tokens, the smallest" if block_tokens else ""
    free, remedy = "", "free memory, or run it on a machine that has more"
    if source.device.type == "cuda":
        free = f", where {free_device_memory(source.device) // MB} MB are free"
        remedy = "end what else uses that GPU, load the model with a smaller dtype, or use device='cpu'"
    return MemoryError(
        f"the cell in row {row} has {tokens} tokens, for which {source.name} needs about {needed} MB"
        f"{blocks} on {source.device}{free}; it ran out of memory with no other cell beside it ({reason}): {remedy}"
    )
