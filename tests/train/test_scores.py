import numpy as np
import pytest

from scfast.train.scores import classification_scores, confusion_matrix, f1_scores, wilson_interval


@pytest.mark.parametrize("n_classes", [2, 3, 5])
def test_scores_are_those_of_scikit_learn(n_classes):
    from sklearn import metrics

    rng = np.random.default_rng(n_classes)
    truth = rng.integers(n_classes, size=200)
    predicted = np.where(rng.random(200) < 0.6, truth, rng.integers(n_classes, size=200))
    confusion = confusion_matrix(truth, predicted, n_classes)
    assert np.array_equal(confusion, metrics.confusion_matrix(truth, predicted))
    scores = classification_scores(confusion, [f"c{i}" for i in range(n_classes)], majority=1)
    assert scores["accuracy"] == pytest.approx(metrics.accuracy_score(truth, predicted))
    assert scores["macro_f1"] == pytest.approx(metrics.f1_score(truth, predicted, average="macro"))
    assert list(scores["f1"].values()) == pytest.approx(metrics.f1_score(truth, predicted, average=None))
    constant = np.ones_like(truth)
    assert scores["majority_accuracy"] == pytest.approx(metrics.accuracy_score(truth, constant))
    assert scores["majority_macro_f1"] == pytest.approx(metrics.f1_score(truth, constant, average="macro"))
    low, high = scores["accuracy_interval"]
    assert low < scores["accuracy"] < high


def test_a_class_that_is_absent_has_no_f1_and_does_not_count():
    confusion = np.array([[5, 0, 0], [0, 3, 0], [0, 0, 0]])
    assert np.isnan(f1_scores(confusion)[2])
    scores = classification_scores(confusion, ["a", "b", "c"], 0)
    assert scores["macro_f1"] == 1.0
    assert scores["f1"]["c"] is None


def test_interval_of_a_perfect_score_is_not_a_point():
    low, high = wilson_interval(20, 20)
    assert high == pytest.approx(1.0)
    assert 0.8 < low < 0.9
