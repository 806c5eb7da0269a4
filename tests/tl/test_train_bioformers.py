from __future__ import annotations

import json
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from scipy import sparse

import scfast
from scfast.cli import cli
from scfast.models.bioformers import BioformersSource

QUICK = {"steps": 3, "batch_tokens": 400, "progress": False}


@pytest.fixture
def adata() -> ad.AnnData:
    """40 cells of 25 genes; gene 4 is never expressed, genes 20 to 24 vary more than the others."""
    random = np.random.default_rng(0)
    counts = random.poisson(0.8, (40, 25)) * np.where(np.arange(25) < 20, 1, random.integers(0, 12, (40, 25)))
    counts[:, 4] = 0
    adata = ad.AnnData(sparse.csr_matrix(counts.astype(np.float32)))
    adata.var_names = [f"gene{i}" for i in range(25)]
    adata.obs["kind"] = ["a", "b"] * 20
    return adata


def model_in(folder: Path) -> BioformersSource:
    model = scfast.models.load("bioformers", folder)
    assert isinstance(model, BioformersSource)
    return model


def test_the_folder_is_read_back_and_analyses_run_on_it(adata: ad.AnnData, tmp_path: Path) -> None:
    log = scfast.tl.train_bioformers(adata, tmp_path, genes="all", **QUICK)
    assert log["finished"]
    assert log["settings"]["warmup"] == 0.1
    model = model_in(tmp_path)
    assert model.genes == [f"gene{i}" for i in range(25) if i != 4]
    assert (model.n_layers, model.n_heads, model.max_tokens) == (4, 4, 25)
    assert model.inputs.binning.target == pytest.approx(float(adata.X.sum(1).mean()))
    assert (
        {"loss", "sensitivity"} <= set(log["baseline"]) <= {"loss", "sensitivity", "npv", "hel_sensitivity"}
    )
    assert {"held_out_loss", "held_out_sensitivity", "train_loss"} <= set(log["history"][-1])
    again = scfast.tl.train_bioformers(adata, tmp_path, genes="all", **QUICK)
    assert again["history"] == log["history"]
    scfast.tl.rollout(adata, model, groupby="kind")


def test_the_genes_that_vary_most(adata: ad.AnnData, tmp_path: Path) -> None:
    scfast.tl.train_bioformers(adata, tmp_path, genes="hvg:5", **QUICK)
    levels = adata.X.toarray() * (adata.X.sum() / 40 / np.asarray(adata.X.sum(1)))
    most = np.argsort(-np.log1p(levels).var(0))[:5]
    assert model_in(tmp_path).genes == [f"gene{i}" for i in np.sort(most)]


def test_options_reach_the_model(adata: ad.AnnData, tmp_path: Path) -> None:
    adata.layers["counts"], adata.X = adata.X, sparse.csr_matrix(-np.ones(adata.shape))
    log = scfast.tl.train_bioformers(
        adata, tmp_path, genes=["gene7", "gene2"], binning="segment", n_bins=6, architecture="decoder",
        value_embedding="table", counts_layer="counts", mask=0.5, nonzero=1.0, **QUICK,
    )  # fmt: skip
    model = model_in(tmp_path)
    assert model.genes == ["gene7", "gene2"]
    assert (model.inputs.binning.mode, model.inputs.binning.n_bins) == ("segment", 6)
    assert model.network.shape.causal
    assert model.network.shape.value_embedding == "table"
    assert "hel_sensitivity" not in log["baseline"]


def test_the_seed_decides_the_result(adata: ad.AnnData, tmp_path: Path) -> None:
    for name, seed in (("one", 3), ("two", 3), ("three", 4)):
        scfast.tl.train_bioformers(adata, tmp_path / name, seed=seed, **QUICK)
    one, two, three = (model_in(tmp_path / name).network.tensors for name in ("one", "two", "three"))
    assert torch.equal(one["embeddings.gene.weight"], two["embeddings.gene.weight"])
    assert not torch.equal(one["embeddings.gene.weight"], three["embeddings.gene.weight"])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"genes": "top"}, ValueError, "genes='top' is unknown; use 'hvg:N', 'all'"),
        ({"genes": "hvg:0"}, ValueError, "genes='hvg:0' is unknown"),
        ({"genes": ["gene1", "nope"]}, KeyError, "1 of 2 genes are not in adata.var_names, such as 'nope'"),
        ({"genes": ["gene1", "gene1"]}, ValueError, "genes holds 1 names more than once"),
        ({"mask": 0.0}, ValueError, "mask must lie between 0 and 1"),
        ({"nonzero": 1.5}, ValueError, "nonzero must lie between 0 and 1; got 1.5"),
        ({"epochs": 2}, ValueError, "give steps=3 or epochs=2, not both"),
        ({"lr": -1.0}, ValueError, "lr must be positive; got -1.0"),
        ({"accumulate": 0}, ValueError, "accumulate must be positive; got 0"),
        ({"patience": 0}, ValueError, "patience must be positive; got 0"),
        ({"train_share": 0.0}, ValueError, "train_share must lie above 0, up to 1; got 0.0"),
        ({"precision": "fp8"}, ValueError, "precision='fp8' is unknown"),
        ({"device": "tpu"}, ValueError, "device='tpu' is no device that models run on"),
        ({"preset": "huge"}, ValueError, "preset='huge' is unknown"),
        ({"binning": "log"}, ValueError, "mode='log' is unknown"),
        ({"n_bins": 5}, ValueError, "cutoff must lie between 1 and n_bins - 1 = 4"),
        ({"architecture": "both"}, ValueError, "architecture='both' is unknown"),
        ({"counts_layer": "raw"}, KeyError, "counts_layer='raw' is not in adata.layers"),
    ],
)
def test_bad_input_is_named(
    adata: ad.AnnData, tmp_path: Path, change: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        scfast.tl.train_bioformers(adata, tmp_path, **{**QUICK, **change})


def test_the_command_trains(adata: ad.AnnData, tmp_path: Path) -> None:
    adata.write_h5ad(tmp_path / "cells.h5ad")
    arguments = ["--steps", "3", "--batch-tokens", "400", "--genes", "all", "--decoder", "--json"]
    folder = tmp_path / "model"
    done = CliRunner().invoke(
        cli, ["train", "bioformers", str(tmp_path / "cells.h5ad"), "-o", str(folder), *arguments]
    )
    assert done.exit_code == 0, done.output
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["steps"] == 3
    assert model_in(folder).network.shape.causal
