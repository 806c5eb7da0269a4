"""attention_colsum against float64: fusions, weights, rollout steps, extremes, independence of cells."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scfast import Packing
from scfast.ops import attention_colsum
from scfast.reference import attention_colsum as oracle
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
    is_strict,
    make_case,
    plain_maps,
    row_weights,
    with_options,
)

HEADS = ("mean", "sum", "max", "min", "none")


def step(
    maps: list[torch.Tensor], weights: torch.Tensor, packing: Packing, residual: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """(r^T A or the rollout step, row sums) from fused maps [Hout, nq, nk], in their dtype."""
    sums, row_sums = [], []
    for a, r in zip(maps, packing.split_q(weights, dim=1), strict=True):
        rho = a.sum(-1)
        r = r.to(a.dtype)[:, None, :].expand(-1, a.shape[0], -1)  # [R, Hout, nq]
        r = r if residual is None else r / (residual * rho + 1 - residual)
        product = torch.einsum("rhi,hij->rhj", r, a)
        sums.append(product if residual is None else residual * product + (1 - residual) * r)
        row_sums.append(rho.T)
    return torch.cat(sums, dim=-1), torch.cat(row_sums)


def check(
    case: Case,
    weights: torch.Tensor | None = None,
    *,
    heads: str = "mean",
    head_weights: torch.Tensor | None = None,
    residual: float | None = None,
) -> None:
    """Column sums and row sums of every instruction set against the float64 reference, by the error rule."""
    options = {"residual": residual, **case.options}
    rows = case.packing.uniform_row_weights()[None] if weights is None else weights
    inputs = (case.q, case.k, case.packing)
    exact = oracle(*inputs, rows, heads=heads, head_weights=head_weights, **options)
    sizes = exact
    signed = head_weights is not None and bool((head_weights < 0).any())
    if signed or (rows < 0).any():
        fusion = {"heads": "max" if heads == "min" and signed else heads}
        fusion["head_weights"] = None if head_weights is None else head_weights.abs()
        sizes = oracle(*inputs, rows.abs(), **fusion, **options)
    plain: tuple[torch.Tensor | None, ...] = (None, None)
    if case.packing.n_cells:
        plain = step(fused(plain_maps(case), heads, head_weights), rows, case.packing, residual)
        plain = (None, plain[1]) if is_strict(case) else plain
    for isa in every_instruction_set():
        options |= {"heads": heads, "head_weights": head_weights}
        got = attention_colsum(*inputs, weights, row_sums=True, **options)
        assert_close(f"column sums ({isa})", got[0], exact[0], sizes[0], case, plain[0])
        assert_close(f"row sums ({isa})", got[1], exact[1], sizes[1], case, plain[1])
        alone = attention_colsum(*inputs, weights, **options)
        assert_close(f"column sums alone ({isa})", alone, exact[0], sizes[0], case, plain[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape: str, dtype: torch.dtype) -> None:
    lengths, lengths_k, heads, kv_heads, dim, _ = SHAPES[shape]
    case = make_case(lengths, lengths_k, heads, kv_heads, dim, dtype=dtype)
    check(case)
    check(case, heads="none")


@pytest.mark.parametrize(("wanted", "low"), OPTION_SETS, ids=str)
def test_every_combination_of_score_options(wanted: dict[str, Any], low: torch.dtype) -> None:
    for dtype in (torch.float32, low):
        case = with_options(wanted, dtype, heads=4, kv_heads=2, dim=16)
        check(case, row_weights(case.packing, 3), heads="mean")
        check(case, row_weights(case.packing, 1), heads="max")


@pytest.mark.parametrize("n", [1, 3, 18])
@pytest.mark.parametrize("residual", [None, 0.0, 0.5, 1.0])
@pytest.mark.parametrize("signs", ["none", "positive", "mixed"])
@pytest.mark.parametrize("heads", HEADS)
def test_fusions_weights_and_residual(heads: str, signs: str, residual: float | None, n: int) -> None:
    head_weights = {"none": None, "positive": [1.0, 0.5, 2.0, 0.25], "mixed": [1.0, -0.5, 0.0, 2.0]}[signs]
    if signs == "mixed" and residual:
        pytest.skip("a rho + 1 - a may vanish")
    low = DTYPES[1 + n % 2]
    for dtype, lengths in ((torch.float32, [49, 0, 1, 130]), (torch.float32, [481]), (low, [33, 97])):
        case = make_case(lengths, heads=4, kv_heads=2, dim=16, dtype=dtype)
        weights = row_weights(case.packing, n, signed=n == 3)
        factors = None if head_weights is None else torch.tensor(head_weights)
        check(case, weights, heads=heads, head_weights=factors, residual=residual)


@pytest.mark.parametrize("heads", HEADS)
def test_long_cells(heads: str) -> None:
    case = make_case([1500, 7], heads=2, dim=64, causal=heads == "mean")
    check(case, row_weights(case.packing, 2), heads=heads, residual=0.5)


@given(
    lengths=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=5),
    n_heads=st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 1)]),
    dim=st.integers(1, 70),
    dtype=st.sampled_from(DTYPES),
    softcap=st.none() | st.floats(0.5, 30),
    offset=st.none() | st.integers(-20, 20),
    n=st.integers(1, 5),
    heads=st.sampled_from(HEADS),
    residual=st.none() | st.floats(0, 1),
    weighted=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_any_input(
    lengths: list[tuple[int, int]],
    n_heads: tuple[int, int],
    dim: int,
    dtype: torch.dtype,
    softcap: float | None,
    offset: int | None,
    n: int,
    heads: str,
    residual: float | None,
    weighted: bool,
    seed: int,
) -> None:
    queries = [n for n, _ in lengths]
    keys = queries if residual is not None else [n for _, n in lengths]
    offsets = None if offset is None else [offset] * len(lengths)
    if residual is not None and offset is not None:  # rows without keys have rho = 0, and a = 1 divides by it
        residual = min(residual, 0.9)
    case = make_case(
        queries, keys, *n_heads, dim, dtype=dtype, seed=seed, causal_offset=offsets,
        softcap=softcap, causal=offset is not None,
    )  # fmt: skip
    random = torch.Generator().manual_seed(seed)
    head_weights = torch.rand(n_heads[0], generator=random) + 0.1 if weighted else None
    check(
        case,
        row_weights(case.packing, n, seed=seed),
        heads=heads,
        head_weights=head_weights,
        residual=residual,
    )


@pytest.mark.parametrize("spread", [30.0, 100.0, 1e4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_scores(spread: float, dtype: torch.dtype) -> None:
    case = make_case([49, 130], heads=2, dim=32, spread=spread, dtype=dtype, seed=5)
    for heads in ("mean", "max", "none"):
        check(case, row_weights(case.packing, 2), heads=heads)


def test_strided_inputs_give_the_bits_of_contiguous_ones(isa: str) -> None:
    q, k, _ = torch.randn(56, 3, 3, 24).unbind(1)
    packing = Packing.from_lengths([49, 7])
    weights = row_weights(packing, 6)
    ours = attention_colsum(q, k, packing, weights[::2])
    assert torch.equal(
        ours, attention_colsum(q.contiguous(), k.contiguous(), packing, weights[::2].contiguous())
    )
    by_column = attention_colsum(q, k, packing, weights.T.contiguous().T[::2])
    assert torch.equal(ours, by_column)


def test_the_default_weights_are_uniform() -> None:
    case = make_case([49, 0, 7], heads=2, dim=16)
    default = attention_colsum(case.q, case.k, case.packing)
    assert torch.equal(
        default, attention_colsum(case.q, case.k, case.packing, case.packing.uniform_row_weights())
    )
    torch.testing.assert_close(default[0, 0, :49].sum(), torch.tensor(1.0))
    torch.testing.assert_close(default[0, 0, 49:].sum(), torch.tensor(1.0))


@pytest.mark.parametrize("heads", HEADS)
def test_rows_of_weight_zero_are_skipped_whatever_they_hold(heads: str, isa: str) -> None:
    case = make_case([60, 500], heads=2, dim=16)
    weights = torch.rand(2, 560)
    weights[:, [3, 4, 59, 60, 300]] = 0.0
    broken = case.q.clone()
    broken[[3, 59, 60, 300]] = torch.nan
    broken[4] = torch.inf
    for residual in (None, 0.5):
        if residual is not None and heads != "mean":
            continue
        clean = attention_colsum(case.q, case.k, case.packing, weights, heads=heads, residual=residual)
        got = attention_colsum(broken, case.k, case.packing, weights, heads=heads, residual=residual)
        assert torch.isfinite(got).all()
        assert error(got, clean.double(), clean) <= FLOOR


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_skipped_row_takes_no_part_in_a_rollout_step(backend: str) -> None:
    case = make_case([6], heads=2, dim=8)
    weights = torch.tensor([0.0, 1.0, 2.0, 0.0, 1.0, 0.0])
    options = {"residual": 0.5, "backend": backend}
    clean = attention_colsum(case.q, case.k, case.packing, weights, **options)
    case.q[3] = torch.nan
    torch.testing.assert_close(attention_colsum(case.q, case.k, case.packing, weights, **options), clean)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("where", ["q", "k", "row_weights"])
def test_a_broken_cell_stays_alone(where: str, heads: str, isa: str) -> None:
    case = make_case([60, 50, 500], heads=3, dim=16, seed=6)
    weights = torch.rand(2, 610)
    inputs = {"q": case.q, "k": case.k, "row_weights": weights}
    inputs[where] = inputs[where].clone()
    inputs[where][(1, 70) if where == "row_weights" else (70, 1, 3)] = torch.nan
    clean = attention_colsum(case.q, case.k, case.packing, weights, heads=heads)
    got = attention_colsum(packing=case.packing, heads=heads, **inputs)
    assert torch.equal(got[..., :60], clean[..., :60])
    assert torch.equal(got[..., 110:], clean[..., 110:])
    hit = got[:, 1 if heads == "none" else 0, 60:110]
    assert hit[1].isnan().all()
    if where == "row_weights":
        assert torch.equal(got[0], clean[0]), "the other set of weights is untouched"


@pytest.mark.parametrize("heads", HEADS)
def test_bits_do_not_depend_on_threads_or_batch_mates(heads: str, isa: str) -> None:
    case = make_case([7, 1000, 0, 481, 33, 1], heads=3, dim=24)
    weights = row_weights(case.packing, 3)

    def run(case: Case, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return attention_colsum(
            case.q, case.k, case.packing, weights, heads=heads, residual=0.5, row_sums=True
        )

    torch.set_num_threads(1)
    sums, rho = run(case, weights)
    for n in (2, 3, 5):
        torch.set_num_threads(n)
        again = run(case, weights)
        assert torch.equal(again[0], sums), f"{n} threads"
        assert torch.equal(again[1], rho), f"{n} threads"
    order, split = [4, 1, 5, 3, 0], case.packing.split_q
    packing = Packing.from_lengths([case.packing.lengths_q[cell] for cell in order])
    q, k, same_rho = (torch.cat([split(x)[cell] for cell in order]) for x in (case.q, case.k, rho))
    mixed, same = (torch.cat([split(x, dim=-1)[cell] for cell in order], dim=-1) for x in (weights, sums))
    got = run(replace(case, q=q, k=k, packing=packing), mixed)
    assert torch.equal(got[0], same), "column sums depend on the other cells of the batch"
    assert torch.equal(got[1], same_rho), "row sums depend on the other cells of the batch"


def test_sets_of_weights_do_not_touch_each_other() -> None:
    case = make_case([130, 500], heads=2, dim=16)
    weights = row_weights(case.packing, 18, signed=True)
    together = attention_colsum(case.q, case.k, case.packing, weights, heads="none")
    for n in (0, 7, 17):
        alone = attention_colsum(case.q, case.k, case.packing, weights[n], heads="none")
        size = attention_colsum(case.q, case.k, case.packing, weights[n].abs(), heads="none")
        assert error(together[n : n + 1], alone.double(), size) <= FLOOR


def test_16_bit_inputs_are_accumulated_in_float32(isa: str) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        case = make_case([130, 49], heads=2, dtype=dtype)
        for heads in HEADS:
            weights = row_weights(case.packing, 2)
            exact, _ = oracle(case.q, case.k, case.packing, weights, heads=heads)
            got = attention_colsum(case.q, case.k, case.packing, weights, heads=heads)
            assert error(got, exact, exact) <= 1.5 * FLOOR
