"""Fingerprints: the same for the same content, another for any change that a user may make."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from scfast import Packing
from scfast.observables import Rollout
from scfast.run import Counts
from scfast.run.fingerprint import LOOKED_AT, fingerprint
from tests.toy import toy_adata, toy_source


def double(x):
    return 2 * x


def halve(x):
    return x / 2


SAME = [
    lambda: None,
    lambda: {"seed": 0, "names": ["a", "b"]},
    lambda: np.arange(7.0),
    lambda: np.zeros((0, 3)),
    lambda: torch.arange(3),
    lambda: torch.ones(5, dtype=torch.bfloat16),
    lambda: sparse.random(9, 5, 0.4, format="csr", random_state=0),
    lambda: pd.DataFrame({"x": [1, 2], "y": ["a", "b"]}),
    lambda: {3, 1, 2},
    lambda: partial(double, 3),
    toy_source,
    lambda: Rollout("mean"),
    lambda: Packing.from_lengths([3, 4]),
    lambda: Counts(toy_adata().X, toy_adata().var),
]


@pytest.mark.parametrize("make", SAME)
def test_the_same_content_has_one_fingerprint(make):
    assert fingerprint(make()) == fingerprint(make())


def test_all_of_these_differ():
    assert len({fingerprint(make()) for make in SAME}) == len(SAME)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (np.arange(3), np.arange(3, dtype=np.int32)),
        (np.zeros((2, 3)), np.zeros((3, 2))),
        (np.array([0.0, 1.0]), np.array([0.0, np.nextafter(1.0, 2.0)])),
        (["ab", "c"], ["a", "bc"]),
        ([[1], 2], [1, [2]]),
        (1, True),
        (double, halve),
        (partial(double, 3), partial(double, 4)),
        (toy_source(), toy_source(cls=True)),
        (Rollout("mean"), Rollout("mean", residual=0.25)),
        (Rollout("mean"), Rollout("mean", layers=(1, 2))),
        (Packing.from_lengths([3, 4]), Packing.from_lengths([4, 3])),
    ],
)
def test_changes_are_told(one, other):
    assert fingerprint(one) != fingerprint(other)


def test_long_arrays_are_looked_at_here_and_there():
    long = np.zeros(10 * LOOKED_AT)
    changed = long.copy()
    changed[:: len(long) // 1000] = 1  # a thousand places, as an array of other numbers has
    assert fingerprint(long) != fingerprint(changed)


def test_what_is_remembered_does_not_count():
    packing = Packing.from_lengths([3, 4])
    before = fingerprint(packing)
    assert packing.total_q == 7
    assert "total_q" in vars(packing)
    assert fingerprint(packing) == before


def test_circles_end():
    ring: list[object] = [1]
    ring.append(ring)
    other: list[object] = [2]
    other.append(other)
    assert fingerprint(ring) != fingerprint(other)
