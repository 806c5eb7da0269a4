"""Plans: every row once, within the budget, longest first; the same input gives the same plan."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scfast.run import make_plan


@given(st.lists(st.integers(0, 50), max_size=60), st.integers(50, 200), st.integers(1, 300))
def test_batches(lengths, budget, limit):
    lengths = np.array(lengths, dtype=np.int64)
    plan = make_plan(lengths, token_budget=budget, max_batch_tokens=limit)
    batches = list(plan.batches())
    assert sorted(np.concatenate([*batches, np.empty(0, dtype=int)])) == list(range(len(lengths)))
    assert np.all(np.diff(lengths[plan.rows]) <= 0)
    largest = min(budget, max(limit, lengths.max(initial=0)))
    for batch in batches:
        assert len(batch) >= 1
        assert lengths[batch].sum() <= largest
    for batch, following in pairwise(batches):  # no batch could have taken one more cell
        assert lengths[batch].sum() + lengths[following[0]] > largest
    assert plan.n_batches == len(batches)


def test_equal_lengths_keep_the_order_of_the_data():
    plan = make_plan(np.array([2, 3, 2, 3, 2]), token_budget=100)
    assert plan.rows.tolist() == [1, 3, 0, 2, 4]


def test_only_the_rows_asked_for():
    plan = make_plan(np.array([2, 9, 4, 3]), token_budget=5, rows=np.array([0, 3, 2]))
    assert [batch.tolist() for batch in plan.batches()] == [[2], [3, 0]]


def test_a_cell_that_does_not_fit():
    with pytest.raises(ValueError, match="a cell of 9 tokens does not fit a budget of 8"):
        make_plan(np.array([2, 9]), token_budget=8)


def test_hash_follows_everything():
    plan = make_plan(np.array([2, 9, 4, 3]), token_budget=20)
    assert plan.hash == make_plan(np.array([2, 9, 4, 3]), token_budget=20).hash
    others = [
        replace(plan, rows=plan.rows[::-1]),
        replace(plan, offsets=np.array([0, 2, 4])),
        replace(plan, threads=plan.threads + 1),
        replace(plan, dtype="bfloat16"),
        replace(plan, instruction_set="none"),
        replace(plan, seed=1),
        replace(plan, token_budget=21),
    ]
    assert len({plan.hash, *(other.hash for other in others)}) == 1 + len(others)


def test_frozen():
    plan = make_plan(np.array([2]), token_budget=20)
    with pytest.raises(FrozenInstanceError):
        plan.seed = 3
