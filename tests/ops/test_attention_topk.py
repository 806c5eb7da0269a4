"""attention_topk against float64: values rank by rank, keys that hold them, ties, NaN, independence of cells."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scfast import Packing
from scfast.ops import TopKeys, attention_rowstats, attention_topk
from scfast.reference import attention_topk as oracle
from tests.ops.helpers import (
    DTYPES,
    OPTION_SETS,
    SHAPES,
    Case,
    assert_close,
    every_instruction_set,
    exact_maps,
    fused,
    make_case,
    plain_maps,
    with_options,
)

HEADS = ("mean", "sum", "max", "min", "none")


def at_keys(maps: list[torch.Tensor], keys: torch.Tensor, packing: Packing) -> torch.Tensor:
    """[Tq, Hout, n]: entries of the maps [Hout, nq, nk] at given keys; 0 for key -1."""
    parts = [
        torch.where(chosen < 0, 0.0, a.transpose(0, 1).gather(2, chosen.clamp(min=0)))
        if a.shape[2]
        else torch.zeros(chosen.shape, dtype=a.dtype)
        for a, chosen in zip(maps, packing.split_q(keys), strict=True)
    ]
    return torch.cat(parts) if parts else torch.zeros(keys.shape, dtype=torch.float64)


def check(case: Case, n: int, heads: str = "mean", head_weights: torch.Tensor | None = None) -> None:
    """Every instruction set: values are the exact ones, rank by rank, and lie at the keys, by the error rule."""
    fusion = {"heads": heads, "head_weights": head_weights}
    exact, exact_keys = oracle(case.q, case.k, case.packing, n, **fusion, **case.options)
    maps = fused(exact_maps(case), heads, head_weights)
    sizes = maps
    if head_weights is not None and (head_weights < 0).any():
        sizes = fused(exact_maps(case), "max" if heads == "min" else heads, head_weights.abs())
    plain_of = fused(plain_maps(case), heads, head_weights)
    for isa in every_instruction_set():
        got = attention_topk(case.q, case.k, case.packing, n, **fusion, **case.options)
        values, keys = (x.reshape(exact.shape) for x in got)
        assert torch.equal(keys < 0, exact_keys < 0), f"{isa}: as many keys as are in sight"
        real = keys >= 0
        ordered = keys.masked_fill(~real, 2**40) + torch.arange(n) * ~real
        assert (ordered.sort(-1).values.diff(dim=-1) > 0).all(), f"{isa}: a key twice"
        step, tie = values.diff(dim=-1), keys.diff(dim=-1)
        assert (real[..., 1:] & (step > 0)).sum() == 0, f"{isa}: largest first"
        assert (tie[real[..., 1:] & (step == 0)] > 0).all(), f"{isa}: ties by the smaller key"
        plain = at_keys(plain_of, keys, case.packing)
        found = at_keys(maps, keys, case.packing)
        size = at_keys(sizes, keys, case.packing)
        assert_close(f"values at their keys ({isa})", values, found, size, case, plain)
        # Rank by rank no value is further off than the worst entry of its row.
        worst = size.amax(-1, keepdim=True).expand(size.shape) if size.numel() else size
        assert_close(f"values rank by rank ({isa})", values, exact, worst, case, ranked(plain_of, n, case))


def ranked(maps: list[torch.Tensor], n: int, case: Case) -> torch.Tensor:
    """The n largest entries of every row, in the dtype of the maps; keys out of sight do not count."""
    parts = []
    for a, offset in zip(maps, case.packing.causal_offset.tolist(), strict=True):
        a = a.transpose(0, 1)
        row, key = torch.arange(a.shape[0])[:, None, None], torch.arange(a.shape[2])
        hidden = (key > row + offset) & bool(case.options.get("causal"))
        top = a.masked_fill(hidden, -torch.inf).sort(dim=-1, descending=True).values[..., :n]
        top = torch.where(top == -torch.inf, 0.0, top)
        parts.append(torch.nn.functional.pad(top, (0, n - top.shape[-1])))
    return torch.cat(parts) if parts else torch.zeros(0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape: str, dtype: torch.dtype) -> None:
    lengths, lengths_k, heads, kv_heads, dim, _ = SHAPES[shape]
    case = make_case(lengths, lengths_k, heads, kv_heads, dim, dtype=dtype)
    check(case, 5)
    check(case, 9, "none")


@pytest.mark.parametrize(("wanted", "low"), OPTION_SETS, ids=str)
def test_every_combination_of_score_options(wanted: dict[str, Any], low: torch.dtype) -> None:
    for dtype in (torch.float32, low):
        case = with_options(wanted, dtype, heads=4, kv_heads=2, dim=16)
        check(case, 7)
        check(case, 3, "none")


@pytest.mark.parametrize("weights", [None, [1.0, 0.5, 2.0, 0.25], [1.0, -0.5, 0.0, 2.0]], ids=str)
@pytest.mark.parametrize("heads", HEADS)
def test_fusions(heads: str, weights: list[float] | None) -> None:
    for dtype in DTYPES:
        case = make_case([49, 0, 1, 481], heads=4, kv_heads=2, dim=16, dtype=dtype)
        check(case, 4, heads, None if weights is None else torch.tensor(weights))


@pytest.mark.parametrize("n", [1, 2, 64, 128, 129, 700, 2000])
@pytest.mark.parametrize("heads", ["mean", "none"])
def test_few_and_many(n: int, heads: str) -> None:
    check(make_case([60, 3], [1500, 100], heads=2, dim=16), n, heads)
    check(make_case([130], heads=2, dim=16, causal=True), n, heads)


@given(
    lengths=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 300)), max_size=4),
    n_heads=st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 1)]),
    dim=st.integers(1, 70),
    dtype=st.sampled_from(DTYPES),
    softcap=st.none() | st.floats(0.5, 30),
    offset=st.none() | st.integers(-20, 20),
    n=st.integers(1, 200),
    heads=st.sampled_from(HEADS),
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
    seed: int,
) -> None:
    offsets = None if offset is None else [offset] * len(lengths)
    options = {"softcap": softcap, "causal": offset is not None, "seed": seed, "causal_offset": offsets}
    queries, keys = [n for n, _ in lengths], [n for _, n in lengths]
    check(make_case(queries, keys, *n_heads, dim, dtype=dtype, **options), n, heads)


@pytest.mark.parametrize("spread", [30.0, 100.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_scores(spread: float, dtype: torch.dtype) -> None:
    case = make_case([49, 130], heads=2, dim=32, spread=spread, dtype=dtype, seed=5)
    check(case, 6, "none")
    check(case, 6)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("weights", [None, [-1.0, -1.0]], ids=str)
def test_equal_entries_come_in_the_order_of_their_keys(
    heads: str, weights: list[float] | None, isa: str
) -> None:
    packing = Packing.from_lengths([3, 2], [700, 4])
    q, k = torch.zeros(5, 2, 8), torch.randn(704, 2, 8)
    factors = None if weights is None else torch.tensor(weights)
    got = attention_topk(q, k, packing, 6, heads=heads, head_weights=factors)
    assert torch.equal(got.keys[:3], torch.arange(6).expand(got.keys[:3].shape))
    assert torch.equal(got.keys[3:], torch.tensor([0, 1, 2, 3, -1, -1]).expand(got.keys[3:].shape))


def test_scores_that_rise_or_fall_along_the_keys(isa: str) -> None:
    slope = torch.linspace(-4, 4, 1000)[:, None, None]
    for k, expected in ((slope, range(999, 989, -1)), (-slope, range(10))):
        got = attention_topk(torch.ones(1, 1, 1), k, Packing.from_lengths([1], [1000]), 10, scale=1.0)
        assert got.keys[0].tolist() == list(expected)


def test_all_keys_are_the_sorted_row(isa: str) -> None:
    case = make_case([30], heads=3, dim=16)
    got = attention_topk(case.q, case.k, case.packing, 30, heads="none")
    torch.testing.assert_close(got.values.sum(-1), torch.ones(30, 3))
    assert torch.equal(got.keys.sort(-1).values, torch.arange(30).expand(30, 3, 30))


@pytest.mark.parametrize("heads", HEADS)
def test_the_first_is_the_maximum_of_the_row(heads: str, isa: str) -> None:
    case = make_case([49, 700], heads=3, dim=16, causal=True)
    first = attention_topk(case.q, case.k, case.packing, 1, heads=heads, causal=True).values
    largest = attention_rowstats(case.q, case.k, case.packing, heads=heads, causal=True).max
    torch.testing.assert_close(first.reshape(largest.shape), largest, rtol=1e-6, atol=0)


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("where", ["q", "k"])
def test_a_broken_cell_stays_alone(where: str, heads: str, isa: str) -> None:
    case = make_case([60, 50, 500], heads=3, dim=16, seed=6)
    clean = attention_topk(case.q, case.k, case.packing, 4, heads=heads)
    broken = getattr(case, where).clone()
    broken[70, 1, 3] = torch.nan
    got = attention_topk(packing=case.packing, n=4, heads=heads, **{"q": case.q, "k": case.k, where: broken})
    outside = (torch.arange(610) < 60) | (torch.arange(610) >= 110)
    for ours, same in zip(got, clean, strict=True):
        assert torch.equal(ours[outside], same[outside])
    rows = slice(70, 71) if where == "q" else slice(60, 110)
    values, keys = (x[rows, 1] if heads == "none" else x[rows] for x in got)
    assert values.isnan().all()
    assert torch.equal(keys, torch.arange(4).expand(keys.shape))


@pytest.mark.parametrize("heads", HEADS)
def test_bits_do_not_depend_on_threads_or_batch_mates(heads: str, isa: str) -> None:
    case = make_case([7, 1000, 0, 481, 33, 1], heads=3, dim=24)

    def run(case: Case) -> TopKeys:
        return attention_topk(case.q, case.k, case.packing, 8, heads=heads)

    torch.set_num_threads(1)
    first = run(case)
    for n in (2, 3, 5):
        torch.set_num_threads(n)
        assert all(torch.equal(x, y) for x, y in zip(run(case), first, strict=True)), f"{n} threads"
    order, split = [4, 1, 5, 3, 0], case.packing.split_q
    packing = Packing.from_lengths([case.packing.lengths_q[cell] for cell in order])
    q, k = (torch.cat([split(x)[cell] for cell in order]) for x in (case.q, case.k))
    for ours, same in zip(run(replace(case, q=q, k=k, packing=packing)), first, strict=True):
        assert torch.equal(ours, torch.cat([split(same)[cell] for cell in order]))


def test_strided_inputs_give_the_bits_of_contiguous_ones(isa: str) -> None:
    q, k, _ = torch.randn(56, 3, 3, 24).unbind(1)
    packing = Packing.from_lengths([49, 7])
    ours = attention_topk(q, k, packing, 3)
    same = attention_topk(q.contiguous(), k.contiguous(), packing, 3)
    assert all(torch.equal(x, y) for x, y in zip(ours, same, strict=True))


@pytest.mark.parametrize(
    ("changed", "kind", "text"),
    [
        ({"n": 0}, ValueError, "n=0 entries of a row cannot be returned: ask for 1 or more"),
        ({"n": 2.0}, TypeError, "n must be a whole number, got 2.0"),
        ({"n": True}, TypeError, "n must be a whole number, got True"),
        ({"heads": "median"}, ValueError, "heads='median' is not a fusion; use one of mean, sum"),
        ({"head_weights": torch.ones(2)}, ValueError, r"head_weights must have shape \(4,\), got \(2,\)"),
        ({"q": torch.zeros(8, 4, 8)}, ValueError, "q has 8 tokens, but the packing's cells add up to 9"),
        ({"scale": float("nan")}, ValueError, "scale must be finite, got nan"),
        ({"backend": "triton"}, RuntimeError, "triton: q is on cpu, not on a GPU; k is on cpu"),
    ],
)
def test_refused_by_name(changed: dict[str, Any], kind: type[Exception], text: str) -> None:
    case = make_case([5, 4], [6, 3], heads=4, kv_heads=2, dim=8)
    inputs = {"q": case.q, "k": case.k, "packing": case.packing, "n": 2}
    assert attention_topk(**inputs, backend="reference").values.shape == (9, 2)
    with pytest.raises(kind, match=text):
        attention_topk(**inputs | changed)
