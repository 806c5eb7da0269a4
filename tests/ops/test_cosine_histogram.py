"""cosine_histogram: counts exact for the op's own similarities, statistics against float64, merging, cells."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scfast import Packing
from scfast.ops import CosineHistogram, cosine_histogram, cosine_matrix
from scfast.reference import cosine_histogram as oracle
from tests.ops.cosine_rows import SHAPES, make_rows
from tests.ops.helpers import DTYPES, every_instruction_set


def check(x: torch.Tensor, y: torch.Tensor | None, bins: int = 200) -> None:
    """Every instruction set: counts, extremes and moments of the similarities that cosine_matrix returns."""
    exact = CosineHistogram(
        *(part[..., 0, :] if part.dim() > 1 else part for part in ours_of(oracle(x, y, bins=bins)))
    )
    for isa in every_instruction_set():
        got = cosine_histogram(x, y, bins=bins)
        s = cosine_matrix(x, y)
        s = s[torch.ones_like(s, dtype=torch.bool).triu(1)] if y is None else s.flatten()
        real = s[~s.isnan()]
        expected = np.histogram(real.numpy(), got.edges.numpy())[0]
        assert np.array_equal(got.counts.numpy(), expected), isa
        assert got.n_nan == s.isnan().sum()
        assert got.n_pairs == len(real)
        assert torch.equal(got.n_zero, exact.n_zero)
        if len(real):
            assert (got.min, got.max) == (real.min(), real.max())
            torch.testing.assert_close(got.mean, real.double().mean(), rtol=0, atol=1e-7)
            torch.testing.assert_close(got.second_moment, real.double().square().mean(), rtol=0, atol=1e-7)
        else:
            assert (got.min, got.max) == (torch.inf, -torch.inf)
            assert got.mean.isnan()


def ours_of(parts: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    counts, zeros, extremes, moments = parts
    return counts[:, :-1], counts[:, -1], zeros, *extremes, *moments


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape: str, dtype: torch.dtype) -> None:
    check(*make_rows(*SHAPES[shape], dtype))


@given(
    n=st.integers(0, 120),
    m=st.none() | st.integers(0, 120),
    dim=st.integers(1, 200),
    bins=st.integers(1, 1000),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**31),
)
def test_any_input(n: int, m: int | None, dim: int, bins: int, dtype: torch.dtype, seed: int) -> None:
    check(*make_rows(n, m, dim, dtype, seed), bins)


@pytest.mark.parametrize("bins", [1, 2, 3, 4, 7, 64, 2**16])
def test_similarities_on_the_borders_of_bins(bins: int) -> None:
    """Rows of 0, 1 and -1 have similarities -1, -1/2, 0, 1/2, 1 and their neighbours."""
    x = torch.cartesian_prod(*[torch.tensor([-1.0, 0.0, 1.0])] * 4)
    check(x, None, bins)
    check(x[:50], x[20:], bins)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_close_to_float64(dtype: torch.dtype, isa: str) -> None:
    x, y = make_rows(300, 200, 64, dtype)
    got = cosine_histogram(x, y)
    counts, _, extremes, moments = oracle(x, y)
    moved = (got.counts.cumsum(0) - counts[0, :-1].cumsum(0)).abs().max()
    assert moved <= 60_000 * 1e-4, "similarities change sides of a border only where they lie on it"
    torch.testing.assert_close(torch.stack([got.min, got.max]), extremes[:, 0], rtol=0, atol=2e-6)
    torch.testing.assert_close(torch.stack([got.sum, got.sum_of_squares]), moments[:, 0], rtol=2e-6, atol=0)


def test_cells_are_counted_apart(isa: str) -> None:
    lengths, others = [40, 0, 1, 1000, 7], [33, 5, 0, 49, 1]
    for lengths_k in (None, others):
        x, y = make_rows(sum(lengths), None if lengths_k is None else sum(lengths_k), 33)
        x[41] = 0
        packing = Packing.from_lengths(lengths, lengths_k)
        got = cosine_histogram(x, y, packing=packing, bins=50)
        assert got.counts.shape == (5, 50)
        columns = x if y is None else y
        for cell, (rows, keys) in enumerate(zip(packing.split_q(x), packing.split_k(columns), strict=True)):
            alone = cosine_histogram(rows, None if y is None else keys, bins=50)
            for name, mine, same in zip(got._fields, got, alone, strict=True):
                assert torch.equal(mine[cell], same), f"{name} of cell {cell}"
        for ours, exact in zip(got[1:3], ours_of(oracle(x, y, packing=packing, bins=50))[1:3], strict=True):
            assert torch.equal(ours, exact)
        assert got.n_zero[3, 0] == 1


def test_a_split_merges_to_the_whole(isa: str) -> None:
    x, y = make_rows(500, 400, 40)
    whole = cosine_histogram(x, y)
    parts = [cosine_histogram(rows, y) for rows in x.split([33, 0, 400, 67])]
    assert torch.equal(sum(part.counts for part in parts), whole.counts)
    assert min(part.min for part in parts) == whole.min
    assert max(part.max for part in parts) == whole.max
    torch.testing.assert_close(sum(part.sum for part in parts), whole.sum, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zeros_and_broken_rows_are_counted(dtype: torch.dtype, isa: str) -> None:
    x, y = make_rows(900, 50, 33, dtype)
    x[[7, 800]], x[50, 3], y[4] = 0, torch.nan, 0
    got = cosine_histogram(x, y)
    assert (got.n_nan, got.n_zero.tolist()) == (50, [2, 1])
    assert got.n_pairs == 899 * 50
    own = cosine_histogram(x)
    assert (own.n_nan, own.n_zero.tolist()) == (899, [2, 0])
    assert own.n_pairs == 899 * 898 // 2
    check(x, y)
    check(x, None)


def test_bits_do_not_depend_on_threads(isa: str) -> None:
    x, _ = make_rows(2500, None, 16)
    packing = Packing.from_lengths([900, 3, 1500, 0, 97])
    torch.set_num_threads(1)
    first, cells = cosine_histogram(x), cosine_histogram(x, packing=packing)
    for n in (2, 3, 5):
        torch.set_num_threads(n)
        for ours, same in zip(
            (*cosine_histogram(x), *cosine_histogram(x, packing=packing)), (*first, *cells), strict=True
        ):
            assert torch.equal(ours, same), f"{n} threads"


@pytest.mark.parametrize(
    ("changed", "kind", "text"),
    [
        ({"bins": 0}, ValueError, "bins=0 bins cannot be counted: ask for 1 to 65536"),
        ({"bins": 2.0}, TypeError, "bins must be a whole number, got 2.0"),
        ({"x": torch.zeros(5)}, ValueError, r"x must be \[rows, columns\]"),
        ({"packing": Packing.from_lengths([4])}, ValueError, "x has 5 rows, but the packing's cells add up to 4"),
        ({"backend": "triton"}, RuntimeError, "triton: x is on cpu, not on a GPU"),
        ({"x": torch.zeros(5, 4, device="meta")}, RuntimeError, "cpu: x is on meta, not on the CPU"),
    ],
)  # fmt: skip
def test_refused_by_name(changed: dict[str, Any], kind: type[Exception], text: str) -> None:
    inputs: dict[str, Any] = {"x": torch.ones(5, 4)}
    assert cosine_histogram(**inputs, backend="reference").counts[-1] == 10
    with pytest.raises(kind, match=text):
        cosine_histogram(**inputs | changed)
