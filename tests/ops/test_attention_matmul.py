"""attention_matmul against float64: widths, fusions, options, extremes, independence of cells and threads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scfast import Packing
from scfast.ops import attention_matmul
from scfast.reference import attention_matmul as oracle
from tests.ops.helpers import (
    DTYPES,
    FLOOR,
    OPTION_SETS,
    SHAPES,
    Case,
    assert_close,
    error,
    every_instruction_set,
    fused,
    make_case,
    plain_maps,
    with_options,
)

HEADS = ("mean", "sum", "none")


def matrix(case: Case, width: int, dtype: torch.dtype = torch.float32, seed: int = 2) -> torch.Tensor:
    """[Tk, width] normal numbers."""
    random = torch.Generator().manual_seed(seed)
    return torch.randn(case.packing.total_k, width, generator=random).to(dtype)


def plain_product(case: Case, x: torch.Tensor, heads: str, weights: torch.Tensor | None) -> torch.Tensor:
    """The product by torch in the dtype of the inputs."""
    maps = fused(plain_maps(case), heads, weights)  # [Hout, nq, nk]
    parts = [a.to(x.dtype) @ values for a, values in zip(maps, case.packing.split_k(x), strict=True)]
    out = torch.cat([part.transpose(0, 1) for part in parts])
    return out if heads == "none" else out[:, 0]


def check(case: Case, x: torch.Tensor, heads: str = "mean", head_weights: torch.Tensor | None = None) -> None:
    """Every instruction set against the float64 reference, by the error rule."""
    options = {"heads": heads, "head_weights": head_weights, **case.options}
    exact = oracle(case.q, case.k, case.packing, x, **options)
    absolute = None if head_weights is None else head_weights.abs()
    size = oracle(case.q, case.k, case.packing, x.abs(), **options | {"head_weights": absolute})
    plain = exact.to(x.dtype) if not case.packing.n_cells else plain_product(case, x, heads, head_weights)
    for isa in every_instruction_set():
        got = attention_matmul(case.q, case.k, case.packing, x, **options)
        assert got.dtype == torch.float32
        assert_close(f"product ({isa})", got, exact, size, case, plain)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape: str, dtype: torch.dtype) -> None:
    lengths, lengths_k, heads, kv_heads, dim, width = SHAPES[shape]
    case = make_case(lengths, lengths_k, heads, kv_heads, dim, dtype=dtype)
    check(case, matrix(case, width))
    check(case, matrix(case, width, dtype), "none")


@pytest.mark.parametrize(("wanted", "low"), OPTION_SETS, ids=str)
def test_every_combination_of_score_options(wanted: dict[str, Any], low: torch.dtype) -> None:
    for dtype in (torch.float32, low):
        case = with_options(wanted, dtype, heads=4, kv_heads=2, dim=16)
        check(case, matrix(case, 20))
        check(case, matrix(case, 7), "none")


@pytest.mark.parametrize("width", [1, 2, 15, 16, 17, 63, 64, 65, 100, 333, 1024])
def test_widths(width: int) -> None:
    case = make_case([49, 0, 130], [70, 3, 65], heads=3, dim=16)
    for heads in HEADS:
        check(case, matrix(case, width), heads)


@pytest.mark.parametrize("signs", ["positive", "mixed"])
@pytest.mark.parametrize("heads", HEADS)
def test_head_weights(heads: str, signs: str) -> None:
    weights = {"positive": [1.0, 0.5, 2.0, 0.25], "mixed": [1.0, -0.5, 0.0, 2.0]}[signs]
    for dtype in DTYPES:
        case = make_case([49, 0, 1, 481], heads=4, kv_heads=2, dim=16, dtype=dtype)
        check(case, matrix(case, 24), heads, torch.tensor(weights))


@given(
    lengths=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 140)), max_size=5),
    n_heads=st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 1)]),
    dim=st.integers(1, 70),
    width=st.integers(1, 90),
    dtype=st.sampled_from(DTYPES),
    same_dtype=st.booleans(),
    softcap=st.none() | st.floats(0.5, 30),
    offset=st.none() | st.integers(-20, 20),
    heads=st.sampled_from(HEADS),
    weighted=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_any_input(
    lengths: list[tuple[int, int]],
    n_heads: tuple[int, int],
    dim: int,
    width: int,
    dtype: torch.dtype,
    same_dtype: bool,
    softcap: float | None,
    offset: int | None,
    heads: str,
    weighted: bool,
    seed: int,
) -> None:
    case = make_case(
        [n for n, _ in lengths], [n for _, n in lengths], *n_heads, dim, dtype=dtype, seed=seed,
        causal_offset=None if offset is None else [offset] * len(lengths),
        softcap=softcap, causal=offset is not None,
    )  # fmt: skip
    random = torch.Generator().manual_seed(seed)
    head_weights = torch.rand(n_heads[0], generator=random) + 0.1 if weighted else None
    check(case, matrix(case, width, dtype if same_dtype else torch.float32, seed), heads, head_weights)


@pytest.mark.parametrize("spread", [30.0, 100.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_scores(spread: float, dtype: torch.dtype) -> None:
    case = make_case([49, 130], heads=2, dim=32, spread=spread, dtype=dtype, seed=5)
    for heads in HEADS:
        check(case, matrix(case, 33), heads)


def test_long_cells() -> None:
    case = make_case([1500, 7], heads=2, dim=64, causal=True)
    check(case, matrix(case, 64))


def test_a_unit_matrix_gives_the_map(isa: str) -> None:
    case = make_case([97], heads=3, dim=16)
    (p,) = fused(plain_maps(case), "mean", None)
    got = attention_matmul(case.q, case.k, case.packing, torch.eye(97))
    assert error(got, p[0].double(), p[0]) <= 2 * FLOOR


def test_strided_inputs_give_the_bits_of_contiguous_ones(isa: str) -> None:
    q, k, _ = torch.randn(56, 3, 3, 24).unbind(1)
    packing = Packing.from_lengths([49, 7])
    x = torch.randn(40, 56)
    expected = attention_matmul(q.contiguous(), k.contiguous(), packing, x.T.contiguous())
    assert torch.equal(attention_matmul(q, k, packing, x.T), expected)
    wide = torch.randn(56, 80)
    got = attention_matmul(q, k, packing, wide[:, 5:69])
    assert torch.equal(got, attention_matmul(q, k, packing, wide[:, 5:69].clone()))


def test_columns_do_not_touch_each_other(isa: str) -> None:
    case = make_case([130, 500], heads=2, dim=16)
    x = matrix(case, 70)
    together = attention_matmul(case.q, case.k, case.packing, x)
    size = oracle(case.q, case.k, case.packing, x.abs())
    for n in (0, 31, 69):
        alone = attention_matmul(case.q, case.k, case.packing, x[:, n : n + 1])
        assert error(together[:, n], alone[:, 0].double(), size[:, n]) <= FLOOR
    broken = x.clone()
    broken[3, 31] = torch.nan
    hit = attention_matmul(case.q, case.k, case.packing, broken).isnan()
    assert hit[:130, 31].all()
    assert hit.sum() == 130, "a NaN reaches the queries of its cell in its own column"


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("where", ["q", "k"])
def test_a_broken_cell_stays_alone(where: str, heads: str, isa: str) -> None:
    case = make_case([60, 50, 500], heads=3, dim=16, seed=6)
    x = matrix(case, 40)
    inputs = {"q": case.q, "k": case.k}
    inputs[where] = inputs[where].clone()
    inputs[where][70, 1, 3] = torch.nan
    clean = attention_matmul(case.q, case.k, case.packing, x, heads=heads)
    got = attention_matmul(packing=case.packing, x=x, heads=heads, **inputs)
    assert torch.equal(got[:60], clean[:60])
    assert torch.equal(got[110:], clean[110:])
    hit = got[60:110] if heads != "none" else got[60:110, 1]
    assert hit[10].isnan().all()
    assert hit.isnan().all() == (where == "k")


@pytest.mark.parametrize("heads", HEADS)
def test_bits_do_not_depend_on_threads_or_batch_mates(heads: str, isa: str) -> None:
    case = make_case([7, 1000, 0, 481, 33, 1], heads=3, dim=24)
    x = matrix(case, 37)
    torch.set_num_threads(1)
    expected = attention_matmul(case.q, case.k, case.packing, x, heads=heads)
    for n in (2, 3, 5):
        torch.set_num_threads(n)
        got = attention_matmul(case.q, case.k, case.packing, x, heads=heads)
        assert torch.equal(got, expected), f"{n} threads"
    order, split = [4, 1, 5, 3, 0], case.packing.split_q
    packing = Packing.from_lengths([case.packing.lengths_q[cell] for cell in order])
    q, k, mixed, same = (torch.cat([split(y)[cell] for cell in order]) for y in (case.q, case.k, x, expected))
    got = attention_matmul(q, k, packing, mixed, heads=heads)
    assert torch.equal(got, same), "products depend on the other cells of the batch"


def test_x_in_the_dtype_of_q_is_taken_as_it_is(isa: str) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        case = make_case([130, 49], heads=2, dtype=dtype)
        x = matrix(case, 20, dtype)
        got = attention_matmul(case.q, case.k, case.packing, x)
        assert torch.equal(got, attention_matmul(case.q, case.k, case.packing, x.float()))
        size = oracle(case.q, case.k, case.packing, x.abs())
        assert error(got, oracle(case.q, case.k, case.packing, x), size) <= 1.5 * FLOOR
