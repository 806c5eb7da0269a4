"""Cosine similarities in Triton's interpreter: see interpreted.py. float32 rows are multiplied as pairs of float16."""

from __future__ import annotations

import pytest
import torch

from scfast import Packing, ops
from scfast.ops import _dispatch, _triton
from tests.ops import (
    test_cosine_histogram,
    test_cosine_matrix,
    test_cosine_threshold,
    test_cosine_topk,
)
from tests.ops.cosine_rows import SHAPES, make_rows

MODULES = (test_cosine_histogram, test_cosine_matrix, test_cosine_threshold, test_cosine_topk)
DTYPES = (torch.float32, torch.float16)
SMALL = ("nothing", "no y", "one row", "two rows", "7", "33", "7 and 33", "49 and 1", "deep")
LENGTHS, OTHERS = [40, 0, 1, 35, 7], [33, 5, 0, 38, 1]


@pytest.fixture(autouse=True)
def _triton_is_picked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The op tests run as they are, on the Triton kernels, and once instead of for each instruction set."""
    assert _triton.INTERPRETED
    backends = {name: _dispatch.BACKENDS[name] for name in ("triton", "reference")}
    monkeypatch.setattr(_dispatch, "BACKENDS", backends)
    for module in MODULES:
        monkeypatch.setattr(module, "every_instruction_set", lambda: iter(["triton"]), raising=False)
    # Nearest rows of x itself are found as those of any other y.
    matrix = ops.cosine_matrix
    monkeypatch.setattr(test_cosine_topk, "cosine_matrix", lambda x, y=None: matrix(x, x if y is None else y))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SMALL)
def test_shapes(shape: str, dtype: torch.dtype) -> None:
    x, y = make_rows(*SHAPES[shape], dtype)
    test_cosine_matrix.check(x, y)
    test_cosine_histogram.check(x, y)
    test_cosine_threshold.check(x, 0.4, y)
    test_cosine_topk.check(x, 5, y)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sums_of_many_columns(dtype: torch.dtype) -> None:
    test_cosine_matrix.check(*make_rows(20, 25, 20_000, dtype))


@pytest.mark.parametrize("bins", [1, 3, 64, 200, 2**16])
def test_similarities_on_the_borders_of_bins(bins: int) -> None:
    """One window, several, and bins that are counted one by one."""
    x = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0])] * 4)
    test_cosine_histogram.check(x, None, bins)
    test_cosine_histogram.check(x[:50], x[20:], bins)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zeros_and_broken_rows(dtype: torch.dtype) -> None:
    test_cosine_matrix.test_zeros_are_0_and_broken_rows_nan(dtype, "triton")
    x, y = make_rows(40, 50, 33, dtype)
    x[[7, 36]], x[30, 3], y[4], y[40, 1] = 0, torch.nan, 0, torch.inf
    for other in (None, y):
        test_cosine_histogram.check(x, other)
        test_cosine_threshold.check(x, 0.0, other)
        test_cosine_topk.check(x[:36], 45, other)


def test_lengths_that_float32_cannot_square() -> None:
    test_cosine_matrix.test_lengths_that_float32_cannot_square(torch.float32, "triton")


def test_similarities_do_not_depend_on_memory_around_the_rows() -> None:
    x, y = make_rows(50, 40, 40)
    first = ops.cosine_matrix(x, y)
    wide = torch.full((50, 97), torch.nan)
    wide[:, 20:60] = x
    assert torch.equal(ops.cosine_matrix(wide[:, 20:60], y), first)
    assert torch.equal(ops.cosine_matrix(x.T.contiguous().T, y), first)
    whole = torch.full((90, 100), 7.0)
    assert torch.equal(ops.cosine_matrix(x, y, out=whole[5:55, 10:50]), first)
    assert (whole == 7).sum() == 90 * 100 - 50 * 40


@pytest.mark.parametrize("lengths_k", [None, OTHERS], ids=["itself", "others"])
def test_cells_are_apart(lengths_k: list[int] | None) -> None:
    """To the bit what each cell gives by itself; a threshold gives blocks of one matrix."""
    packing = Packing.from_lengths(LENGTHS, lengths_k)
    x, y = make_rows(packing.total_q, None if lengths_k is None else packing.total_k, 33)
    x[41] = 0
    of_cells = list(zip(packing.split_q(x), packing.split_k(x if y is None else y), strict=True))
    alone = [(rows, None if y is None else keys) for rows, keys in of_cells]
    blocks = ops.cosine_matrix(x, y, packing=packing)
    assert torch.equal(blocks, torch.cat([ops.cosine_matrix(*pair).flatten() for pair in alone]))
    counted = ops.cosine_histogram(x, y, packing=packing, bins=50)
    found = ops.cosine_topk(x, 6, y, packing=packing)
    similar = ops.cosine_threshold(x, 0.42, y, packing=packing)
    starts = packing.cu_seqlens_k.tolist()
    columns, values = [], []
    for cell, (rows, keys) in enumerate(alone):
        for mine, same in zip(counted, ops.cosine_histogram(rows, keys, bins=50), strict=True):
            assert torch.equal(mine[cell], same)
        nearest = ops.cosine_topk(rows, 6, keys)
        assert torch.equal(packing.split_q(found.indices)[cell], nearest.indices)
        assert torch.equal(found.n_zero[cell], nearest.n_zero)
        pairs = ops.cosine_threshold(rows, 0.42, keys)
        columns.append(pairs.indices + starts[cell])
        values.append(pairs.values)
    assert torch.equal(similar.indices, torch.cat(columns))
    assert torch.equal(similar.values, torch.cat(values))
    assert len(similar.values) > 0


def test_more_than_a_pass_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three passes, of rows with few similarities: equal ones are in the order of their rows in all."""
    from scfast.kernels import cosine_topk

    monkeypatch.setattr(cosine_topk, "ENTRIES", 16)
    x = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0])] * 4)
    test_cosine_topk.check(x[:20], 40, x)
    test_cosine_topk.check(x[:35], 40)


def test_too_many_pairs_are_refused() -> None:
    x = torch.ones(40, 4)
    assert len(ops.cosine_threshold(x, 0.9, max_pairs=780).values) == 780
    with pytest.raises(ValueError, match="780 pairs or more reach the threshold"):
        ops.cosine_threshold(x, 0.9, max_pairs=779)


def test_launches_in_parts_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from scfast.ops import _cosine_triton

    packing = Packing.from_lengths([100, 5, 40])
    x, _ = make_rows(145, None, 16)
    whole = ops.cosine_histogram(x, packing=packing)
    pairs = ops.cosine_threshold(x, 0.3, packing=packing)
    monkeypatch.setattr(_cosine_triton, "TILES_OF_A_LAUNCH", 5)
    for mine, same in zip(ops.cosine_histogram(x, packing=packing), whole, strict=True):
        torch.testing.assert_close(mine, same, rtol=1e-12, atol=0)
    for mine, same in zip(ops.cosine_threshold(x, 0.3, packing=packing), pairs, strict=True):
        assert torch.equal(mine, same)
