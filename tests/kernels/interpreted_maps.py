"""The Triton kernels of ``map=`` against float64, in Triton's interpreter: run by test_interpreter.py.

The check is that of the C++ kernels, on small cells. bfloat16 is left out: the interpreter multiplies it wrongly.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from scfast.ops import Norm, _dispatch, attention_colsum, attention_rowstats
from tests.ops import test_map_kernels
from tests.ops.helpers import OPTION_SETS, make_case, row_weights
from tests.ops.test_map_kernels import KINDS, check, make_map

# Rows without keys divide by 0 before they are set aside; broken rows have no largest score.
pytestmark = [
    pytest.mark.filterwarnings("ignore:(divide by zero|invalid value|overflow) encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning"),
]

#: (lengths, lengths_k, heads, kv_heads, head dim, value dim)
SHAPES: dict[str, tuple[Any, ...]] = {
    "empty batch": ([], None, 2, 2, 16, 16),
    "ragged": ([7, 0, 33, 1], None, 2, 2, 16, 16),
    "no keys": ([5, 0, 34], [0, 4, 17], 2, 1, 24, 12),
    "dim 65": ([3], None, 1, 1, 65, 130),
    "readout": ([1, 9], [65, 31], 2, 1, 3, 5),
}


@pytest.fixture(autouse=True)
def _triton_is_picked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests of the C++ kernels as they are, on the Triton kernels, and once instead of for each instruction set."""
    backends = {name: _dispatch.BACKENDS[name] for name in ("triton", "reference")}
    monkeypatch.setattr(_dispatch, "BACKENDS", backends)
    monkeypatch.setattr(test_map_kernels, "every_instruction_set", lambda: iter(["triton"]))


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [*((shape, torch.float32) for shape in SHAPES), ("no keys", torch.float16)],
)
@pytest.mark.parametrize(("kind", "apart"), [("diagonal", "norm"), ("relevance", "signed")])
def test_shapes(kind: str, apart: str, shape: str, dtype: torch.dtype) -> None:
    case = make_case(*SHAPES[shape], dtype=dtype)
    check(case, make_map(kind, case, lse=dtype == torch.float16))
    check(case, make_map(apart, case), "none")


@pytest.mark.parametrize("n", range(0, len(OPTION_SETS), 17))
@pytest.mark.parametrize("kind", ["diagonal", "relevance"])
def test_score_options(kind: str, n: int) -> None:
    wanted = OPTION_SETS[n][0]
    offset, lengths, lengths_k = wanted["offset"], [9, 0, 3], [34, 5, 0]
    case = make_case(
        lengths, lengths_k, 2, 1, 16, dtype=(torch.float32, torch.float16)[n % 2], seed=3,
        causal_offset=[offset] * 3 if isinstance(offset, int) else None,
        scale=wanted["scale"], softcap=wanted["softcap"], causal=offset is not None,
    )  # fmt: skip
    if wanted["bias"]:
        shape = (39,) if wanted["bias"] == "keys" else (39, 2)
        case.options["key_bias"] = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    check(case, make_map(kind, case, lse=n % 3 == 0))


@pytest.mark.parametrize("heads", [1, 9, 20])
def test_norms_of_any_number_of_heads(heads: int) -> None:
    case = make_case([5], heads=heads, dim=8)
    check(case, make_map("diagonal", case, lse=heads == 9), residual=0.5)


@pytest.mark.parametrize("n", [1, 3])
def test_steps_of_the_gradient_weighted_rollout(n: int) -> None:
    case = make_case([9, 0, 33], heads=2, dim=16)
    check(case, make_map("relevance", case), weights=row_weights(case.packing, n), residual=0.5)


@pytest.mark.parametrize("heads", ["mean", "sum", "max", "min", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_fusions_and_head_weights(kind: str, heads: str) -> None:
    if (kind in ("norm", "diagonal") and heads not in ("sum", "none")) or (kind, heads) == (
        "diagonal",
        "none",
    ):
        return  # refused
    case = make_case([9, 0, 1], heads=4, kv_heads=2, dim=16, causal=heads == "max")
    factors, weights = torch.tensor([1.0, -0.5, 0.0, 2.0]), row_weights(case.packing, 1)
    check(case, make_map(kind, case, lse=heads == "min"), heads, head_weights=factors, weights=weights)


@pytest.mark.parametrize("kind", KINDS)
def test_large_scores(kind: str) -> None:
    case = make_case([20], heads=2, dim=32, spread=30.0, seed=5)
    check(case, make_map(kind, case, lse=kind == "norm"))


@pytest.mark.parametrize("exponent", [-80, 80])
def test_norms_of_any_size(exponent: int) -> None:
    test_map_kernels.test_norms_of_any_size(exponent, "triton")


def test_values_of_zero_have_norms_of_zero() -> None:
    test_map_kernels.test_values_of_zero_have_norms_of_zero("triton")


@pytest.mark.parametrize("kind", ["diagonal", "relevance"])
def test_rows_of_weight_zero_are_skipped_whatever_they_hold(kind: str) -> None:
    case = make_case([7, 5], heads=2, dim=16)
    weights, map, left_out = torch.rand(2, 12), make_map(kind, case), [3, 4, 6, 7]
    weights[:, left_out] = 0.0
    clean = attention_colsum(case.q, case.k, case.packing, weights, map=map)
    case.q[left_out] = torch.nan
    assert torch.equal(attention_colsum(case.q, case.k, case.packing, weights, map=map), clean)


@pytest.mark.parametrize("where", ["q", "k", "lse", "map"])
@pytest.mark.parametrize("kind", ["diagonal", "relevance"])
def test_a_broken_cell_stays_alone(kind: str, where: str) -> None:
    case = make_case([6, 3, 4], heads=2, dim=16, seed=6)
    map, weights = make_map(kind, case, lse=where == "lse"), torch.rand(2, 13)

    def run() -> tuple[torch.Tensor, ...]:
        stats = attention_rowstats(case.q, case.k, case.packing, map=map)
        return attention_colsum(case.q, case.k, case.packing, weights, map=map), *(x.T for x in stats[:4])

    before = run()
    for ours, other in zip(before, run(), strict=True):  # and two runs give the same bits
        torch.testing.assert_close(ours, other, rtol=0, atol=0, equal_nan=True)
    tensors = {"q": case.q, "k": case.k, "lse": map.lse, "map": map.gram if isinstance(map, Norm) else map.v}
    tensors[where][(7, 1, 1)[: tensors[where].dim()]] = torch.nan
    got = run()
    others = [*range(6), *range(9, 13)]
    for ours, other in zip(got, before, strict=True):
        torch.testing.assert_close(ours[..., others], other[..., others], rtol=0, atol=0, equal_nan=True)
    head = 0 if isinstance(map, Norm) else 1
    assert got[4][head, 7 if where in ("q", "lse") else slice(6, 9)].isnan().all()
    assert got[0][:, 0, 7].isnan().all()
