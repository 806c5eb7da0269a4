"""tl.prevalence: shares cell by cell, intervals and null against the plain formulas."""

from __future__ import annotations

from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import scfast
from scfast import Packing
from scfast.tl._resampling import bins_of, bootstrap, permuted
from tests.same import assert_same
from tests.toy import BACKEND, ToySource, toy_adata, toy_source

FEW = {"n_bootstrap": 50, "n_permutations": 50}
CLUSTERS = {f"G{i}": f"cluster {i % 4}" for i in range(40) if i % 5}


@pytest.fixture
def adata():
    adata = toy_adata(40)
    scfast.tl.rollout(adata, toy_source(cls=True), groupby="type", backend=BACKEND)
    return adata


def by_hand(adata, cluster, cells, key="rollout"):
    """Shares of each cell by attention and by frequency."""
    genes = np.array([CLUSTERS.get(name, "unassigned") == cluster for name in adata.var_names])
    scores = adata.layers[key].toarray().astype(np.float64)[cells]
    held = scores > 0
    return scores[:, genes].sum(1) / scores.sum(1), held[:, genes].sum(1) / held.sum(1)


def test_shares_are_those_of_each_cell(adata):
    scfast.tl.prevalence(adata, CLUSTERS, **FEW)
    table = adata.uns["prevalence"]["table"]
    assert len(table) == 3 * 5
    for _, row in table.iterrows():
        attention, frequency = by_hand(adata, row["cluster"], (adata.obs["type"] == row["group"]).to_numpy())
        np.testing.assert_allclose(row["attention"], attention.mean(), rtol=1e-12)
        np.testing.assert_allclose(row["frequency"], frequency.mean(), rtol=1e-12)
        np.testing.assert_allclose(row["difference"], (attention - frequency).mean(), rtol=1e-9)
        assert row["low"] <= row["difference"] <= row["high"]
        assert row["null_low"] <= row["null_mean"] <= row["null_high"]
    for _, part in table.groupby("group", observed=True):
        np.testing.assert_allclose(part[["attention", "frequency"]].sum(), 1)
        np.testing.assert_allclose(part["difference"].sum(), 0, atol=1e-12)
    about = adata.uns["prevalence"]["groups"]
    counts = adata.obs["type"].value_counts()
    assert dict(zip(about["group"], about["cells"], strict=True)) == counts.to_dict()


class Repeating(ToySource):
    """Has three tokens of the first gene of every cell, as a model that draws genes with replacement may."""

    def tokenize(self, counts, var, n_counts=None):
        tokens = super().tokenize(counts, var, n_counts)
        times = np.ones(tokens.n_tokens, dtype=np.int64)
        times[np.asarray(tokens.packing.starts_q)] = 3
        where = torch.from_numpy(np.repeat(np.arange(tokens.n_tokens), times))
        lengths = [n + 2 for n in tokens.lengths]
        each = {name: getattr(tokens, name)[where] for name in ("ids", "gene_index", "kind")}
        positions = torch.cat([torch.arange(n) for n in lengths])
        return replace(tokens, packing=Packing.from_lengths(lengths), positions=positions, **each)


def test_frequency_counts_tokens_where_a_gene_has_several(adata, tmp_path):
    source = Repeating([name for name in adata.var_names if name != "G3"])
    scfast.tl.rollout(adata, source, groupby="type", backend=BACKEND)
    assert adata.layers["rollout_tokens"].max() == 3
    adata.write_h5ad(tmp_path / "a.h5ad")
    adata = anndata.read_h5ad(tmp_path / "a.h5ad")
    scfast.tl.prevalence(adata, CLUSTERS, **FEW)
    scfast.tl.prevalence(adata, CLUSTERS, replicate_key="donor", key_added="between donors", **FEW)
    tokens = source.tokenize(adata.X, adata.var)
    cluster = np.array([CLUSTERS.get(name, "unassigned") for name in adata.var_names])[
        tokens.gene_index.numpy()
    ]
    cell = np.repeat(np.arange(adata.n_obs), tokens.lengths)
    for key in ("prevalence", "between donors"):
        for _, row in adata.uns[key]["table"].iterrows():
            mine = np.bincount(cell, cluster == row["cluster"]) / np.bincount(cell)
            of_group = (adata.obs["type"] == row["group"]).to_numpy()
            np.testing.assert_allclose(row["frequency"], mine[of_group].mean(), rtol=1e-12)
            assert row["low"] <= row["difference"] <= row["high"]
    adata.layers["rollout_tokens"] = adata.layers["rollout_tokens"][::-1]
    with pytest.raises(KeyError, match=r"layers\['rollout_tokens'\] does not hold the tokens of the scores"):
        scfast.tl.prevalence(adata, CLUSTERS, **FEW)
    scfast.tl.rollout(
        adata, toy_source(), groupby="type", backend=BACKEND
    )  # one token each: none are looked for
    scfast.tl.prevalence(adata, CLUSTERS, **FEW)


def test_interval_between_cells(adata):
    """The spread of the bootstrap is the standard error of the mean."""
    scfast.tl.prevalence(adata, CLUSTERS, n_bootstrap=4000, n_permutations=1)
    for _, row in adata.uns["prevalence"]["table"].iterrows():
        attention, frequency = by_hand(adata, row["cluster"], (adata.obs["type"] == row["group"]).to_numpy())
        values = attention - frequency
        error = values.std() / np.sqrt(len(values))
        np.testing.assert_allclose((row["high"] - row["low"]) / (2 * 1.96 * error), 1, atol=0.12)


def test_interval_between_replicates(adata):
    """Cells of one donor are drawn together: the bootstrap by hand, from donors' sums."""
    scfast.tl.prevalence(adata, CLUSTERS, replicate_key="donor", n_bootstrap=4000, n_permutations=1)
    row = adata.uns["prevalence"]["table"].query("group == 'T' and cluster == 'cluster 1'").iloc[0]
    cells = (adata.obs["type"] == "T").to_numpy()
    attention, frequency = by_hand(adata, "cluster 1", cells)
    donors = adata.obs["donor"][cells].to_numpy()
    sums = np.array([(attention - frequency)[donors == donor].sum() for donor in np.unique(donors)])
    sizes = np.array([np.sum(donors == donor) for donor in np.unique(donors)])
    draws = np.random.default_rng(0)
    drawn = draws.integers(len(sums), size=(4000, len(sums)))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    np.testing.assert_allclose([row["low"], row["high"]], np.quantile(means, [0.025, 0.975]), atol=2e-3)
    assert (adata.uns["prevalence"]["groups"]["replicates"] <= 3).all()


def test_one_cell_has_no_interval():
    adata = toy_adata(4)
    adata.obs["one"] = list("abcd")
    scfast.tl.rollout(adata, toy_source(), groupby="one", backend=BACKEND)
    scfast.tl.prevalence(adata, CLUSTERS, **FEW)
    assert adata.uns["prevalence"]["table"][["low", "high"]].isna().all(axis=None)


def skewed(n_genes=300, n_cells=60, favourite="cluster 2", factor=1.0):
    """Cells of ranked genes; attention falls with rank, and the favourite gets a factor more."""
    rng = np.random.default_rng(3)
    clusters = {f"G{i}": f"cluster {i % 4}" for i in range(n_genes)}
    worth = np.array([factor if clusters[f"G{i}"] == favourite else 1.0 for i in range(n_genes)])
    scores = np.zeros((n_cells, n_genes), np.float32)
    rank_sum, count = np.zeros(n_genes), np.zeros(n_genes, int)
    for row in scores:
        genes = np.flatnonzero(rng.random(n_genes) < np.linspace(0.9, 0.1, n_genes))
        order = genes[np.argsort(genes + rng.normal(0, 20, len(genes)))]
        row[order] = worth[order] / np.arange(1, len(order) + 1) ** 0.5
        row /= row.sum()
        rank_sum[order] += np.arange(1, len(order) + 1)
        count[order] += 1
    var = pd.DataFrame(index=[f"G{i}" for i in range(n_genes)])
    adata = anndata.AnnData(np.ones_like(scores), var=var)
    adata.layers["rollout"] = sparse.csr_matrix(scores)
    table = pd.DataFrame({"gene": var.index, "rank": rank_sum / count, "cells": count})
    adata.uns["rollout"] = {"table": table, "params": {}}
    return adata, clusters


def test_the_null_keeps_what_rank_and_detection_explain():
    """Genes at the top get more attention whatever they are: a program of top genes is within its null."""
    adata, _ = skewed()
    top = {f"G{i}": "top" if i < 60 else "rest" for i in range(300)}
    scfast.tl.prevalence(adata, top, n_bins=20, n_bootstrap=100, n_permutations=500)
    row = adata.uns["prevalence"]["table"].query("cluster == 'top'").iloc[0]
    assert row["low"] > 0.05  # far more attention than frequency
    assert row["null_mean"] > 0.8 * row["difference"]
    assert row["null_high"] < row["difference"] * 1.3


@pytest.mark.parametrize(("factor", "significant"), [(1.0, False), (1.5, True)])
def test_a_favourite_stands_out_of_the_null(factor, significant):
    adata, clusters = skewed(factor=factor)
    scfast.tl.prevalence(adata, clusters, n_bootstrap=100, n_permutations=400)
    row = adata.uns["prevalence"]["table"].query("cluster == 'cluster 2'").iloc[0]
    assert (row["q_value"] < 0.05) == significant
    assert (row["difference"] > row["null_high"]) == significant


def test_several_models_and_round_trip(adata, tmp_path):
    scfast.tl.rollout(adata, toy_source(cls=True, seed=5), groupby="type", key_added="other", backend=BACKEND)
    scfast.tl.prevalence(adata, CLUSTERS, keys=["rollout", "other"], **FEW)
    both = adata.uns["prevalence"]["table"]
    assert both["model"].cat.categories.tolist() == ["rollout", "other"]
    for key in ("rollout", "other"):
        alone = scfast.tl.prevalence(adata, CLUSTERS, keys=key, copy=True, **FEW).uns["prevalence"]["table"]
        mine = both[both["model"] == key].drop(columns=["model", "cluster"]).reset_index(drop=True)
        pd.testing.assert_frame_equal(mine, alone.drop(columns=["model", "cluster"]))
    path = scfast.io.write_h5ad(adata, tmp_path / "cells.h5ad")
    assert_same(scfast.io.read(path).uns["prevalence"]["table"], both)


def test_blocks_of_cells_do_not_matter(adata, monkeypatch):
    from scfast.tl import _kept_scores

    scfast.tl.prevalence(adata, CLUSTERS, n_bootstrap=2000, n_permutations=50)
    monkeypatch.setattr(_kept_scores, "CELLS_AT_ONCE", 7)
    scfast.tl.prevalence(adata, CLUSTERS, n_bootstrap=2000, n_permutations=50, key_added="blocks")
    whole, blocks = adata.uns["prevalence"]["table"], adata.uns["blocks"]["table"]
    for column in ("attention", "frequency", "difference"):
        np.testing.assert_allclose(whole[column], blocks[column], rtol=1e-12, atol=1e-15)
    width = (whole["high"] - whole["low"]).to_numpy()
    np.testing.assert_allclose(width, (blocks["high"] - blocks["low"]).to_numpy(), rtol=0.15)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"clusters": {}}, ValueError, "gives no gene a cluster"),
        ({"clusters": {"X": "a"}}, KeyError, "none of its 1 genes"),
        ({"clusters": {"G0": ""}}, ValueError, "a cluster has a name"),
        ({"clusters": {"G0": "unassigned"}}, ValueError, "other than 'unassigned'"),
        ({"keys": []}, ValueError, "at least one result"),
        ({"keys": ["rollout", "rollout"]}, ValueError, "none twice"),
        ({"keys": "received"}, KeyError, "no scores of cells named 'received'"),
        ({"n_bootstrap": 0}, ValueError, "n_bootstrap=0"),
        ({"n_bins": 2.5}, ValueError, "n_bins=2.5"),
        ({"level": 95}, ValueError, "level must lie between 0 and 1"),
        ({"replicate_key": "nowhere"}, KeyError, "replicate_key='nowhere'"),
    ],
)
def test_errors(adata, options, error, message):
    before = adata.copy()
    arguments = {"clusters": CLUSTERS, **FEW} | options
    with pytest.raises(error, match=message):
        scfast.tl.prevalence(adata, **arguments)
    assert_same(adata, before)


def test_a_group_without_scores(adata):
    cells = (adata.obs["type"] == "Mono").to_numpy()
    adata.layers["rollout"] = sparse.csr_matrix(adata.layers["rollout"].multiply(~cells[:, None]))
    adata.layers["rollout"].eliminate_zeros()
    with pytest.raises(ValueError, match=r"no scores of any cell of the groups \['Mono'\]"):
        scfast.tl.prevalence(adata, CLUSTERS, **FEW)


def test_permutations_stay_within_bins():
    rng = np.random.default_rng(0)
    bins, labels = rng.integers(0, 5, 200), np.arange(200)
    mixed = permuted(labels, bins, rng)
    assert (mixed != labels).any()
    for number in range(5):
        np.testing.assert_array_equal(np.sort(mixed[bins == number]), labels[bins == number])
    assert np.bincount(bins_of([rng.random(100), rng.random(100)], 2), minlength=4).sum() == 100


def test_the_bootstrap_over_blocks_draws_every_unit_alike():
    """The mean number of draws of each unit is one, whichever block it is in."""
    units = np.eye(10)
    blocks = [(units[:3], np.ones(3)), (units[3:4], np.ones(1)), (units[4:], np.ones(6))]
    means = bootstrap(blocks, [3, 1, 6], 20_000, np.random.default_rng(0))
    np.testing.assert_allclose(means.mean(0), 0.1, atol=0.002)
    np.testing.assert_allclose(means.std(0), np.sqrt(0.1 * 0.9 / 10), atol=0.002)
    np.testing.assert_allclose(means.sum(1), 1)


def test_top_tissues_of_real_genes(shared):
    """Scores of expression itself: liver genes have no share of blood cells, those of bone marrow have."""
    adata = anndata.read_h5ad(shared / "data" / "cells" / "pbmc_facs_mini.h5ad")
    adata.layers["rollout"] = sparse.csr_matrix(adata.X.multiply(1 / np.asarray(adata.X.sum(1)))).astype(
        np.float32
    )
    detected = np.asarray((adata.X > 0).sum(0)).ravel()
    held = detected > 0
    table = pd.DataFrame(
        {"gene": adata.var_names[held], "rank": 1000.0 - detected[held], "cells": detected[held]}
    )
    adata.uns["rollout"] = {"table": table, "params": {"groupby": "celltype"}}
    tissues = scfast.io.read_clusters(
        shared / "data" / "genes" / "hpa_gene_annotation_2019.csv.gz", "RNA TS TPM"
    )
    scfast.tl.prevalence(adata, tissues, **FEW)
    results = adata.uns["prevalence"]
    assert len(results["groups"]) == 10
    assert ((results["groups"]["assigned"] > 0.02) & (results["groups"]["assigned"] < 0.6)).all()
    mono = results["table"].query("group == 'CD14+ Monocyte'").set_index("cluster")["frequency"]
    assert mono["bone marrow"] > mono["liver"]
