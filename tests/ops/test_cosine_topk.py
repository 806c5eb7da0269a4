"""cosine_topk: the sorted rows of cosine_matrix, ties by the smaller index, zeros and NaN, cells, threads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scfast import Packing
from scfast.ops import cosine_matrix, cosine_topk
from scfast.reference import cosine_topk as oracle
from tests.ops.cosine_rows import SHAPES, make_rows
from tests.ops.helpers import DTYPES, every_instruction_set


def expected(x: torch.Tensor, k: int, y: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The sorted rows of the op's own similarities; cosine_matrix is held to float64 by its own tests."""
    s = cosine_matrix(x, y)
    left_out = s.isnan()
    if y is None:
        left_out.fill_diagonal_(True)
    order = torch.where(left_out, torch.inf, -s).sort(dim=1, stable=True)
    values, indices = torch.full((len(x), k), torch.nan), torch.full((len(x), k), -1)
    kept = min(k, s.shape[1])
    real = order.values[:, :kept] < torch.inf
    values[:, :kept] = torch.where(real, -order.values[:, :kept], torch.nan)
    indices[:, :kept] = torch.where(real, order.indices[:, :kept], -1)
    return values, indices


def check(x: torch.Tensor, k: int, y: torch.Tensor | None = None) -> None:
    for isa in every_instruction_set():
        got = cosine_topk(x, k, y)
        values, indices = expected(x, k, y)
        assert torch.equal(got.indices, indices), isa
        assert torch.equal(got.values.nan_to_num(5.0), values.nan_to_num(5.0)), isa
        assert torch.equal(got.n_zero, oracle(x, 1, y)[2][0]), isa


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape: str, dtype: torch.dtype) -> None:
    x, y = make_rows(*SHAPES[shape], dtype)
    check(x, 5, y)


@pytest.mark.parametrize("k", [1, 2, 31, 32, 33, 128, 700])
def test_few_and_many(k: int) -> None:
    check(make_rows(500, None, 24)[0], k)
    check(*(lambda x, y: (x, k, y))(*make_rows(33, 600, 24)))


@given(
    n=st.integers(0, 150),
    m=st.none() | st.integers(0, 150),
    dim=st.integers(1, 100),
    k=st.integers(1, 160),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**31),
)
def test_any_input(n: int, m: int | None, dim: int, k: int, dtype: torch.dtype, seed: int) -> None:
    x, y = make_rows(n, m, dim, dtype, seed)
    check(x, k, y)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_ties_are_in_the_order_of_their_rows(dtype: torch.dtype) -> None:
    x = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0])] * 6).to(dtype)  # 729 rows, few similarities
    check(x, 40)
    check(x[:100], 40, x)
    same = torch.ones(300, 5, dtype=dtype)
    assert torch.equal(cosine_topk(same, 3).indices[3:], torch.arange(3).expand(297, 3))
    assert cosine_topk(same, 3).indices[:2].tolist() == [[1, 2, 3], [0, 2, 3]]


def test_against_float64(isa: str) -> None:
    x, y = make_rows(300, 400, 64)
    for other in (None, y):
        got, (values, _, _) = cosine_topk(x, 9, other), oracle(x, 9, other)
        torch.testing.assert_close(got.values.double(), values, rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zeros_are_0_and_broken_rows_left_out(dtype: torch.dtype) -> None:
    x, y = make_rows(300, 80, 33, dtype)
    x[[7, 200]], x[50, 3], y[4], y[60, 1] = 0, torch.nan, 0, torch.inf
    check(x, 9)
    check(x, 90, y)
    got = cosine_topk(x, 90, y)
    assert (got.indices[50] == -1).all()
    assert (got.indices[0] >= 0).sum() == 79
    assert not (got.indices == 60).any()
    assert got.n_zero.tolist() == [2, 1]


def test_cells_are_apart(isa: str) -> None:
    lengths, others = [40, 0, 1, 900, 7], [33, 5, 0, 49, 1]
    for lengths_k in (None, others):
        x, y = make_rows(sum(lengths), None if lengths_k is None else sum(lengths_k), 33)
        x[41] = 0
        packing = Packing.from_lengths(lengths, lengths_k)
        got = cosine_topk(x, 6, y, packing=packing)
        exact = oracle(x, 6, y, packing=packing)
        assert torch.equal(got.n_zero, exact[2])
        assert torch.equal(got.indices < 0, exact[1] < 0)
        columns = packing.split_k(x if y is None else y)
        parts = zip(*(packing.split_q(part) for part in (x, got.values, got.indices)), columns, strict=True)
        for rows, values, indices, keys in parts:
            alone = cosine_topk(rows, 6, None if y is None else keys)
            assert torch.equal(indices, alone.indices)
            assert torch.equal(values.nan_to_num(5.0), alone.values.nan_to_num(5.0))


def test_bits_do_not_depend_on_threads(isa: str) -> None:
    x, y = make_rows(2500, 900, 16)
    torch.set_num_threads(1)
    first, other = cosine_topk(x, 40), cosine_topk(x, 40, y)
    for n in (2, 3, 5):
        torch.set_num_threads(n)
        for ours, same in zip((*cosine_topk(x, 40), *cosine_topk(x, 40, y)), (*first, *other), strict=True):
            assert torch.equal(ours, same), f"{n} threads"


@pytest.mark.parametrize(
    ("changed", "kind", "text"),
    [
        ({"k": 0}, ValueError, "k=0 rows cannot be found: ask for 1 to"),
        ({"k": 2.0}, TypeError, "k must be a whole number, got 2.0"),
        ({"k": True}, TypeError, "k must be a whole number, got True"),
        ({"x": torch.zeros(5)}, ValueError, r"x must be \[rows, columns\]"),
        ({"y": torch.zeros(5, 3)}, ValueError, "x has 4 columns and y has 3; they must agree"),
        ({"packing": Packing.from_lengths([4])}, ValueError, "x has 5 rows, but the packing's cells add up to 4"),
        ({"backend": "triton"}, RuntimeError, "triton: x is on cpu, not on a GPU"),
        ({"x": torch.zeros(5, 4, device="meta")}, RuntimeError, "cpu: x is on meta, not on the CPU"),
    ],
)  # fmt: skip
def test_refused_by_name(changed: dict[str, Any], kind: type[Exception], text: str) -> None:
    inputs: dict[str, Any] = {"x": torch.ones(5, 4), "k": 2}
    assert cosine_topk(**inputs, backend="reference").indices[0].tolist() == [1, 2]
    with pytest.raises(kind, match=text):
        cosine_topk(**inputs | changed)
