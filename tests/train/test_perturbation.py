"""Metrics against SciPy and by hand, pairs within contexts, worths of bins, and runs that were killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from scipy import sparse, stats

import scfast
from scfast.models.bioformers import create
from scfast.models.bioformers_tokens import Binning
from scfast.train.perturbation import SHRINKAGE, level_table, predict
from scfast.train.perturbation_baselines import Perceptron
from scfast.train.perturbation_scores import METRICS, correlations, halves, most_changed, pearson, summarise
from scfast.train.perturbed_cells import Design, PerturbedCells, choose, parts_of
from scfast.train.split import TEST, TRAIN, VALIDATION

GENES = ["A", "B", "C", "D"]
NAMES, PARTS = ("control", "A", "X", "A+X"), ((), ("A",), ("X",), ("A", "X"))


def design_of(n: int = 6) -> Design:
    """n cells of each perturbation in each of two contexts."""
    perturbation, context = np.divmod(np.arange(8).repeat(n), 2)
    return Design(NAMES, PARTS, ("one", "two"), perturbation, context)


def cells_of(seed: int = 0) -> tuple[Any, PerturbedCells]:
    design = design_of()
    counts = np.random.default_rng(seed).poisson(1.0, (len(design.context), len(GENES)))
    counts[:, 3] += 20 * design.context  # the contexts can be told apart
    source = create(
        GENES, preset="tiny", binning=Binning("value", 12), conditions=["A", "X"], mark_targets=True
    )
    tokens = source.tokenize(sparse.csr_matrix(counts), pd.DataFrame(index=GENES))
    part = np.where(
        design.perturbation == 3, TEST, np.where(np.arange(len(counts)) % 3 == 0, VALIDATION, TRAIN)
    )
    rows, marked = ((), (1,), (2,), (1, 2)), ((), (1,), (), (1,))
    levels = sparse.csr_matrix(np.log1p(counts.astype(np.float64)))
    return source, PerturbedCells(tokens, levels, design, part, rows, marked, 3)


def test_the_genes_that_change_most_are_those_of_welch() -> None:
    random = np.random.default_rng(0)
    one, two = random.poisson(2.0, (15, 30)).astype(float), random.poisson(2.6, (40, 30)).astype(float)
    one[:, 7] = two[:, 7] = 1.0  # the same in all cells
    t = np.zeros(30)
    others = np.arange(30) != 7
    t[others] = np.abs(stats.ttest_ind(one[:, others], two[:, others], equal_var=False).statistic)
    expected = np.argsort(-t, kind="stable")
    assert most_changed(one, two, 30).tolist() == expected.tolist()
    assert most_changed(one, two).tolist() == expected[:20].tolist()
    assert most_changed(one, two, 30)[-1] == 7


def test_correlations_are_those_of_scipy() -> None:
    predicted, measured, control = np.random.default_rng(1).normal(size=(3, 25))
    top = np.array([3, 8, 1, 20])
    found = correlations(predicted, measured, control, top)
    change, wanted = predicted - control, measured - control
    pairs = (
        (predicted, measured),
        (change, wanted),
        (predicted[top], measured[top]),
        (change[top], wanted[top]),
    )
    for metric, (x, y) in zip(METRICS, pairs, strict=True):
        assert found[metric] == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-12)
    unchanged = correlations(control, measured, control, top)
    assert np.isnan([unchanged["pearson_change"], unchanged["pearson_change_top"]]).all()
    assert pearson(np.array([1.0, 2]), np.array([5.0, 4])) == pytest.approx(-1)


def test_shared_controls_make_changes_of_nothing_alike() -> None:
    """Perturbed and control cells of one kind: with few controls their noise is in both changes."""
    random = np.random.default_rng(0)
    perturbed, control = random.normal(size=(200, 300)), random.normal(size=(20, 300))
    found = halves(perturbed, control, np.arange(20), random)
    # Variances of means: 1/100 of a half, 1/20 of the controls, which both changes share. Over 300 genes a correlation
    # has a standard error of .02 here, and of .06 where there is none.
    assert found["half of the cells"]["pearson_change"] == pytest.approx(0.05 / 0.06, abs=0.05)
    apart = found["half of the cells, halved controls"]
    assert abs(apart["pearson_change"]) < 0.15
    assert apart["pearson"] == pytest.approx(found["half of the cells"]["pearson"], abs=0.1)
    assert np.isnan(halves(perturbed[:1], control, np.arange(20), random)["half of the cells"]["pearson"])


def test_a_summary_of_hand_made_scores() -> None:
    scores = pd.DataFrame(
        [
            (0, "P", "c", "model", 0.5), (1, "P", "c", "model", 0.7), (0, "Q", "c", "model", 0.2),
            (1, "Q", "c", "model", 0.4), (0, "P", "c", "sum", 0.5), (1, "P", "c", "sum", 0.5),
            (0, "Q", "c", "sum", np.nan), (1, "Q", "c", "sum", np.nan),
        ],
        columns=["seed", "perturbation", "context", "method", "pearson"],
    ).assign(**dict.fromkeys(METRICS[1:], 0.0))  # fmt: skip
    found = summarise(scores).set_index(["method", "metric"])
    model, other = found.loc[("model", "pearson")], found.loc[("sum", "pearson")]
    assert model["mean"] == pytest.approx(0.45)  # of 0.6 and 0.3
    half = stats.t.ppf(0.975, 1) * 0.15
    assert (model["low"], model["high"]) == pytest.approx((0.45 - half, 0.45 + half))
    half = stats.t.ppf(0.975, 1) * 0.1  # seeds: 0.35 and 0.55
    assert (model["seed_low"], model["seed_high"]) == pytest.approx((0.45 - half, 0.45 + half))
    assert (other["perturbations"], other["ahead"]) == (1, pytest.approx(0.1))
    assert np.isnan(other["low"])


def test_controls_come_from_the_same_context_and_are_trained_on() -> None:
    _, cells = cells_of()
    rows, draws = np.arange(len(cells.part)), np.random.default_rng(0)
    drawn = np.stack([cells.pair(rows, draws) for _ in range(300)])
    assert (cells.design.context[drawn] == cells.design.context[rows]).all()
    assert (cells.design.perturbation[drawn] == 0).all()
    assert set(drawn.ravel()) == set(np.concatenate([cells.controls(c, trained=True) for c in (0, 1)]))
    assert (cells.part[drawn] == TRAIN).all()


def test_examples_by_hand() -> None:
    _, cells = cells_of()
    rows = np.array([47, 13, 30, 2])  # A+X, A, X, control
    batch = cells.examples(rows, np.random.default_rng(0))
    assert batch.tokens.n_cells == 4
    external = batch.tokens.external.reshape(4, 5, 3)
    ids = batch.tokens.ids.reshape(4, 5)
    for number, of_cell in enumerate(([1, 2], [1, -1], [2, -1], [0, -1])):
        assert external[number, :, :2].tolist() == [of_cell] * 5
        marks = external[number, :, 2] == 3
        assert marks.tolist() == [number < 2 and gene == 1 for gene in ids[number].tolist()]
    counts = np.expm1(cells.levels[rows].toarray()).round()
    expected = np.array(
        [counts[number, gene - 1] for number, cell in enumerate(ids) for gene in cell if gene > 0]
    )
    small = expected <= 8  # bins of counts up to the cut-off are these counts
    assert np.array_equal(batch.targets.numpy()[small], expected[small])
    forgotten = cells.forgotten(np.arange(48), 1.0, np.random.default_rng(0))
    assert set(cells.design.perturbation[forgotten]) == {1}  # every part is marked: A, not A+X
    dropped = cells.examples(np.array([13]), np.random.default_rng(0), forget=1.0).tokens
    assert set(map(tuple, dropped.external.tolist())) == {(0, -1), (0, 3)}


def test_what_bins_are_worth() -> None:
    _, cells = cells_of()
    levels, learned = level_table(cells, 12), cells.part != TEST
    assert levels.shape == (5, 12)
    assert (levels[:, 0] == 0).all()
    assert (np.diff(levels[1]) >= 0).all()
    entries = np.array([(cells.levels[learned].toarray()[:, gene] == np.log1p(2)).sum() for gene in range(4)])
    assert levels[1:, 2] == pytest.approx(
        (entries * np.log(3) + SHRINKAGE * np.log(3)) / (entries + SHRINKAGE)
    )


def test_batches_do_not_change_a_prediction() -> None:
    source, cells = cells_of()
    levels, controls = level_table(cells, 12), cells.tokens.select(cells.controls(0))
    whole = predict(source, controls, [1, 2], [1], levels)
    assert whole.shape == (4,)
    np.testing.assert_allclose(
        predict(source, controls, [1, 2], [1], levels, batch_tokens=11), whole, rtol=1e-6
    )
    assert not np.allclose(predict(source, controls, [], [], levels), whole, rtol=1e-3)


def test_the_perceptron_changes_nothing_for_what_it_never_saw() -> None:
    _, cells = cells_of()
    fresh = Perceptron(cells, 0, 0.0)
    controls = cells.controls(1)
    np.testing.assert_array_equal(fresh.predict(0, controls), fresh.predict(3, controls))
    trained = fresh.fit()
    assert np.abs(trained.predict(0, controls) - cells.levels[controls].toarray().mean(0)).max() < 0.7
    assert not np.array_equal(trained.predict(0, controls), trained.predict(1, controls))


@pytest.mark.parametrize("seed", range(3))
def test_held_out_cells_are_in_no_other_part(seed: int) -> None:
    design, draws = design_of(), np.random.default_rng(seed)
    split = choose(design, GENES, "combinations", 1.0, draws)
    assert (split.held_out, split.scored, split.seen) == ((3,), ((3, 0), (3, 1)), ("A", "X"))
    part = parts_of(design, split, 0.34, draws)
    assert set(design.perturbation[part == TEST]) == {3}
    assert (part[design.perturbation == 3] == TEST).all()
    for number in range(3):
        for context in (0, 1):
            assert np.bincount(part[design.rows(number, context)]).tolist() == [4, 2]
    assert not split.unseen(design)
    named = choose(design, GENES, ["A", "A+X"], 1.0, draws)
    assert named.unseen(design)
    assert named.seen == ("X",)


def test_a_killed_run_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    adata = ad.AnnData(sparse.csr_matrix(random.poisson(1.0, (48, 4)).astype(np.float32)))
    adata.var_names = GENES
    adata.obs["condition"] = np.array(NAMES)[design_of().perturbation]
    options: dict[str, Any] = {
        "perturbation": "condition", "share": 1.0, "genes": "all", "epochs": 4, "batch_tokens": 60, "patience": 2,
        "precision": "float32",
    }  # fmt: skip

    def kill(entry: dict[str, float]) -> None:
        if entry["epoch"] == 2:
            raise KeyboardInterrupt

    whole = scfast.tl.train_perturbation(adata, tmp_path / "whole", progress=False, **options)
    with pytest.raises(KeyboardInterrupt):
        scfast.tl.train_perturbation(adata, tmp_path / "killed", progress=kill, **options)
    with pytest.raises(ValueError, match="is of another model: it differs in embeddings/gene/weight"):
        scfast.tl.train_perturbation(
            adata, tmp_path / "killed", progress=False, **{**options, "genes": ["A", "B"]}
        )
    resumed = scfast.tl.train_perturbation(adata, tmp_path / "killed", progress=False, **options)
    again = scfast.tl.train_perturbation(adata, tmp_path / "killed", progress=False, **options)
    assert again["scores"] == resumed["scores"] == whole["scores"]
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    losses = [[entry["validation_loss"] for entry in log["history"]] for log in (whole, resumed)]
    assert losses[0] == losses[1]
    with pytest.raises(ValueError, match="differs in patience"):
        scfast.tl.train_perturbation(adata, tmp_path / "killed", progress=False, **{**options, "patience": 3})
