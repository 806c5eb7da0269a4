import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scfast.train.split import take_cells, take_groups


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@given(st.lists(st.integers(2, 40), min_size=1, max_size=5), st.floats(0.01, 0.99), st.integers(0, 5))
def test_every_class_gives_its_share(sizes, share, seed):
    labels = rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    taken = take_cells(labels, share, rng(seed))
    for code, size in enumerate(sizes):
        n = int(taken[labels == code].sum())
        assert 1 <= n <= size - 1
        assert abs(n - share * size) <= 1


@given(st.lists(st.integers(1, 30), min_size=2, max_size=8), st.floats(0.05, 0.9), st.integers(0, 5))
def test_groups_stay_whole_and_one_is_left(sizes, share, seed):
    groups = rng(seed).permutation(np.repeat([f"donor{i}" for i in range(len(sizes))], sizes))
    taken = take_groups(groups, share, rng(seed))
    assert not set(groups[taken]) & set(groups[~taken])
    assert 0 < taken.sum() < taken.size


def test_many_groups_come_close_to_the_share():
    groups = np.repeat(np.arange(100), 10)
    assert take_groups(groups, 0.2, rng()).sum() == 200


def test_seeds_decide():
    labels = np.zeros(50, dtype=int)
    assert np.array_equal(take_cells(labels, 0.3, rng(1)), take_cells(labels, 0.3, rng(1)))
    assert not np.array_equal(take_cells(labels, 0.3, rng(1)), take_cells(labels, 0.3, rng(2)))


def test_what_cannot_be_split():
    with pytest.raises(ValueError, match="class 1 has one cell"):
        take_cells(np.array([0, 0, 1]), 0.5, rng())
    with pytest.raises(ValueError, match="one group only"):
        take_groups(np.zeros(9, dtype=int), 0.5, rng())
