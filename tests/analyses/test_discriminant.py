"""Discriminants from sums, against scikit-learn on the cells themselves."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.covariance import oas
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression

from scfast.analyses.discriminant import fit_discriminant
from scfast.tl._logistic import fit_logistic, standardise


def data(n=300, width=20, n_classes=4, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.choice(n_classes, n, p=[0.4, 0.3, 0.2, 0.1])
    states = (
        rng.normal(size=(n, width)) @ rng.normal(size=(width, width))
        + rng.normal(size=(n_classes, width))[labels]
    )
    return (states + 5).astype(np.float32).astype(np.float64), labels


def fit(states, labels, n_classes, shrinkage):
    onehot = np.eye(n_classes)[labels]
    return fit_discriminant(states.T @ states, onehot.T @ states, onehot.sum(0).astype(np.int64), shrinkage)


@pytest.mark.parametrize("shrinkage", [0.001, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("n", [300, 15])
def test_equals_scikit_learn(n, shrinkage):
    states, labels = data(n)
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage).fit(states, labels)
    mine = fit(states, labels, 4, shrinkage)
    there = theirs.classes_
    np.testing.assert_allclose(mine.coef[there], theirs.coef_, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(mine.intercept[there], theirs.intercept_, rtol=1e-7, atol=1e-7)
    np.testing.assert_array_equal(mine.predict(states), theirs.predict(states))


def test_oas_is_that_of_the_pooled_covariance():
    states, labels = data(60)
    centred = states - np.stack([states[labels == c].mean(0) for c in range(4)])[labels]
    _, expected = oas(centred, assume_centered=True)
    np.testing.assert_allclose(fit(states, labels, 4, "oas").shrinkage, expected, rtol=1e-10)


def test_a_class_that_was_not_there_is_never_predicted():
    states, labels = data()
    labels[labels == 2] = 1
    mine = fit(states, labels, 4, 0.1)
    assert set(mine.predict(states * 3)) <= {0, 1, 3}


def test_states_that_are_all_alike_give_the_commonest_class():
    states = np.full((10, 3), np.float32(0.1), dtype=np.float64) * (1 + 1e-8 * np.arange(10)[:, None])
    labels = np.array([0, 1, 1, 1, 1, 1, 1, 0, 0, 0])
    mine = fit(states, labels, 2, 0.1)
    assert not mine.coef.any()
    assert (mine.predict(states) == 1).all()


def test_one_class_has_no_discriminant():
    assert fit(np.ones((3, 2)), np.zeros(3, dtype=int), 2, 0.1) is None


@pytest.mark.parametrize("inverse_penalty", [0.01, 1.0])
def test_logistic_regression_equals_scikit_learn(inverse_penalty):
    states, labels = data(width=6)
    states, _ = standardise(states, states)
    theirs = LogisticRegression(C=inverse_penalty, tol=1e-8, max_iter=5000).fit(states, labels)
    coef, intercept = fit_logistic(states, labels, 4, inverse_penalty=inverse_penalty)
    # Two optimisers that stop near the same optimum: 1.1e-4 and 3e-5 apart here, at most.
    np.testing.assert_allclose(coef, theirs.coef_, atol=5e-4)
    np.testing.assert_allclose(
        intercept - intercept.mean(), theirs.intercept_ - theirs.intercept_.mean(), atol=2e-4
    )
    mine = np.argmax(states @ coef.T + intercept, axis=1)
    assert np.mean(mine == theirs.predict(states)) > 0.995
