from itertools import pairwise

import pytest

from scfast.run.training import learning_rate
from tests.run.test_pretrain import settings


def test_learning_rate_warms_up_and_decays():
    chosen = settings(steps=100)
    rates = [learning_rate(step, chosen) for step in range(100)]
    assert max(rates) == chosen.lr == rates[10]
    assert rates[0] == pytest.approx(chosen.lr / 10)
    assert rates[-1] < 0.01 * chosen.lr
    assert all(a >= b for a, b in pairwise(rates[10:]))
