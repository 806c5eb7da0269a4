from itertools import pairwise

import numpy as np
import pytest

from scfast.train.fit import Epochs, learning_rate
from tests.train.test_pretrain import settings


def test_learning_rate_warms_up_and_decays():
    chosen = settings(steps=100)
    rates = [learning_rate(step, chosen) for step in range(100)]
    assert max(rates) == chosen.lr == rates[10]
    assert rates[0] == pytest.approx(chosen.lr / 10)
    assert rates[-1] < 0.01 * chosen.lr
    assert all(a >= b for a, b in pairwise(rates[10:]))


def test_an_epoch_sees_every_cell_once_and_ends_there():
    lengths = np.random.default_rng(0).integers(1, 40, size=50)
    epochs = Epochs(lengths, 100, seed=3)
    for number in (1, 2, 3):
        seen: list[int] = []
        while not (seen and epochs.ended):
            seen += epochs.next().tolist()
        assert sorted(seen) == list(range(50))
        assert epochs.number == number
    again = Epochs(lengths, 100, seed=3)
    again.skip(epochs.steps(3))
    assert again.ended
    assert np.array_equal(again.next(), epochs.next())
