"""attention_forward against float64: shapes, score options, extremes, independence of cells and threads."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scfast import Packing, _kernels
from scfast.ops import AttentionOutput, attention_forward
from scfast.reference import attention_forward as oracle
from tests.ops.helpers import (
    DTYPES,
    OPTION_SETS,
    SHAPES,
    Case,
    assert_close,
    every_instruction_set,
    exact_maps,
    is_strict,
    make_case,
    plain_maps,
    with_options,
)


def run(case: Case, **extra: Any) -> AttentionOutput:
    """Everything that the op returns."""
    wanted = {"received": True, "entropy": True, "max": True} | extra
    return attention_forward(case.q, case.k, case.v, case.packing, **case.options, **wanted)


def statistics(
    maps: list[tuple[torch.Tensor, torch.Tensor]], case: Case, absolute: bool = False
) -> dict[str, torch.Tensor]:
    """Every output from the maps, in the dtype of the maps; ``absolute``: with |v|."""
    group = case.q.shape[1] // case.k.shape[1]
    n_heads, out = case.q.shape[1], {name: [] for name in ("out", "lse", "received", "entropy", "max")}
    for (p, lse), v in zip(maps, case.packing.split_k(case.v), strict=True):
        v = v.to(p.dtype).transpose(0, 1).repeat_interleave(group, dim=0)
        out["out"].append((p @ (v.abs() if absolute else v)).transpose(0, 1))
        out["lse"].append(lse.T)
        out["received"].append(p.sum(1).T)
        out["entropy"].append(torch.special.entr(p).sum(-1).T)
        out["max"].append(p.amax(-1).T if p.shape[-1] else p.new_zeros((p.shape[1], n_heads)))
    joined = {name: torch.cat(parts) for name, parts in out.items()}
    return joined | {"received": joined["received"].T}


def check(case: Case) -> None:
    """Every output of every instruction set against the float64 reference, by the error rule."""
    exact = oracle(case.q, case.k, case.v, case.packing, **case.options)
    sizes = dict.fromkeys(exact, torch.ones(()))
    plain: dict[str, torch.Tensor] = {}
    if case.packing.n_cells:
        sizes = exact | {
            "out": statistics(exact_maps(case), case, absolute=True)["out"],
            "lse": exact["lse"].abs().clamp(min=1),  # logarithms: absolute around 0
            "entropy": exact["entropy"].clamp(min=1),
        }
        plain = statistics(plain_maps(case), case)
        if is_strict(case):
            del plain["received"]
    for isa in every_instruction_set():
        got = run(case)
        for name, size in sizes.items():
            assert_close(f"{name} ({isa})", getattr(got, name), exact[name], size, case, plain.get(name))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape: str, dtype: torch.dtype) -> None:
    check(make_case(*SHAPES[shape], dtype=dtype))


@pytest.mark.parametrize(("wanted", "low"), OPTION_SETS, ids=str)
def test_every_combination_of_score_options(wanted: dict[str, Any], low: torch.dtype) -> None:
    for dtype in (torch.float32, low):
        check(with_options(wanted, dtype, heads=4, kv_heads=2, dim=16))


@pytest.mark.parametrize("lengths", [[1023], [481, 7]], ids=str)
def test_causal_over_units_of_work(lengths: list[int]) -> None:
    check(make_case(lengths, heads=2, dim=32, causal=True))
    check(make_case([n // 2 for n in lengths], lengths, heads=2, dim=32, causal=True))


@given(
    lengths=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=5),
    heads=st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 1), (6, 3)]),
    dim=st.integers(1, 70),
    dim_v=st.integers(1, 70),
    dtype=st.sampled_from(DTYPES),
    scale=st.none() | st.floats(-0.1, 0.1),
    softcap=st.none() | st.floats(0.5, 30),
    bias=st.sampled_from([None, "keys", "keys and heads"]),
    offsets=st.none() | st.integers(-20, 20),
    seed=st.integers(0, 2**31),
)
def test_any_input(
    lengths: list[tuple[int, int]],
    heads: tuple[int, int],
    dim: int,
    dim_v: int,
    dtype: torch.dtype,
    scale: float | None,
    softcap: float | None,
    bias: str | None,
    offsets: int | None,
    seed: int,
) -> None:
    case = make_case(
        [n for n, _ in lengths], [n for _, n in lengths], *heads, dim, dim_v, dtype=dtype, seed=seed,
        causal_offset=None if offsets is None else [offsets] * len(lengths),
        scale=scale, softcap=softcap, causal=offsets is not None,
    )  # fmt: skip
    if bias:
        shape = (case.packing.total_k,) if bias == "keys" else (case.packing.total_k, heads[0])
        case.options["key_bias"] = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    check(case)


@pytest.mark.parametrize(
    "view", ["fused qkv", "heads first", "every second token", "strided dims", "broadcast"]
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_views_give_the_bits_of_contiguous_inputs(view: str, dtype: torch.dtype, isa: str) -> None:
    packing, shape = Packing.from_lengths([49, 7]), (56, 3, 24)
    q, k, v = {
        "fused qkv": lambda: torch.randn(56, 3, 3, 24).to(dtype).unbind(1),
        "heads first": lambda: [x.transpose(0, 1) for x in torch.randn(3, 3, 56, 24).to(dtype)],
        "every second token": lambda: [x[::2] for x in torch.randn(3, 112, 3, 24).to(dtype)],
        "strided dims": lambda: [x[..., ::2] for x in torch.randn(3, 56, 3, 48).to(dtype)],
        "broadcast": lambda: [torch.randn(n, 1, 24).to(dtype).expand(shape) for n in (1, 56, 56)],
    }[view]()
    case = Case(q, k, v, packing)
    assert not all(x.is_contiguous() for x in (q, k, v))
    packed = replace(
        case, q=q.clone(memory_format=torch.contiguous_format), k=k.contiguous(), v=v.contiguous()
    )
    check(case)
    for name, ours, same in zip(AttentionOutput._fields, run(case), run(packed), strict=True):
        assert torch.equal(ours, same), name


@pytest.mark.parametrize("spread", [30.0, 100.0, 1e4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large_scores(spread: float, dtype: torch.dtype) -> None:
    check(make_case([49, 130], heads=2, dim=32, spread=spread, dtype=dtype, seed=5))


def test_scores_that_overflow_an_exponential(isa: str) -> None:
    case = make_case([40], heads=1, dim=16, spread=1e15, seed=2)
    got = run(case)
    best = exact_maps(case)[0][0].argmax(-1).T  # [nq, 1]
    assert torch.equal(got.out, case.v[best[:, 0]]), "a row attends to its best key alone"
    assert torch.equal(got.max, torch.ones_like(got.max))
    assert torch.equal(got.entropy, torch.zeros_like(got.entropy))


@pytest.mark.parametrize("level", [0.0, 88.0, -3e4])
def test_equal_scores_are_uniform(level: float, isa: str) -> None:
    case = make_case([100, 1, 33], heads=2, dim=16)
    case.q.zero_()
    case.options["key_bias"] = torch.full((134,), level)
    got = run(case)
    lengths = (1 / case.packing.uniform_row_weights().double()).round()[:, None].expand(-1, 2)
    torch.testing.assert_close(got.max.double(), 1 / lengths, rtol=1e-6, atol=0)
    torch.testing.assert_close(got.entropy.double(), lengths.log(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(got.received, torch.ones_like(got.received), rtol=2e-6, atol=0)
    torch.testing.assert_close(got.lse.double(), lengths.log() + level, rtol=1e-6, atol=1e-6)


def test_a_bias_of_minus_ten_thousand_hides_a_key(isa: str) -> None:
    case = make_case([60], heads=2, dim=16)
    bias = torch.zeros(60)
    bias[40:] = -1e4
    case.options["key_bias"] = bias
    got = run(case)
    fewer = run(
        replace(case, k=case.k[:40], v=case.v[:40], packing=Packing.from_lengths([60], [40]), options={})
    )
    assert (got.received[:, 40:] == 0).all()
    for name in ("out", "lse", "entropy", "max"):
        torch.testing.assert_close(getattr(got, name), getattr(fewer, name), rtol=1e-5, atol=1e-6)
    case.options["key_bias"] = torch.full((60,), -1e4)  # all hidden: all alike
    if isa == _kernels.instruction_sets()[0]:
        check(replace(case, spread=2.0))


def test_queries_without_keys(isa: str) -> None:
    got = run(make_case([3, 2], [0, 4], heads=2, dim=8))
    assert (got.out[:3] == 0).all()
    assert (got.lse[:3] == -math.inf).all()
    assert (got.entropy[:3] == 0).all()
    assert (got.max[:3] == 0).all()
    causal = run(make_case([5], heads=2, dim=8, causal=True, causal_offset=[-2]))
    assert (causal.out[:2] == 0).all()
    assert (causal.lse[:2] == -math.inf).all()
    assert torch.isfinite(causal.out).all()
    torch.testing.assert_close(causal.received.sum(1), torch.full((2,), 3.0))


@pytest.mark.parametrize("where", ["q", "k", "v"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_broken_cell_stays_alone(where: str, value: float, isa: str) -> None:
    case = make_case([60, 50, 500], heads=2, dim=16, seed=6)
    clean = run(case)
    broken = getattr(case, where).clone()
    broken[70, 1, 3] = value  # a token of the second cell
    got = run(replace(case, **{where: broken}))
    others = torch.ones(610, dtype=torch.bool)
    others[60:110] = False
    for name in ("out", "lse", "entropy", "max"):
        assert torch.equal(getattr(got, name)[others], getattr(clean, name)[others]), name
    assert torch.equal(got.received[:, others], clean.received[:, others])
    if value != value:
        rows = slice(70, 71) if where == "q" else slice(60, 110)
        assert got.out[rows, 1, 3].isnan().all()
        if where != "v":
            assert got.lse[rows, 1].isnan().all()
            assert got.entropy[rows, 1].isnan().all()
            assert got.max[rows, 1].isnan().all()
            assert got.received[1, 60:110].isnan().all()


@pytest.mark.parametrize("options", [{}, {"causal": True, "softcap": 5.0}], ids=str)
def test_bits_do_not_depend_on_threads_or_batch_mates(options: dict[str, Any], isa: str) -> None:
    case = make_case([7, 1000, 0, 481, 33, 1], heads=3, dim=24, **options)
    torch.set_num_threads(1)
    first = run(case)
    for n in (2, 3, 5):
        torch.set_num_threads(n)
        for name, ours, same in zip(AttentionOutput._fields, run(case), first, strict=True):
            assert torch.equal(ours, same), f"{name} with {n} threads"
    order = [4, 1, 5, 3, 0]
    q, k, v = (torch.cat([case.packing.split_q(x)[cell] for cell in order]) for x in (case.q, case.k, case.v))
    packing = Packing.from_lengths([case.packing.lengths_q[cell] for cell in order])
    got = run(replace(case, q=q, k=k, v=v, packing=packing))
    for name, ours, same in zip(AttentionOutput._fields, got, first, strict=True):
        dim = 1 if name == "received" else 0
        same = torch.cat([case.packing.split_q(same, dim=dim)[cell] for cell in order], dim=dim)
        assert torch.equal(ours, same), f"{name} depends on the other cells of the batch"


@pytest.mark.parametrize("n", range(8))
def test_statistics_come_only_when_asked_for_and_change_nothing(n: int) -> None:
    case = make_case([40, 500], heads=2, dim=16)
    wanted = {name: bool(n >> bit & 1) for bit, name in enumerate(("received", "entropy", "max"))}
    full, got = run(case), run(case, **wanted)
    for name, ours, same in zip(AttentionOutput._fields, got, full, strict=True):
        if wanted.get(name, True):
            assert torch.equal(ours, same), name
        else:
            assert ours is None, name


def test_16_bit_statistics_are_accumulated_in_float32(isa: str) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        case = make_case([130, 49], heads=2, dtype=dtype)
        exact = oracle(case.q, case.k, case.v, case.packing)
        got = run(case)
        for name in ("lse", "received", "entropy", "max"):
            torch.testing.assert_close(
                getattr(got, name).double(), exact[name], rtol=3e-6, atol=1e-6, msg=name
            )
