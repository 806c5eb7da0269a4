"""cosine_threshold: the entries of cosine_matrix that reach the threshold, as CSR; zeros and NaN, cells, threads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse import csr_array

from scfast import Packing
from scfast.ops import cosine_matrix, cosine_threshold
from scfast.reference import cosine_threshold as oracle
from tests.ops.cosine_rows import SHAPES, make_rows
from tests.ops.helpers import DTYPES, every_instruction_set


def check(x: torch.Tensor, threshold: float, y: torch.Tensor | None = None) -> None:
    """Every instruction set: exactly the pairs of the op's own similarities, in order."""
    for isa in every_instruction_set():
        got = cosine_threshold(x, threshold, y)
        s = cosine_matrix(x, y)
        wanted = (s >= torch.tensor(threshold)) & torch.ones_like(s, dtype=torch.bool).triu(
            1 if y is None else -len(x)
        )
        assert torch.equal(got.indptr[1:], wanted.sum(1).cumsum(0)), isa
        assert torch.equal(got.indices, wanted.nonzero()[:, 1]), isa
        assert torch.equal(got.values, s[wanted]), isa
        assert torch.equal(got.n_zero, oracle(x, 1.0, y)[3][0]), isa


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape: str, dtype: torch.dtype) -> None:
    x, y = make_rows(*SHAPES[shape], dtype)
    check(x, 0.4, y)


@given(
    n=st.integers(0, 150),
    m=st.none() | st.integers(0, 150),
    dim=st.integers(1, 100),
    threshold=st.floats(-1.2, 1.2),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**31),
)
def test_any_input(n: int, m: int | None, dim: int, threshold: float, dtype: torch.dtype, seed: int) -> None:
    x, y = make_rows(n, m, dim, dtype, seed)
    check(x, threshold, y)


@pytest.mark.parametrize("threshold", [-1.0, 0.0, 1.0])
def test_the_ends(threshold: float) -> None:
    x = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0])] * 5)
    check(x, threshold)
    check(x, threshold, x[:77])


def test_against_float64(isa: str) -> None:
    x, y = make_rows(300, 400, 64)
    for other in (None, y):
        got, (indptr, indices, values, _) = cosine_threshold(x, 0.41, other), oracle(x, 0.41, other)
        assert torch.equal(got.indptr, indptr)
        assert torch.equal(got.indices, indices)
        torch.testing.assert_close(got.values.double(), values, rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zeros_are_0_and_broken_rows_left_out(dtype: torch.dtype) -> None:
    x, y = make_rows(300, 80, 33, dtype)
    x[[7, 200]], x[50, 3], y[4], y[60, 1] = 0, torch.nan, 0, torch.inf
    check(x, 0.0)
    check(x, 0.0, y)
    got = cosine_threshold(x, -1.0, y)
    assert len(got.values) == 299 * 79
    assert got.n_zero.tolist() == [2, 1]


def test_cells_are_blocks_of_one_matrix(isa: str) -> None:
    lengths, others = [40, 0, 1, 900, 7], [33, 5, 0, 49, 1]
    for lengths_k in (None, others):
        x, y = make_rows(sum(lengths), None if lengths_k is None else sum(lengths_k), 33)
        packing = Packing.from_lengths(lengths, lengths_k)
        got = cosine_threshold(x, 0.42, y, packing=packing)
        for ours, exact in zip(got[:2], oracle(x, 0.42, y, packing=packing)[:2], strict=True):
            assert torch.equal(ours, exact)
        m = len(x if y is None else y)
        graph = csr_array((got.values.numpy(), got.indices.numpy(), got.indptr.numpy()), shape=(len(x), m))
        assert graph.has_canonical_format
        assert graph.nnz == len(got.values) > 0


def test_bits_do_not_depend_on_threads(isa: str) -> None:
    x, y = make_rows(2500, 900, 16)
    torch.set_num_threads(1)
    first = (*cosine_threshold(x, 0.5), *cosine_threshold(x, 0.5, y))
    for n in (2, 3, 5):
        torch.set_num_threads(n)
        again = (*cosine_threshold(x, 0.5), *cosine_threshold(x, 0.5, y))
        assert all(torch.equal(ours, same) for ours, same in zip(again, first, strict=True)), f"{n} threads"


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_too_many_pairs_are_refused(backend: str) -> None:
    x = torch.ones(1000, 4)
    assert len(cosine_threshold(x, 0.9, max_pairs=499_500, backend=backend).values) == 499_500
    with pytest.raises(
        ValueError, match=r"pairs or more reach the threshold 0.9, and max_pairs is 499499: raise"
    ):
        cosine_threshold(x, 0.9, max_pairs=499_499, backend=backend)


@pytest.mark.parametrize(
    ("changed", "kind", "text"),
    [
        ({"threshold": float("nan")}, ValueError, "threshold must be a number, got nan"),
        ({"max_pairs": 0}, ValueError, "max_pairs=0 pairs cannot be returned: ask for 1 to"),
        ({"x": torch.zeros(5)}, ValueError, r"x must be \[rows, columns\]"),
        ({"y": torch.zeros(5, 3)}, ValueError, "x has 4 columns and y has 3; they must agree"),
        ({"packing": Packing.from_lengths([4])}, ValueError, "x has 5 rows, but the packing's cells add up to 4"),
        ({"backend": "triton"}, RuntimeError, "triton: x is on cpu, not on a GPU"),
        ({"x": torch.zeros(5, 4, device="meta")}, RuntimeError, "cpu: x is on meta, not on the CPU"),
    ],
)  # fmt: skip
def test_refused_by_name(changed: dict[str, Any], kind: type[Exception], text: str) -> None:
    inputs: dict[str, Any] = {"x": torch.ones(5, 4), "threshold": 0.5}
    assert cosine_threshold(**inputs, backend="reference").indptr.tolist() == [0, 4, 7, 9, 10, 10]
    with pytest.raises(kind, match=text):
        cosine_threshold(**inputs | changed)
