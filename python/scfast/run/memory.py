"""From the memory a user grants to the tokens that one batch may hold."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

import torch

from scfast.models.base import AttentionSource

UNITS = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
}
MB = 10**6
#: What a run on a CPU may use when nothing is said.
DEFAULT_MEMORY = "2GB"

#: Ids, positions, gene columns, kinds, values and the indices of the analyses, per token of a batch.
BYTES_PER_TOKEN_INDEX = 160
#: One row of a sweep: readout, current step, next step, and the float64 copies of the check of its sums.
BYTES_PER_READOUT = 40
#: Allocators round up and keep freed blocks: the share of the granted memory that batches are planned for.
USABLE_SHARE = 0.8
#: Tokens of a block, for cells that do not fit as a whole: the largest with which the longest cell does is taken.
#: Fewer rows make slower matrix products, and no other result; below the last, what is whole takes the memory.
BLOCK_TOKENS = (4096, 2048, 1024, 512, 256, 128)
#: A sweep of fewer rows costs less than the forward pass before it: not worth running the model once more.
FEW_READOUTS = 64


def parse_memory(memory: str | int) -> int:
    """Bytes of an amount such as ``"2GB"``, ``"500 MB"``, ``"1.5GiB"``, or of a number of bytes.

    Parameters
    ----------
    memory
        A number and a unit (B, kB, MB, GB, TB; KiB, MiB, GiB), or bytes.

    Returns
    -------
    int
        Bytes.

    Raises
    ------
    ValueError
        When it is no amount of memory, or not a positive one.

    Examples
    --------
    >>> parse_memory("2GB"), parse_memory("0.5 GiB"), parse_memory(1000)
    (2000000000, 536870912, 1000)
    """
    if isinstance(memory, int) and not isinstance(memory, bool):
        amount = memory
    else:
        match = (
            re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-zA-Z]+)\s*", memory)
            if isinstance(memory, str)
            else None
        )
        if match is None or match[2].upper() not in UNITS:
            raise ValueError(
                f"memory={memory!r} is not an amount of memory: write it like '2GB', '500MB' or '1.5GiB',"
                " or give bytes"
            )
        amount = int(float(match[1]) * UNITS[match[2].upper()])
    if amount <= 0:
        raise ValueError(f"memory={memory!r} must be positive, such as '2GB'")
    return amount


def granted_memory(memory: str | int | None, device: torch.device) -> int:
    """Bytes that batches may use: what is given, else 2 GB on a CPU and all that is free on a GPU.

    Parameters
    ----------
    memory
        An amount as :func:`parse_memory` takes it, or None.
    device
        Where the model is already.

    Returns
    -------
    int
        Bytes.

    Examples
    --------
    >>> granted_memory(None, torch.device("cpu")), granted_memory("500MB", torch.device("cpu"))
    (2000000000, 500000000)
    """
    if memory is not None:
        return parse_memory(memory)
    return free_device_memory(device) if device.type == "cuda" else parse_memory(DEFAULT_MEMORY)


def free_device_memory(device: torch.device) -> int:
    """Bytes that tensors may still take on a GPU.

    What the driver reports as free, and what torch's allocator holds without using it; no more than
    ``torch.cuda.set_per_process_memory_fraction`` leaves beyond the tensors that are there.
    """
    free, total = torch.cuda.mem_get_info(device)
    allocated = torch.cuda.memory_allocated(device)
    unused = torch.cuda.memory_reserved(device) - allocated
    limit = int(torch.cuda.get_per_process_memory_fraction(device) * total)
    return max(0, min(free + unused, limit - allocated))


def bytes_per_token(
    source: AttentionSource, *, layers_kept: int, hidden_kept: int = 0, readouts: int = 1, observed: int = 0
) -> int:
    """What one token of a batch costs while it is analysed.

    Parameters
    ----------
    source
        The model.
    layers_kept
        Layers whose q and k are kept for a backward sweep.
    hidden_kept
        Hidden states kept.
    readouts
        Rows of readout weights swept together.
    observed
        Bytes that the observables take beyond that.
    """
    parts = token_parts(
        source, layers_kept=layers_kept, hidden_kept=hidden_kept, readouts=readouts, observed=observed
    )
    return sum(parts.values())


def token_parts(
    source: AttentionSource, *, layers_kept: int, hidden_kept: int = 0, readouts: int = 1, observed: int = 0
) -> dict[str, int]:
    """The parts of :func:`bytes_per_token` by their names."""
    costs = source.bytes_per_token()
    return {
        "activations of the model": costs["activations"],
        "q and k kept of layers": layers_kept * costs["qk_per_layer"],
        "hidden states kept": hidden_kept * costs["hidden"],
        "readouts": readouts * BYTES_PER_READOUT,
        "observables": observed,
        "tokens and their places": BYTES_PER_TOKEN_INDEX,
    }


def cell_bytes(source: AttentionSource, tokens: int, **kept: int) -> int:
    """What a cell takes that is run by itself.

    Parameters
    ----------
    source
        The model, in blocks or whole.
    tokens
        Of the cell.
    **kept
        ``layers_kept`` and what else :func:`bytes_per_token` takes.
    """
    return tokens * bytes_per_token(source, **kept) + source.bytes_per_token().get("block", 0)


def smaller_block(tokens: int, block_tokens: int) -> int:
    """Blocks to try after a cell ran out of memory; 0: there are no smaller ones.

    Parameters
    ----------
    tokens
        Of the cell.
    block_tokens
        Of the blocks in which it was run; 0: whole.

    Examples
    --------
    >>> smaller_block(3000, 0), smaller_block(3000, 2048), smaller_block(3000, 128)
    (2048, 1024, 0)

    A cell shorter than any block still takes less in one, where layers are kept by what enters them.

    >>> smaller_block(100, 0)
    128
    """
    limit = min(tokens, block_tokens or tokens)
    return next((size for size in BLOCK_TOKENS if size < limit), 0 if block_tokens else BLOCK_TOKENS[-1])


def token_budget(
    memory: int, per_token: int, longest: int, *, reserved: int = 0, block: int = 0, model: str = "the model"
) -> int:
    """Tokens that one batch may hold.

    Parameters
    ----------
    memory
        Bytes granted.
    per_token
        From :func:`bytes_per_token`.
    longest
        Tokens of the longest cell, which must fit.
    reserved
        Bytes that the results take.
    block
        Bytes that one block takes, of a model that runs in blocks.
    model
        Its name, for the message.

    Returns
    -------
    int
        Tokens, no fewer than the longest cell has.

    Raises
    ------
    ValueError
        When not even the longest cell fits; the message says what it needs.

    Examples
    --------
    >>> token_budget(10**9, per_token=50_000, longest=2048)
    16000
    """
    tokens = max(0, int((memory * USABLE_SHARE - reserved - block) // per_token))
    if tokens < longest:
        own = longest * per_token + block
        needed = math.ceil((own + reserved + 1) / USABLE_SHARE / MB)
        results = f" and the results take {-(-reserved // MB)} MB" if reserved >= MB else ""
        raise ValueError(
            f"memory={memory / MB:.4g}MB is too little: the longest cell has {longest} tokens, for which"
            f" {model} needs {-(-own // MB)} MB{' in the smallest blocks' if block else ''}{results};"
            f" pass memory='{needed}MB' or more"
        )
    return tokens


def readouts_that_fit(
    source: AttentionSource,
    memory: int,
    longest: int,
    wanted: int,
    *,
    reserved: int = 0,
    each: int = 0,
    **kept: int,
) -> int:
    """How many rows of readout weights can be swept together, from 1 to all that are wanted.

    Where only few fit beside the longest cell as a whole, they are counted beside one in the smallest blocks.

    Parameters
    ----------
    source
        The model.
    memory, longest, reserved
        As for :func:`token_budget`.
    wanted
        Rows there are.
    each
        Bytes that a row takes per token beyond :data:`BYTES_PER_READOUT`.
    **kept
        ``layers_kept`` and what else :func:`bytes_per_token` takes.
    """
    forms = [form for form in (source, source.in_blocks(BLOCK_TOKENS[-1])) if form is not None]
    row = longest * (BYTES_PER_READOUT + each)
    room = memory * USABLE_SHARE - reserved
    counts = [int((room - cell_bytes(form, longest, readouts=0, **kept)) // row) for form in forms]
    most = next((count for count in counts if count >= min(wanted, FEW_READOUTS)), max(counts))
    return max(1, min(most, wanted))


class Fit(NamedTuple):
    """How a model runs within a budget.

    Attributes
    ----------
    source
        The model, in blocks if need be.
    block_tokens
        Tokens of a block; 0: whole.
    token_budget
        Tokens that one batch may hold.
    """

    source: AttentionSource
    block_tokens: int
    token_budget: int


def fit(
    source: AttentionSource,
    memory: int,
    longest: int,
    *,
    reserved: int = 0,
    in_blocks: bool = True,
    **kept: int,
) -> Fit:
    """Run whole where the longest cell fits, else in the largest blocks of tokens with which it does.

    Parameters
    ----------
    source
        The model.
    memory, longest, reserved
        As for :func:`token_budget`.
    in_blocks
        Whether what is computed can take blocks.
    **kept
        ``layers_kept`` and what else :func:`bytes_per_token` takes.

    Raises
    ------
    ValueError
        When not even the longest cell fits in the smallest blocks; the message says what it needs.
    """
    forms = [(0, source), *((n, source.in_blocks(n)) for n in BLOCK_TOKENS if in_blocks)]
    for block_tokens, form in forms:
        if form is None:
            continue
        chosen, tokens_of_block = form, block_tokens
        if cell_bytes(form, longest, **kept) + reserved <= memory * USABLE_SHARE:
            break
    budget = token_budget(
        memory, bytes_per_token(chosen, **kept), longest, reserved=reserved,
        block=chosen.bytes_per_token().get("block", 0), model=source.name,
    )  # fmt: skip
    return Fit(chosen, tokens_of_block, budget)
