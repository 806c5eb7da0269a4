"""Perturbations that no cell was trained on: splits, pairs, scores beside baselines, resuming, refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from scipy import sparse

import scfast
from scfast.cli import cli

QUICK = {
    "perturbation": "condition", "within": "line", "genes": "all", "epochs": 2, "batch_tokens": 400, "share": 1.0,
    "precision": "float32", "progress": False,
}  # fmt: skip
#: Single perturbations and the gene that each raises; A and B are genes, X and Y are not.
EFFECTS = {"A": 5, "B": 6, "X": 7, "Y": 8}
METHODS = [
    "model", "MLP", "sum of single effects", "mean of training perturbations", "no change", "half of the cells",
    "half of the cells, halved controls",
]  # fmt: skip


@pytest.fixture
def adata() -> ad.AnnData:
    """Two lines; every perturbation raises a gene of its own threefold, and combinations raise both."""
    random = np.random.default_rng(0)
    rows = [
        (line, name)
        for line in ("one", "two")
        for name in ("control", "A", "B", "X", "Y", "A+X", "Y+X", "A+B")
        if (line, name) not in (("two", "A+B"), ("two", "Y"))
        for _ in range(8)
    ]
    rates = np.ones((len(rows), 12))
    rates[:, 9] = [4.0 if line == "two" else 1.0 for line, _ in rows]
    for cell, (_, name) in enumerate(rows):
        rates[cell, [EFFECTS[part] for part in name.split("+") if part in EFFECTS]] *= 6
    adata = ad.AnnData(sparse.csr_matrix(random.poisson(rates).astype(np.float32)))
    adata.var_names = ["A", "B", *(f"gene{number}" for number in range(2, 12))]
    adata.obs = pd.DataFrame(rows, columns=["line", "condition"], index=adata.obs_names)
    return adata


def test_combinations_are_predicted_where_their_parts_were_applied_alone(
    adata: ad.AnnData, tmp_path: Path
) -> None:
    log = scfast.tl.train_perturbation(adata, tmp_path, **QUICK)
    assert set(log["settings"]["held_out"]) == {"A+X", "Y+X", "A+B"}
    assert log["settings"]["forget"] == 0
    held_out = 3 * 8 + 2 * 8
    assert (log["test_cells"], log["train_cells"] + log["validation_cells"]) == (
        held_out,
        adata.n_obs - held_out,
    )
    scores = pd.DataFrame(log["scores"])
    # line two lacks Y alone
    scored = {("A+X", "one"), ("A+X", "two"), ("Y+X", "one"), ("A+B", "one")}
    assert set(zip(scores["perturbation"], scores["context"], strict=True)) == scored
    assert list(scores["method"].unique()) == METHODS
    of = scores.set_index(["perturbation", "context", "method"])
    assert of.loc[("A+X", "one", "sum of single effects"), "pearson_change"] > 0.6
    assert of["pearson_change"].isna()[of.index.get_level_values("method") == "no change"].all()
    genes = pd.read_csv(tmp_path / "predictions.csv")
    assert len(genes) == 4 * 12
    one = genes[(genes["perturbation"] == "A+X") & (genes["context"] == "one")].set_index("gene")
    counts = adata.X.toarray()
    levels = np.log1p(counts / counts.sum(1, keepdims=True) * counts.sum(1).mean())
    line, name = (adata.obs[column].to_numpy() for column in ("line", "condition"))
    mean = {n: levels[(line == "one") & (name == n)].mean(0) for n in np.unique(name)}
    np.testing.assert_allclose(one["measured"], mean["A+X"], rtol=1e-5)
    np.testing.assert_allclose(one["no change"], mean["control"], rtol=1e-5)
    np.testing.assert_allclose(
        one["sum of single effects"], mean["A"] + mean["X"] - mean["control"], rtol=1e-4
    )
    trained = np.mean([mean[n] for n in "ABXY"], axis=0)
    np.testing.assert_allclose(one["mean of training perturbations"], trained, rtol=1e-5)
    found = of.loc[("A+X", "one", "MLP"), ["pearson", "pearson_change"]].to_numpy(float)
    change = one["measured"] - one["control"]
    by_hand = [
        np.corrcoef(one["MLP"], one["measured"])[0, 1],
        np.corrcoef(one["MLP"] - one["control"], change)[0, 1],
    ]
    np.testing.assert_allclose(found, by_hand, rtol=1e-3)


def test_unseen_perturbations_are_told_by_their_genes(adata: ad.AnnData, tmp_path: Path) -> None:
    log = scfast.tl.train_perturbation(adata, tmp_path, held_out="perturbations", **{**QUICK, "share": 0.5})
    (target,) = {"A", "B"} & set(log["settings"]["held_out"])
    assert set(log["settings"]["held_out"]) == {target, "A+B", *(["A+X"] if target == "A" else [])}
    assert log["settings"]["forget"] == 0.5
    model = scfast.models.load("bioformers", tmp_path)
    assert set(model.inputs.conditions) == {"A", "B", "X", "Y"} - {target}
    unperturbed = adata[adata.obs["condition"] == "control"].copy()
    table = scfast.tl.predict_perturbation(unperturbed, tmp_path, ["control", target, f"X+{target}"])
    assert table.shape == (12, 3)
    assert list(table.index) == list(adata.var_names)
    assert (table[target] != table["control"]).any()
    with pytest.raises(
        ValueError, match=r"'STAT1\+X': the perturbation 'STAT1' was never seen in training, and its gene"
    ):
        scfast.tl.predict_perturbation(unperturbed, tmp_path, "STAT1+X")
    with pytest.raises(FileNotFoundError, match=r"has no perturbation\.json"):
        scfast.tl.predict_perturbation(unperturbed, tmp_path / "other", "A")


def test_predictions_of_the_folder_are_those_of_training(adata: ad.AnnData, tmp_path: Path) -> None:
    scfast.tl.train_perturbation(adata, tmp_path, **{**QUICK, "held_out": ["Y+X"]})
    genes = pd.read_csv(tmp_path / "predictions.csv")
    unperturbed = adata[(adata.obs["condition"] == "control") & (adata.obs["line"] == "one")].copy()
    unperturbed.obs["n_counts"] = np.asarray(unperturbed.X.sum(1)).ravel()
    again = scfast.tl.predict_perturbation(unperturbed, tmp_path, "X+Y")["X+Y"]
    expected = genes.loc[genes["context"] == "one", "model"]
    np.testing.assert_allclose(again, expected, rtol=1e-5)
    with pytest.raises(ValueError, match="has not learned to tell perturbations by their genes alone"):
        scfast.tl.predict_perturbation(unperturbed, tmp_path, "gene4")


def test_the_summary_by_hand(adata: ad.AnnData, tmp_path: Path) -> None:
    logs = [
        scfast.tl.train_perturbation(adata, tmp_path / str(seed), seed=seed, **QUICK) for seed in range(2)
    ]
    summary = scfast.tl.perturbation_summary(logs).set_index(["method", "metric"])
    assert len(summary) == len(METHODS) * 4
    frames = [pd.DataFrame(log["scores"]) for log in logs]
    values = np.array([frame.loc[frame["method"] == "model", "pearson"] for frame in frames])  # [seeds, 4]
    row = summary.loc[("model", "pearson")]
    assert row["mean"] == pytest.approx(values.mean(), rel=1e-6)
    half = 3.182446 * values.mean(0).std(ddof=1) / 2  # t of 3 degrees, 4 perturbations
    assert (row["low"], row["high"]) == pytest.approx((values.mean() - half, values.mean() + half), rel=1e-5)
    half = 12.706205 * values.mean(1).std(ddof=1) / 2**0.5  # t of 1 degree, 2 seeds
    assert row["seed_high"] == pytest.approx(values.mean() + half, rel=1e-5)
    same = np.array([frame.loc[frame["method"] == "no change", "pearson"] for frame in frames])
    assert summary.loc[("no change", "pearson"), "ahead"] == pytest.approx((values - same).mean(), abs=1e-9)
    assert np.isnan(summary.loc[("no change", "pearson_change"), "mean"])
    with pytest.raises(ValueError, match=r"the logs have the seeds \[0, 0\]"):
        scfast.tl.perturbation_summary([logs[0], logs[0]])
    with pytest.raises(ValueError, match="there are no scores to sum up"):
        scfast.tl.perturbation_summary([])
    axes = scfast.pl.perturbation(logs, save=tmp_path / "scores.png")
    assert axes.get_xlabel() == "Pearson of change"
    assert (tmp_path / "scores.png").exists()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"perturbation": "guide"}, KeyError, "perturbation='guide' is not in adata.obs"),
        ({"within": ["line", "dose"]}, KeyError, "within='dose' is not in adata.obs"),
        ({"control": "ctrl"}, ValueError, "no cell of adata.obs\\['condition'\\] is 'ctrl'"),
        (
            {"held_out": "cells"},
            ValueError,
            "held_out='cells' is unknown; use 'combinations' or 'perturbations'",
        ),
        ({"held_out": ["A+Z"]}, ValueError, "held_out names 'A\\+Z', which no cell has"),
        ({"held_out": []}, ValueError, "there is nothing to predict"),
        ({"held_out": ["Y", "Y+X"]}, ValueError, "'Y' is held out, and 'Y' is then never seen in training"),
        ({"separator": "&"}, ValueError, "no combination has parts that were all applied alone"),
        ({"held_out": "perturbations", "genes": ["gene2"]}, ValueError, "none of the 4 perturbed genes"),
        ({"share": 0.0}, ValueError, "share must lie above 0"),
        ({"epochs": 0}, ValueError, "epochs must be positive"),
        ({"preset": "huge"}, ValueError, "preset='huge' is unknown"),
    ],
)
def test_bad_input_is_named(
    adata: ad.AnnData, tmp_path: Path, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        scfast.tl.train_perturbation(adata, tmp_path, **{**QUICK, **change})


def test_contexts_need_controls_and_cells_a_name(adata: ad.AnnData, tmp_path: Path) -> None:
    lacking = adata[~((adata.obs["line"] == "two") & (adata.obs["condition"] == "control"))].copy()
    with pytest.raises(ValueError, match="1 of 2 contexts, such as 'two', have no cell that is 'control'"):
        scfast.tl.train_perturbation(lacking, tmp_path, **QUICK)
    adata.obs.loc[adata.obs_names[:3], "condition"] = None
    with pytest.raises(ValueError, match=r"adata.obs\['condition'\] is empty for 3 cells"):
        scfast.tl.train_perturbation(adata, tmp_path, **QUICK)


def test_the_command_trains(adata: ad.AnnData, tmp_path: Path) -> None:
    adata.write_h5ad(tmp_path / "cells.h5ad")
    arguments = [
        "--perturbation",
        "condition",
        "--within",
        "line",
        "--genes",
        "all",
        "--epochs",
        "1",
        "--json",
    ]
    folder = tmp_path / "model"
    done = CliRunner().invoke(
        cli, ["train", "perturbation", str(tmp_path / "cells.h5ad"), "-o", str(folder), *arguments]
    )
    assert done.exit_code == 0, done.output
    last = json.loads(done.stdout.splitlines()[-1])
    assert set(last["scores"]) == set(METHODS)
    assert (folder / "scores.csv").exists()
