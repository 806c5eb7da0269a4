"""Offsets beyond 2**31 elements: views of a sparse mapping, of which only the touched pages exist."""

from __future__ import annotations

import mmap
import sys
from dataclasses import replace

import pytest
import torch

from scfast.ops import (
    attention_colsum,
    attention_compare,
    attention_forward,
    attention_matmul,
    attention_rowstats,
    attention_topk,
    cosine_histogram,
    cosine_matrix,
    cosine_threshold,
    cosine_topk,
)
from tests.ops.cosine_rows import make_rows
from tests.ops.helpers import Case, make_case

#: Tokens this far apart: the third lies past 2**31 elements.
STRIDE = 2**30 + 64
#: Linux's, which Python names from 3.13 on.
MAP_NORESERVE = 0x4000
TOKENS, HEADS, DIM = 3, 3, 8


@pytest.fixture
def sparse_memory() -> torch.Tensor:
    """float16, over 2**31 elements even as float32: address space without memory behind it."""
    if sys.platform != "linux":
        pytest.skip("elsewhere a mapping may take memory before it is touched")
    size = 4 * (STRIDE * TOKENS + 4096)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
    return torch.frombuffer(mmap.mmap(-1, size, flags=flags), dtype=torch.float16)


def spread_out(x: torch.Tensor, memory: torch.Tensor, dimension: int, start: int) -> torch.Tensor:
    """A view with the values of ``x`` [T, H, D], whose tokens (0) or heads (1) lie STRIDE elements apart."""
    strides = (STRIDE, DIM, 1) if dimension == 0 else (DIM, STRIDE, 1)
    return memory.as_strided(x.shape, strides, start).copy_(x)


@pytest.mark.parametrize("dimension", [0, 1], ids=["tokens", "heads"])
def test_strides_past_two_to_the_thirty_one(dimension: int, sparse_memory: torch.Tensor, isa: str) -> None:
    case = make_case([TOKENS], heads=HEADS, dim=DIM, dtype=torch.float16)
    far = replace(
        case,
        **{
            name: spread_out(getattr(case, name), sparse_memory, dimension, 100 * n)
            for n, name in enumerate("qkv")
        },
    )
    assert far.q.stride(dimension) * 2 > 2**31
    for ours, same in zip(results(far), results(case), strict=True):
        assert torch.equal(ours, same)


def results(case: Case) -> list[torch.Tensor]:
    full = attention_forward(case.q, case.k, case.v, case.packing, received=True, entropy=True, max=True)
    sums = attention_colsum(case.q, case.k, case.packing, heads="max")
    product = attention_matmul(case.q, case.k, case.packing, torch.eye(TOKENS))
    rows = attention_rowstats(case.q, case.k, case.packing, heads="mean")
    products = attention_compare(case.q, case.k, case.q, case.k, case.packing)
    strongest = attention_topk(case.q, case.k, case.packing, 2)
    return [*full, sums, product, *rows, *products, *strongest]


def test_rows_past_two_to_the_thirty_one(sparse_memory: torch.Tensor, isa: str) -> None:
    """Of x, of y, and of the similarities."""
    x, y = make_rows(TOKENS, TOKENS, DIM, torch.float16)
    far_x, far_y = (
        sparse_memory.as_strided(rows.shape, (STRIDE, 1), 100 * n).copy_(rows)
        for n, rows in enumerate((x, y))
    )
    out = sparse_memory.view(torch.float32).as_strided((TOKENS, TOKENS), (STRIDE, 1), 200)
    for others, far in ((None, None), (y, far_y)):
        found = (
            *cosine_histogram(far_x, far),
            *cosine_threshold(far_x, -1.0, far),
            *cosine_topk(far_x, 2, far),
        )
        same = (*cosine_histogram(x, others), *cosine_threshold(x, -1.0, others), *cosine_topk(x, 2, others))
        for ours, theirs in zip(found, same, strict=True):
            assert torch.equal(ours, theirs)
        assert torch.equal(cosine_matrix(far_x, far, out=out), cosine_matrix(x, others))
