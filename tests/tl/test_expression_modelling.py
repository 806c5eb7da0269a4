"""Scores of a trained model and of baselines, by hand and beside the log of the training."""

from __future__ import annotations

import json
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

import scfast
from scfast.tl._model_verdict import model_verdict
from scfast.tl.expression_modelling import share
from scfast.train.bioformers import SCORES

OURS = ["BioFormers", "BioFormers, expected bin"]
BLIND = ["the gene's bin frequencies", "the gene's mean"]
LINEAR = ["linear regression", "linear regression under masks"]


@pytest.fixture(scope="module")
def adata() -> ad.AnnData:
    """200 cells of 24 genes: half of the genes in half of the cells, by a rate of each cell's own."""
    random = np.random.default_rng(0)
    half = random.integers(0, 2, (200, 1)) == (np.arange(24) < 12)
    counts = random.poisson(np.where(half, random.gamma(3.0, 1.5, (200, 1)), 0.05))
    adata = ad.AnnData(sparse.csr_matrix(counts.astype(np.float32)))
    adata.var_names = [f"gene{i}" for i in range(24)]
    return adata


@pytest.fixture(scope="module")
def folder(adata: ad.AnnData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    scfast.tl.train_bioformers(
        adata, folder, preset="tiny", genes="all", normalise=False, steps=10, batch_tokens=800,
        held_out=0.2, mask=0.2, progress=False,
    )  # fmt: skip
    return folder


def test_scores_beside_the_log(adata: ad.AnnData, folder: Path) -> None:
    found = scfast.tl.expression_modelling(adata, folder, correlated=10)
    assert set(found.index) == {*OURS, *BLIND, *LINEAR}
    log = json.loads((folder / "training_log.json").read_text())
    for score in ("loss", "sensitivity", "hel_sensitivity", "npv"):
        logged = log["history"][-1][f"held_out_{score}"]
        assert found.loc["BioFormers", score] == pytest.approx(logged, rel=1e-6)
        assert found.loc[BLIND[0], score] == pytest.approx(log["baseline"][score], rel=1e-9)
    assert found.loc[LINEAR, "loss"].isna().all()
    assert (found.loc[LINEAR, "accuracy"] > found.loc["the gene's mean", "accuracy"] + 0.1).all()
    assert (found.loc[LINEAR, "accuracy_se"] > 0).all()
    alone = scfast.tl.expression_modelling(adata, folder, correlated=None)
    assert alone.equals(found.loc[OURS])


def test_the_verdict_stands_beside_regression(adata: ad.AnnData, folder: Path) -> None:
    scfast.tl.expression_modelling(adata, folder, correlated=None)
    assert "was not compared with the linear baseline" in model_verdict(folder)
    found = scfast.tl.expression_modelling(adata, folder, correlated=10)
    assert "does not beat the linear baseline on held-out cells (sensitivity" in model_verdict(folder)
    best = found.loc[LINEAR, ["sensitivity", "accuracy"]].max().to_numpy()
    for accuracy, says in ((0.01, "beats the linear baseline"), (-0.01, "does not beat the linear baseline")):
        found.loc[OURS[1], ["sensitivity", "accuracy"]] = np.add(best, (0.01, accuracy))
        found.to_csv(folder / SCORES)
        assert says in model_verdict(folder)


def test_bad_input_is_named(adata: ad.AnnData, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"give the folder of a finished scfast.tl.train_bioformers"):
        scfast.tl.expression_modelling(adata, tmp_path)
    with pytest.raises(ValueError, match="was trained on other cells than the 199 given"):
        scfast.tl.expression_modelling(adata[1:], folder)
    with pytest.raises(ValueError, match="correlated=24 genes are asked for beside each of 24: give 1 to 23"):
        scfast.tl.expression_modelling(adata, folder, correlated=24)


def test_a_share_and_its_error_by_hand() -> None:
    right, among = np.array([1, 0, 1, 1, 1], bool), np.array([1, 1, 1, 1, 0], bool)
    found, error = share(right, among, np.array([0, 0, 1, 2, 3]))
    assert found == 3 / 4  # cells: 1 of 2, 1 of 1, 1 of 1, none asked
    assert error == pytest.approx((3 / 2 * (0.5**2 + 0.25**2 + 0.25**2)) ** 0.5 / 4)
    assert np.isnan(share(right, among, np.zeros(5, int))[1])
    assert np.isnan(share(right, np.zeros(5, bool), np.zeros(5, int))[0])
