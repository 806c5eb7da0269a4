"""cosine_matrix against float64: every shape and dtype, cells, memory maps, zeros and NaN, threads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scfast import Packing
from scfast.ops import cosine_matrix
from scfast.reference import cosine_matrix as oracle
from tests.ops.cosine_rows import SHAPES, assert_similar, make_rows
from tests.ops.helpers import DTYPES, every_instruction_set


def check(x: torch.Tensor, y: torch.Tensor | None) -> None:
    for isa in every_instruction_set():
        got = cosine_matrix(x, y)
        assert_similar(f"similarities ({isa})", got, x, y)
        assert (got.abs() <= 1).all()
        assert y is not None or torch.equal(got, got.T)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape: str, dtype: torch.dtype) -> None:
    check(*make_rows(*SHAPES[shape], dtype))


@given(
    n=st.integers(0, 120),
    m=st.none() | st.integers(0, 120),
    dim=st.integers(1, 300),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**31),
)
def test_any_input(n: int, m: int | None, dim: int, dtype: torch.dtype, seed: int) -> None:
    check(*make_rows(n, m, dim, dtype, seed))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cells_are_the_blocks_on_the_diagonal(dtype: torch.dtype, isa: str) -> None:
    lengths, others = [40, 0, 1, 300, 7], [33, 5, 0, 49, 1]
    for lengths_k in (None, others):
        m = None if lengths_k is None else sum(lengths_k)
        x, y = make_rows(sum(lengths), m, 33, dtype)
        packing = Packing.from_lengths(lengths, lengths_k)
        blocks = cosine_matrix(x, y, packing=packing).split(
            [n * k for n, k in zip(packing.lengths_q, packing.lengths_k, strict=True)]
        )
        columns = x if y is None else y
        for rows, keys, block in zip(packing.split_q(x), packing.split_k(columns), blocks, strict=True):
            assert torch.equal(
                block.view(len(rows), len(keys)), cosine_matrix(rows, None if y is None else keys)
            )
        torch.testing.assert_close(
            torch.cat(blocks).double(), oracle(x, y, packing=packing), rtol=0, atol=1e-5
        )


def test_a_part_of_a_larger_matrix_and_a_memory_map(tmp_path: Path, isa: str) -> None:
    x, y = make_rows(70, 60, 48)
    alone = cosine_matrix(x, y)
    whole = torch.full((90, 100), 7.0)
    part = whole[5:75, 10:70]
    assert cosine_matrix(x, y, out=part) is part
    assert torch.equal(part, alone)
    assert (whole == 7).sum() == 90 * 100 - 70 * 60
    rows = np.memmap(tmp_path / "rows", dtype=np.float32, mode="w+", shape=(70, 48))
    rows[:] = x.numpy()
    out = np.memmap(tmp_path / "out", dtype=np.float32, mode="w+", shape=(70, 60))
    cosine_matrix(torch.from_numpy(rows), y, out=torch.from_numpy(out))
    assert np.array_equal(np.fromfile(tmp_path / "out", dtype=np.float32), alone.flatten().numpy())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zeros_are_0_and_broken_rows_nan(dtype: torch.dtype, isa: str) -> None:
    x, _ = make_rows(60, None, 33, dtype)
    x[7] = 0
    clean = cosine_matrix(x)
    assert (clean[7] == 0).all()
    assert (clean[:, 7] == 0).all()
    for broken in (torch.nan, torch.inf):
        y = x.clone()
        y[50, 3] = broken
        got = cosine_matrix(y)
        sound = torch.arange(60) != 50
        assert torch.equal(got[sound][:, sound], clean[sound][:, sound])
        assert got[50].isnan().all()
        assert got[:, 50].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_lengths_that_float32_cannot_square(dtype: torch.dtype, isa: str) -> None:
    x, _ = make_rows(20, None, 40, torch.float32)
    x = x.to(torch.bfloat16).to(dtype)
    scales = torch.tensor([2.0**-126, 2.0**-60, 1.0, 2.0**60, 2.0**120]).repeat(4)[:, None]
    scaled = (torch.nn.functional.normalize(x.float()).to(torch.bfloat16) * scales).to(dtype)
    got, exact = cosine_matrix(scaled), oracle(scaled)
    torch.testing.assert_close(got.double(), exact, rtol=0, atol=2e-6 if dtype == torch.float32 else 1e-5)


def test_bits_do_not_depend_on_threads_or_strides(isa: str) -> None:
    x, y = make_rows(800, 500, 40)
    torch.set_num_threads(1)
    first, own = cosine_matrix(x, y), cosine_matrix(x)
    for n in (2, 3, 5):
        torch.set_num_threads(n)
        assert torch.equal(cosine_matrix(x, y), first), f"{n} threads"
        assert torch.equal(cosine_matrix(x), own), f"{n} threads"
    wide = torch.full((800, 97), torch.nan)
    wide[:, 20:60] = x
    assert torch.equal(cosine_matrix(wide[:, 20:60], y), first)
    assert torch.equal(cosine_matrix(x.T.contiguous().T, y), first)


@pytest.mark.parametrize(
    ("changed", "kind", "text"),
    [
        ({"x": torch.zeros(5)}, ValueError, r"x must be \[rows, columns\] .* got shape \(5,\): lay the vectors out"),
        ({"x": torch.zeros(5, 0)}, ValueError, "with a column or more"),
        ({"x": torch.zeros(5, 4).double()}, TypeError, "x is torch.float64; use one of torch.float32"),
        ({"y": torch.zeros(5, 3)}, ValueError, "x has 4 columns and y has 3; they must agree"),
        ({"y": torch.zeros(5, 4).half()}, TypeError, "x is torch.float32 and y is torch.float16; cast them"),
        ({"y": torch.zeros(5, 4, device="meta")}, ValueError, "x is on cpu and y on meta: move them together"),
        ({"packing": [5]}, TypeError, "packing must be a scfast.Packing, got list: use Packing.from_lengths"),
        ({"packing": Packing.from_lengths([4])}, ValueError, "x has 5 rows, but the packing's cells add up to 4"),
        ({"packing": Packing.from_lengths([5], [4])}, ValueError, "other queries than keys, so y is needed"),
        ({"out": torch.zeros(5, 4)}, ValueError, r"out has shape \(5, 4\); .* shape \(5, 5\)"),
        ({"out": torch.zeros(5, 5).double()}, TypeError, "out is torch.float64; similarities are torch.float32"),
        ({"out": torch.zeros(5, 5).T}, ValueError, r"out has strides \(1, 5\): its rows must be dense"),
        ({"backend": "triton"}, RuntimeError, "triton: x is on cpu, not on a GPU"),
        ({"x": torch.zeros(5, 4, device="meta")}, RuntimeError, "cpu: x is on meta, not on the CPU"),
    ],
)  # fmt: skip
def test_refused_by_name(changed: dict[str, Any], kind: type[Exception], text: str) -> None:
    inputs: dict[str, Any] = {"x": torch.ones(5, 4)}
    assert (cosine_matrix(**inputs, backend="reference") == 1).all()
    with pytest.raises(kind, match=text):
        cosine_matrix(**inputs | changed)
