"""tl.grn_score: what networks are worth, on universes small enough to count."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scfast
from scfast.tl._edge_baselines import PairMoments
from tests.same import assert_same

GENES = [f"G{i}" for i in range(40)]


def cells(seed=0, n=120):
    draws = np.random.default_rng(seed)
    depth = draws.gamma(3, 1, (n, 1))
    counts = draws.poisson(depth * (0.3 + draws.gamma(1, 1, len(GENES))))
    obs = pd.DataFrame({"n_counts": counts.sum(1)}, index=[f"c{i}" for i in range(n)])
    return anndata.AnnData(sparse.csr_matrix(counts.astype(np.float32)), obs, pd.DataFrame(index=GENES))


def truth(seed=1, share=0.15):
    edges = np.random.default_rng(seed).random((8, 40)) < share
    np.fill_diagonal(edges, False)
    return {GENES[i]: [GENES[j] for j in np.flatnonzero(row)] for i, row in enumerate(edges)}


def scored(adata, reference, **options):
    scfast.tl.grn_score(adata, reference, key="mine", n_null=40, **options)
    return adata.uns["grn_score"]


def with_network(matrix, **options):
    adata = cells(**options)
    adata.varp["mine"] = sparse.csr_matrix(matrix)
    return adata


def test_scores_that_know_nothing_are_at_one():
    inside, beyond = 0, 0
    for seed in range(8):
        adata = with_network(np.random.default_rng(seed).random((40, 40)))
        uns = scored(adata, truth(), seed=seed)
        row = uns["table"].iloc[0]
        assert row["score"] == "network"
        for name in ("auprc_ratio", "epr"):
            inside += row[f"null_{name}_low"] <= 1 <= row[f"null_{name}_high"]
            beyond += row[f"p_{name.removesuffix('_ratio')}"] < 0.05
    assert inside >= 14  # of 16
    assert beyond <= 3


def test_a_perfect_network_and_what_it_is_compared_with():
    reference = truth()
    matrix = np.zeros((40, 40))
    for source, targets in reference.items():
        matrix[GENES.index(source), [GENES.index(gene) for gene in targets]] = 1
    uns = scored(with_network(matrix), reference)
    row, params = uns["table"].iloc[0], uns["params"]
    assert row["auprc"] == row["early_precision"] == 1
    assert row["p_auprc"] == pytest.approx(1 / 41)
    assert row["epr"] == pytest.approx(params["pairs"] / params["edges"])
    assert row["density"] == params["density"]
    assert params["intervals"] == "regulators"
    assert params["blocks"] == 8
    assert uns["differences"]["adds"].all()
    assert "is better than coexpression and detection" in uns["verdict"][0]
    assert set(uns["curves"]["score"].unique()) == {"network", "coexpression", "detection"}


def test_co_expression_as_a_network_adds_nothing_to_itself():
    adata = cells()
    everything = np.arange(40)
    adata.varp["mine"] = PairMoments(adata.X, everything, everything).coexpression()
    uns = scored(adata, truth())
    table = uns["table"].set_index("score")
    assert table.loc["network", "auprc"] == pytest.approx(table.loc["coexpression", "auprc"])
    assert "adds nothing that is sure beyond coexpression" in uns["verdict"][0]


def test_moments_are_correlations_and_subtract():
    adata = cells()
    counts = adata.X.toarray().astype(float)
    levels = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4)
    sources, targets = np.array([3, 5]), np.array([0, 3, 9])
    expected = np.abs(np.corrcoef(levels.T)[np.ix_(sources, targets)])
    whole = PairMoments(adata.X, sources, targets)
    np.testing.assert_allclose(whole.coexpression(), expected, atol=1e-10)
    part = whole - PairMoments(adata.X[:50], sources, targets)
    np.testing.assert_allclose(
        part.coexpression(), np.abs(np.corrcoef(levels[50:].T)[np.ix_(sources, targets)])
    )
    detected = (levels[50:] > 0).mean(0)
    np.testing.assert_allclose(part.detection(), np.outer(detected[sources], detected[targets]))


def test_names_are_looked_up_in_a_column():
    adata = with_network(np.random.default_rng(0).random((40, 40)))
    plain = scored(adata, truth())
    adata.var["symbol"] = [name.replace("G", "symbol") for name in GENES]
    renamed = {k.replace("G", "symbol"): [x.replace("G", "symbol") for x in v] for k, v in truth().items()}
    again = scored(adata, renamed, gene_symbols="symbol")
    assert_same(plain["table"], again["table"])


def test_columns_of_one_name_are_one_gene():
    adata = with_network(np.random.default_rng(0).random((40, 40)))
    adata.var["symbol"] = ["A", "A", *GENES[2:]]
    params = scored(adata, {"A": ["A", "G3", "G4"], "G5": ["G6"]}, gene_symbols="symbol")["params"]
    assert (params["regulators"], params["edges"]) == (3, 5)  # both columns of A, none of them to the other


def test_results_survive_a_file(tmp_path):
    adata = with_network(np.random.default_rng(0).random((40, 40)))
    scored(adata, truth())
    adata.write_h5ad(tmp_path / "x.h5ad")
    assert_same(anndata.read_h5ad(tmp_path / "x.h5ad").uns["grn_score"], adata.uns["grn_score"])


def test_what_is_refused():
    adata = with_network(np.random.default_rng(0).random((40, 40)))
    with pytest.raises(ValueError, match="no edge between two of the network's 40 genes"):
        scored(adata, {"TP53": ["MDM2"]})
    with pytest.raises(KeyError, match="is not in adata"):
        scfast.tl.grn_score(adata, truth(), key="grn")
    with pytest.raises(ValueError, match="all 1 pairs"):
        scored(adata, {"G0": ["G1"]})
    with pytest.raises(ValueError, match="convention='aupr' is unknown"):
        scored(adata, truth(), convention="aupr")
    with pytest.raises(ValueError, match="n_blocks=1 must be"):
        scored(adata, truth(), n_blocks=1)
    with pytest.raises(ValueError, match="has no edge between the 8 regulators"):
        scored(with_network(np.eye(40)), truth())
    normalised = adata.copy()
    normalised.X = normalised.X.log1p()
    with pytest.raises(ValueError, match="look log-normalised"):
        scored(normalised, truth())
    assert "grn_score" not in adata.uns
