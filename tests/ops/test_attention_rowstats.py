"""attention_rowstats against float64: fusions, options, extremes, independence of cells and threads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scfast import Packing
from scfast.ops import RowStats, attention_rowstats
from scfast.reference import attention_rowstats as oracle
from tests.ops.helpers import (
    DTYPES,
    OPTION_SETS,
    SHAPES,
    Case,
    assert_close,
    every_instruction_set,
    fused,
    make_case,
    plain_maps,
    with_options,
)

HEADS = ("mean", "sum", "max", "min", "none")


def statistics(maps: list[torch.Tensor], packing: Packing) -> dict[str, torch.Tensor]:
    """Every field from fused maps [Hout, nq, nk], in their dtype."""
    rows: dict[str, list[torch.Tensor]] = {name: [] for name in RowStats._fields}
    for a, offset in zip(maps, packing.causal_offset.tolist(), strict=True):
        n_queries, n_keys = a.shape[1:]
        rho = a.sum(-1)
        own = torch.arange(n_queries) + offset
        inside = (own >= 0) & (own < n_keys)
        diagonal = torch.zeros_like(rho)
        diagonal[:, inside] = a[:, inside.nonzero()[:, 0], own[inside]]
        share = a / rho.masked_fill(rho == 0, 1)[..., None]
        rows["entropy"].append(torch.special.entr(share).sum(-1).T)
        rows["max"].append((a.amax(-1) if n_keys else torch.zeros_like(rho)).T)
        rows["self_weight"].append(diagonal.T)
        rows["row_sum"].append(rho.T)
        rows["total"].append(rho.sum(1)[None])
    return {name: torch.cat(parts) for name, parts in rows.items()}


def check(case: Case, heads: str = "none", head_weights: torch.Tensor | None = None) -> None:
    """Every field of every instruction set against the float64 reference, by the error rule."""
    options = {"heads": heads, "head_weights": head_weights, **case.options}
    exact = oracle(case.q, case.k, case.packing, **options)
    sizes = exact | {"entropy": exact["entropy"].clamp(min=1)}  # logarithms: absolute around 0
    plain: dict[str, torch.Tensor] = {}
    if case.packing.n_cells:
        plain = statistics(fused(plain_maps(case), heads, head_weights), case.packing)
    for isa in every_instruction_set():
        got = attention_rowstats(case.q, case.k, case.packing, **options)
        for name, size in sizes.items():
            assert_close(f"{name} ({isa})", getattr(got, name), exact[name], size, case, plain.get(name))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape: str, dtype: torch.dtype) -> None:
    lengths, lengths_k, heads, kv_heads, dim, _ = SHAPES[shape]
    case = make_case(lengths, lengths_k, heads, kv_heads, dim, dtype=dtype)
    check(case)
    check(case, "mean")


@pytest.mark.parametrize(("wanted", "low"), OPTION_SETS, ids=str)
def test_every_combination_of_score_options(wanted: dict[str, Any], low: torch.dtype) -> None:
    for dtype in (torch.float32, low):
        case = with_options(wanted, dtype, heads=4, kv_heads=2, dim=16)
        check(case)
        check(case, "max")


@pytest.mark.parametrize("weights", [None, [1.0, 0.5, 2.0, 0.25]], ids=str)
@pytest.mark.parametrize("heads", HEADS)
def test_fusions(heads: str, weights: list[float] | None) -> None:
    for dtype in DTYPES:
        case = make_case([49, 0, 1, 130, 481], heads=4, kv_heads=2, dim=16, dtype=dtype)
        check(case, heads, None if weights is None else torch.tensor(weights))


@given(
    lengths=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=5),
    n_heads=st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 1)]),
    dim=st.integers(1, 70),
    dtype=st.sampled_from(DTYPES),
    softcap=st.none() | st.floats(0.5, 30),
    offset=st.none() | st.integers(-20, 20),
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
    heads: str,
    seed: int,
) -> None:
    queries, keys = [n for n, _ in lengths], [n for _, n in lengths]
    offsets = None if offset is None else [offset] * len(lengths)
    options = {"softcap": softcap, "causal": offset is not None}
    check(
        make_case(queries, keys, *n_heads, dim, dtype=dtype, seed=seed, causal_offset=offsets, **options),
        heads,
    )


@pytest.mark.parametrize("spread", [30.0, 100.0, 1e4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_scores(spread: float, dtype: torch.dtype) -> None:
    case = make_case([49, 130], heads=2, dim=32, spread=spread, dtype=dtype, seed=5)
    check(case)
    check(case, "mean")


def test_self_weight_follows_the_offset() -> None:
    for offset in (-3, 0, 5, 100):
        check(make_case([9], [14], heads=2, dim=8, causal_offset=[offset]))


@pytest.mark.parametrize("heads", HEADS)
def test_queries_without_keys_give_zeros(heads: str, isa: str) -> None:
    case = make_case([3, 2], [0, 4], heads=2, dim=8)
    for name, x in attention_rowstats(case.q, case.k, case.packing, heads=heads)._asdict().items():
        assert (x[: 1 if name == "total" else 3] == 0).all(), name


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("where", ["q", "k"])
def test_a_broken_cell_stays_alone(where: str, heads: str, isa: str) -> None:
    case = make_case([60, 50, 500], heads=3, dim=16, seed=6)
    clean = attention_rowstats(case.q, case.k, case.packing, heads=heads)
    broken = getattr(case, where).clone()
    broken[70, 1, 3] = torch.nan
    case = replace(case, **{where: broken})
    got = attention_rowstats(case.q, case.k, case.packing, heads=heads)
    head = 1 if heads == "none" else 0
    for name, ours, same in zip(RowStats._fields, got, clean, strict=True):
        others = torch.arange(ours.shape[0])
        others = others[others != 1] if name == "total" else others[(others < 60) | (others >= 110)]
        assert torch.equal(ours[others], same[others]), name
        hit = ours[1:2] if name == "total" else ours[70:71] if where == "q" else ours[60:110]
        assert hit[:, head].isnan().all(), name


@pytest.mark.parametrize("heads", HEADS)
def test_bits_do_not_depend_on_threads_or_batch_mates(heads: str, isa: str) -> None:
    case = make_case([7, 1000, 0, 481, 33, 1], heads=3, dim=24)
    torch.set_num_threads(1)
    first = attention_rowstats(case.q, case.k, case.packing, heads=heads)
    for n in (2, 3, 5):
        torch.set_num_threads(n)
        again = attention_rowstats(case.q, case.k, case.packing, heads=heads)
        for name, ours, same in zip(RowStats._fields, again, first, strict=True):
            assert torch.equal(ours, same), f"{name} with {n} threads"
    order, split = [4, 1, 5, 3, 0], case.packing.split_q
    packing = Packing.from_lengths([case.packing.lengths_q[cell] for cell in order])
    q, k = (torch.cat([split(x)[cell] for cell in order]) for x in (case.q, case.k))
    got = attention_rowstats(q, k, packing, heads=heads)
    for name, ours, same in zip(RowStats._fields, got, first, strict=True):
        same = same[order] if name == "total" else torch.cat([split(same)[cell] for cell in order])
        assert torch.equal(ours, same), f"{name} depends on the other cells of the batch"


def test_strided_inputs_give_the_bits_of_contiguous_ones(isa: str) -> None:
    q, k, _ = torch.randn(56, 3, 3, 24).unbind(1)
    packing = Packing.from_lengths([49, 7])
    ours, same = (
        attention_rowstats(q, k, packing),
        attention_rowstats(q.contiguous(), k.contiguous(), packing),
    )
    assert all(torch.equal(x, y) for x, y in zip(ours, same, strict=True))
