"""AUPRC and early precision: worked by hand, against BEELINE's own outputs, and for scores that know nothing."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from scfast.tl._edge_scores import Ranking, score_edges
from scfast.tl._rewired import rewired


def test_worked_by_hand():
    positive = np.array([1, 0, 1, 0, 0, 1], dtype=bool)
    distinct = score_edges(np.array([6.0, 5, 4, 3, 2, 1]), positive)
    assert distinct.early_precision == pytest.approx(2 / 3)  # 6, 5, 4: two of three
    assert distinct.epr == pytest.approx(4 / 3)
    assert distinct.auprc == pytest.approx((1 / 1 + 2 / 3 + 3 / 6) / 3)


def test_ties_worked_by_hand():
    # groups: {p}, {p, n, n}, {p, n}: the cut k = 3 takes two of the three that tie, 2/3 of a hit on average
    positive = np.array([1, 1, 0, 0, 1, 0], dtype=bool)
    scores = np.array([9.0, 5, -5, 5, 0, 0])
    got = score_edges(scores, positive)
    assert got.early_precision == pytest.approx((1 + 2 / 3) / 3)
    assert got.auprc == pytest.approx((1 + 2 / 4 + 3 / 6) / 3)
    beeline = score_edges(scores, positive, "beeline")  # all four are taken, the zeros are not
    assert beeline.early_precision == pytest.approx(2 / 4)
    assert beeline.auprc == pytest.approx(((1 + 1) / 2 + (1 + 1 / 2) / 2 + (1 / 2 + 1 / 2) / 2) / 3)


def test_constant_scores_have_the_density():
    positive = np.arange(20) < 5
    got = score_edges(np.full(20, 0.3), positive)
    assert got.auprc_ratio == pytest.approx(1)
    assert got.epr == pytest.approx(1)
    assert score_edges(np.full(20, 0.3), positive, "beeline").auprc == pytest.approx((1 + 0.25) / 2)
    nothing = score_edges(np.zeros(20), positive, "beeline")
    assert nothing.early_precision == 0


@pytest.mark.parametrize("ties", [3, 50, 10**9])
def test_average_precision_is_that_of_scikit_learn(ties):
    draws = np.random.default_rng(ties)
    for _ in range(20):
        scores, positive = draws.integers(0, ties, 300) / ties, draws.random(300) < 0.1
        positive[0] = True
        assert Ranking(scores).auprc(positive) == pytest.approx(average_precision_score(positive, scores))


def test_expected_precision_is_the_mean_over_orders_of_ties():
    draws = np.random.default_rng(0)
    scores, positive = draws.integers(0, 3, 40).astype(float), np.arange(40) % 4 == 0
    broken = [Ranking(scores + 1e-6 * draws.random(40)).early_precision(positive) for _ in range(2000)]
    mean, error = np.mean(broken), np.std(broken) / np.sqrt(2000)
    assert error > 0
    assert abs(Ranking(scores).early_precision(positive) - mean) < 4 * error


@pytest.mark.parametrize("net", range(7))
def test_beeline(net, shared):
    golden = np.load(shared / "golden" / "beeline_a.npz")
    truth, edges, weights = (golden[f"net{net}/{name}"] for name in ("truth", "edges", "weights"))
    true = {(a, b) for a, b in truth.tolist() if a != b}
    genes = sorted({gene for pair in truth.tolist() for gene in pair})
    best: dict[tuple[int, int], float] = {}
    for (a, b), weight in zip(edges.tolist(), np.abs(weights), strict=True):
        if a != b:
            best[a, b] = max(best.get((a, b), 0.0), float(weight))

    def scored(sources, outside=False):
        universe = [(a, b) for a in sources for b in genes if a != b]
        extra = [pair for pair in best if pair not in set(universe)] if outside else []
        pairs = universe + extra
        scores = np.array([best.get(pair, 0.0) for pair in pairs])
        return scores, np.array([pair in true for pair in pairs]), len(universe)

    scores, positive, n = scored(genes)
    assert n == golden[f"net{net}/n_universe_all"][0]
    assert Ranking(scores).auprc(positive, "beeline") == pytest.approx(
        golden[f"net{net}/auprc"][0], abs=1e-12
    )
    for mode, sources in (("all", genes), ("tf", sorted({a for a, _ in true}))):
        # Among all pairs BEELINE ranks predictions between other genes too, as wrong ones.
        scores, positive, n = scored(sources, outside=mode == "all")
        early = Ranking(scores).early_precision(positive, "beeline")
        assert early == pytest.approx(golden[f"net{net}/early_precision_{mode}"][0], abs=1e-12)
        assert early / (positive.sum() / n) == pytest.approx(golden[f"net{net}/epr_{mode}"][0], abs=1e-12)


def test_rewired_references_keep_degrees_and_forget_the_rest():
    draws = np.random.default_rng(0)
    edges, own = draws.random((30, 60)) < 0.2, np.arange(30)
    edges[own, own] = False
    overlaps = []
    for sample in rewired(edges, own, 20, draws):
        np.testing.assert_array_equal(sample.sum(0), edges.sum(0))
        np.testing.assert_array_equal(sample.sum(1), edges.sum(1))
        assert not sample[own, own].any()
        overlaps.append((sample & edges).sum() / edges.sum())
    assert np.mean(overlaps[1:]) < 0.35  # from 1; edges by chance 0.2


def test_the_first_rewired_reference_is_as_far_away_as_any():
    draws, overlaps = np.random.default_rng(0), []
    for _ in range(6):
        weight = [draws.pareto(1.5, n) + 0.2 for n in (30, 250)]  # a few have many edges, as in references
        likely = np.outer(*weight)
        edges = draws.random(likely.shape) < np.minimum(0.06 * likely / likely.mean(), 0.9)
        samples = rewired(edges, np.full(30, -1), 12, draws)
        overlaps.append([(sample & edges).sum() / edges.sum() for sample in samples])
    first, later = np.mean(overlaps, axis=0)[0], np.mean(overlaps, axis=0)[1:]
    assert first < later.mean() + 0.03  # from 1; without a burn-in 0.1 above


def test_scores_that_know_nothing_are_worth_what_the_null_is():
    draws = np.random.default_rng(3)
    edges = draws.random((40, 200)) < 0.05
    ratios = []
    for _ in range(25):
        scores = draws.random(edges.size)
        null = [score_edges(scores, x.ravel()).auprc for x in rewired(edges, np.full(40, -1), 5, draws)]
        ratios.append(score_edges(scores, edges.ravel()).auprc / np.mean(null))
    assert abs(np.mean(ratios) - 1) < 3 * np.std(ratios) / np.sqrt(len(ratios))
