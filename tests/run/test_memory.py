"""The budget: amounts of memory, and tokens that fit them."""

from __future__ import annotations

import re

import pytest

from scfast.run.memory import bytes_per_token, parse_memory, token_budget
from tests.toy import toy_source


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("2GB", 2 * 10**9),
        ("0.5gb", 5 * 10**8),
        (" 500 MB ", 5 * 10**8),
        ("1.5GiB", 3 * 2**29),
        ("7B", 7),
        (123, 123),
    ],
)
def test_amounts(text, amount):
    assert parse_memory(text) == amount


@pytest.mark.parametrize("text", ["", "2", "GB", "-2GB", "2 gigs", "1e3MB", 0, -5, 1.5, None, True, "0GB"])
def test_no_amounts(text):
    with pytest.raises(ValueError, match="'2GB'"):
        parse_memory(text)


def test_what_a_token_costs():
    source = toy_source()
    one = bytes_per_token(source, layers_kept=1)
    assert bytes_per_token(source, layers_kept=3) - one == 2 * 128
    assert bytes_per_token(source, layers_kept=1, hidden_kept=2) - one == 2 * 64
    assert bytes_per_token(source, layers_kept=1, readouts=4) > one


@pytest.mark.parametrize("reserved", [0, 7 * 10**6])
@pytest.mark.parametrize("longest", [1, 2048, 4096])
def test_too_little_says_what_is_enough(longest, reserved):
    """The amount that the message names is granted, and one MB less is not."""
    per_token = 54_321
    with pytest.raises(ValueError, match=f"longest cell has {longest} tokens.*model-x needs") as error:
        token_budget(1000, per_token, longest, reserved=reserved, model="model-x")
    needed = re.search(r"pass memory='(\d+MB)'", str(error.value))
    enough = parse_memory(needed[1])
    assert token_budget(enough, per_token, longest, reserved=reserved) >= longest
    with pytest.raises(ValueError, match="too little"):
        token_budget(enough - 10**6, per_token, longest, reserved=reserved)
    assert ("the results take 7 MB" in str(error.value)) == (reserved > 0)


def test_budget_grows_with_memory():
    assert token_budget(10**9, 1000, 10) == 800_000
    assert token_budget(10**9, 1000, 10, reserved=10**8) == 700_000
