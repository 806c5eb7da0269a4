"""The error rule itself can fail."""

from __future__ import annotations

import pytest
import torch

from scfast import _kernels
from tests.ops.helpers import (
    FLOOR,
    assert_close,
    error,
    every_instruction_set,
    exact_maps,
    is_strict,
    make_case,
    plain_maps,
)


def test_error_is_relative_to_the_size() -> None:
    exact = torch.tensor([1.0, 2.0], dtype=torch.float64)
    assert error(exact.float(), exact, exact) == 0
    assert error(exact * (1 + 1e-5), exact, exact) == pytest.approx(1e-5)
    assert error(exact + 1e-5, exact, torch.full_like(exact, 10)) == pytest.approx(1e-6)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf, 0.0])
def test_error_sees_a_broken_element(broken: float) -> None:
    exact = torch.ones(3, dtype=torch.float64)
    got = exact.clone()
    got[1] = broken
    assert error(got, exact, exact) >= 1


def test_error_wants_infinities_and_nans_where_the_oracle_has_them() -> None:
    exact = torch.tensor([-torch.inf, torch.nan], dtype=torch.float64)
    assert error(exact.float(), exact, torch.ones(2)) == 0
    assert error(torch.tensor([-1e30, torch.nan]), exact, torch.ones(2)) == torch.inf
    assert error(torch.tensor([-torch.inf, 0.0]), exact, torch.ones(2)) == torch.inf


def test_error_refuses_another_shape() -> None:
    with pytest.raises(AssertionError, match="shape"):
        error(torch.ones(2), torch.ones(3), torch.ones(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spread", [1.0, 30.0])
def test_the_rule_fails_past_its_limit(dtype: torch.dtype, spread: float) -> None:
    case = make_case([20], heads=2, dtype=dtype, spread=spread)
    exact = exact_maps(case)[0][0].sum(1)
    plain = None if is_strict(case) else plain_maps(case)[0][0].sum(1)
    limit = FLOOR if plain is None else FLOOR + 2 * error(plain, exact, exact)
    assert_close("sum", (exact * (1 + 0.9 * limit)).float(), exact, exact, case, plain)
    with pytest.raises(AssertionError, match="sum: error"):
        assert_close("sum", (exact * (1 + 1.2 * limit)).float(), exact, exact, case, plain)


def test_the_rule_wants_plain_torch_for_wide_scores() -> None:
    case = make_case([20], heads=2, spread=50.0)
    exact = exact_maps(case)[0][0].sum(1)
    with pytest.raises(AssertionError, match="needs plain torch"):
        assert_close("sum", exact, exact, exact, case, None)


def test_plain_torch_agrees_with_the_oracle() -> None:
    case = make_case([20, 0, 7], [9, 4, 30], heads=4, kv_heads=2, softcap=2.0, causal=True)
    for (plain, plain_lse), (exact, lse) in zip(plain_maps(case), exact_maps(case), strict=True):
        assert error(plain, exact, torch.ones_like(exact)) < FLOOR
        assert error(plain_lse, lse, torch.ones_like(lse)) < FLOOR


def test_every_instruction_set_is_put_back() -> None:
    before = _kernels.instruction_set()
    assert list(every_instruction_set()) == _kernels.instruction_sets()
    for name in every_instruction_set():
        assert _kernels.instruction_set() == name
        break
    assert _kernels.instruction_set() == before


def test_uninitialised_memory_is_poisoned() -> None:
    like = torch.zeros(2)
    for x in (torch.empty(3), torch.empty_like(like), like.new_empty((2, 2), dtype=torch.bfloat16)):
        assert x.isnan().all()
