"""attention_backward against float64 and torch: shapes, score options, independence of cells and threads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scfast import Packing
from scfast.ops import AttentionGradients, attention_backward, attention_forward
from scfast.reference import attention_backward as oracle
from tests.ops.helpers import (
    DTYPES,
    OPTION_SETS,
    SHAPES,
    Case,
    assert_close,
    every_instruction_set,
    exact_maps,
    make_case,
    plain_maps,
    with_options,
)

Maps = list[tuple[torch.Tensor, torch.Tensor]]


def direction(case: Case, seed: int = 9) -> torch.Tensor:
    """A gradient of ``out``."""
    random = torch.Generator().manual_seed(seed)
    shape = (case.packing.total_q, case.q.shape[1], case.v.shape[2])
    return torch.randn(shape, generator=random).to(case.q.dtype)


def run(case: Case, d_out: torch.Tensor) -> AttentionGradients:
    forward = attention_forward(case.q, case.k, case.v, case.packing, **case.options)
    return attention_backward(
        d_out, case.q, case.k, case.v, forward.out, forward.lse, case.packing, **case.options
    )


def formula(maps: Maps, case: Case, d_out: torch.Tensor, absolute: bool = False) -> dict[str, torch.Tensor]:
    """The gradients from the maps, in their dtype; ``absolute``: the same with absolute values, term by term."""
    group, dtype = case.q.shape[1] // case.k.shape[1], maps[0][0].dtype
    scale = case.options.get("scale")
    scale = case.q.shape[2] ** -0.5 if scale is None else scale
    cap = case.options.get("softcap")
    parts: dict[str, list[torch.Tensor]] = {"dq": [], "dk": [], "dv": []}
    split_q, split_k = case.packing.split_q, case.packing.split_k
    cells = zip(maps, split_q(case.q), split_k(case.k), split_k(case.v), split_q(d_out), strict=True)
    for (p, _), *inputs in cells:
        q, k, v, d = (x.to(dtype).transpose(0, 1) for x in inputs)
        k, v = (x.repeat_interleave(group, dim=0) for x in (k, v))
        slope = 1.0
        if cap:
            slope = 1 - torch.tanh(q @ k.mT * scale / cap) ** 2
        if absolute:
            q, k, v, d = (x.abs() for x in (q, k, v, d))
        dp = d @ v.mT
        mean = (p * dp).sum(-1, keepdim=True)
        ds = (
            p
            * ((dp + mean) if absolute else (dp - mean))
            * slope
            * abs(scale) ** absolute
            * scale ** (not absolute)
        )
        parts["dq"].append((ds @ k).transpose(0, 1))
        for name, x in (("dk", ds.mT @ q), ("dv", p.mT @ d)):
            parts[name].append(x.unflatten(0, (-1, group)).sum(1).transpose(0, 1))
    return {name: torch.cat(cells) for name, cells in parts.items()}


def check(case: Case) -> None:
    """Every gradient of every instruction set against the float64 reference, by the error rule."""
    d_out = direction(case)
    exact = oracle(d_out, case.q, case.k, case.v, case.packing, **case.options)
    sizes, plain = dict.fromkeys(exact, torch.ones(())), dict.fromkeys(exact, torch.zeros(()))
    if case.packing.n_cells:
        sizes = formula(exact_maps(case), case, d_out, absolute=True)
        plain = formula(plain_maps(case), case, d_out)
    for isa in every_instruction_set():
        got = run(case, d_out)
        for name, value in exact.items():
            assert_close(f"{name} ({isa})", getattr(got, name), value, sizes[name], case, plain[name])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape: str, dtype: torch.dtype) -> None:
    check(make_case(*SHAPES[shape], dtype=dtype))


@pytest.mark.parametrize(("wanted", "half"), OPTION_SETS, ids=str)
def test_options(wanted: dict[str, Any], half: torch.dtype) -> None:
    for dtype in (torch.float32, half):
        check(with_options(wanted, dtype, heads=4, kv_heads=2, dim=24, dim_v=16))


def test_parts_of_a_long_cell() -> None:
    check(make_case([2401, 30], heads=1, dim=16, causal=True))


@given(
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=4),
    heads=st.sampled_from([(1, 1), (4, 2), (3, 1)]),
    dims=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    causal=st.booleans(),
    dtype=st.sampled_from(DTYPES),
)
def test_any_lengths(
    lengths: list[int], heads: tuple[int, int], dims: tuple[int, int], causal: bool, dtype: torch.dtype
) -> None:
    check(make_case(lengths, None, *heads, *dims, dtype=dtype, causal=causal))


def test_gradcheck_of_the_reference() -> None:
    case = make_case([3, 0, 4], [2, 3, 5], heads=2, kv_heads=1, dim=3, dim_v=2)
    case.options = {"softcap": 1.5, "key_bias": torch.randn(10), "causal": True, "scale": 0.7}
    leaves = [x.double().requires_grad_() for x in (case.q, case.k, case.v)]

    def out(*inputs: torch.Tensor) -> torch.Tensor:
        from scfast.reference import attention_forward as reference

        return reference(*inputs, case.packing, **case.options)["out"]

    assert torch.autograd.gradcheck(out, leaves)


@pytest.mark.parametrize("causal", [False, True])
def test_autograd_calls_it(causal: bool) -> None:
    case = make_case([40, 0, 7], heads=4, kv_heads=2, dim=16, dim_v=8, causal=causal)
    leaves = [x.requires_grad_() for x in (case.q, case.k, case.v)]
    result = attention_forward(*leaves, case.packing, received=True, **case.options)
    assert not result.lse.requires_grad
    assert not result.received.requires_grad
    d_out = direction(case)
    got = torch.autograd.grad(result.out, leaves, d_out)
    with torch.no_grad():
        expected = run(case, d_out)
    for x, y in zip(got, expected, strict=True):
        assert torch.equal(x, y)


def test_a_part_of_the_inputs_may_need_gradients() -> None:
    case = make_case([9], heads=2, dim=8)
    out = attention_forward(case.q, case.k, case.v.requires_grad_(), case.packing).out
    out.sum().backward()
    assert case.v.grad is not None
    assert case.q.grad is None


def test_threads_and_company_do_not_change_a_bit() -> None:
    case = make_case([700, 33, 2500, 1], heads=2, kv_heads=1, dim=32, causal=True)
    d_out, threads = direction(case), torch.get_num_threads()
    results = []
    try:
        for n in (1, 2, 5):
            torch.set_num_threads(n)
            results.append(run(case, d_out))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))
    cell = slice(700, 733)
    alone = Case(case.q[cell], case.k[cell], case.v[cell], Packing.from_lengths([33]), case.options)
    for x, y in zip(run(alone, d_out[cell]), results[0], strict=True):
        assert torch.equal(x, y[cell])


def test_nan_stays_in_its_cell() -> None:
    case = make_case([20, 20, 20], heads=2, dim=16)
    d_out, clean = direction(case), run(make_case([20, 20, 20], heads=2, dim=16), direction(case))
    case.k[25] = torch.nan
    for got, expected in zip(run(case, d_out), clean, strict=True):
        assert got[20:40].isnan().any()
        assert torch.equal(got[:20], expected[:20])
        assert torch.equal(got[40:], expected[40:])


def test_inputs_of_other_strides() -> None:
    case = make_case([17, 30], heads=3, dim=8)
    d_out, expected = direction(case), run(case, direction(case))
    joined = torch.cat([case.q, case.k, case.v], dim=2)
    case.q, case.k, case.v = joined[..., :8], joined[..., 8:16], joined[..., 16:]
    for x, y in zip(run(case, d_out.transpose(0, 1).contiguous().transpose(0, 1)), expected, strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"d_out": torch.zeros(6, 2, 4)}, ValueError, r"d_out has shape \(6, 2, 4\).*\(5, 2, 4\)"),
        ({"out": torch.zeros(5, 2, 3)}, ValueError, "out has shape"),
        (
            {"lse": torch.zeros(5, 2, dtype=torch.float64)},
            TypeError,
            "lse is torch.float64, expected torch.float32",
        ),
        ({"d_out": torch.zeros(5, 2, 4, dtype=torch.float16)}, TypeError, "d_out is torch.float16"),
    ],
)
def test_bad_input(change: dict[str, torch.Tensor], error: type[Exception], message: str) -> None:
    case = make_case([5], heads=2, dim=4)
    inputs = {"d_out": torch.zeros(5, 2, 4), "q": case.q, "k": case.k, "v": case.v} | {
        "out": torch.zeros(5, 2, 4),
        "lse": torch.zeros(5, 2),
    }
    with pytest.raises(error, match=message):
        attention_backward(**(inputs | change), packing=case.packing)
