"""tl.regulator, tl.gene_programs, tl.grn_agreement: what is read from networks."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.stats import hypergeom
from sklearn.metrics import adjusted_rand_score

import scfast
from scfast.tl.grn_agreement import adjusted_rand
from tests.same import assert_same
from tests.toy import BACKEND, toy_adata, toy_source

SETS = {"one": ["S1", "S2", "S4"], "other": ["S30", "S31"]}
REFERENCE = {"S0": ["S1", "S2", "S5", "S39"], "S1": ["S2", "S4"]}


@pytest.fixture(scope="module")
def made():
    adata = toy_adata(60)
    scfast.tl.grn(
        adata, toy_source(), groupby="type", compare=("T", "Mono"), min_cells=1, n_blocks=3, backend=BACKEND
    )
    return adata


def test_a_regulator_s_targets(made):
    adata = made.copy()
    scfast.tl.regulator(
        adata, "S0", network="all", reference=REFERENCE, gene_sets=SETS, gene_symbols="symbol", top=6, n_edges=8,
    )  # fmt: skip
    uns = adata.uns["regulator"]
    row = adata.varp["grn"][[0]].toarray().ravel()
    order = np.argsort(-row, kind="stable")
    names = adata.var["symbol"].to_numpy()
    assert list(uns["edges"]["target"]) == list(names[order[:8]])
    np.testing.assert_allclose(uns["edges"]["value"], row[order[:8]])
    np.testing.assert_allclose(uns["edges"]["se"], adata.varp["grn_se"][[0]].toarray().ravel()[order[:8]])
    assert list(uns["influenced"]["gene"]) == list(names[order[:10]])
    assert list(uns["influenced"].columns) == ["gene", "value", "all", "B|plasma", "Mono", "T"]
    known = set(REFERENCE["S0"])
    np.testing.assert_array_equal(uns["edges"]["known"], uns["edges"]["target"].isin(known))
    universe = set(names[row > 0])
    found = len(known & set(names[order[:6]]))
    overlap = uns["overlap"].iloc[0]
    assert overlap["p_value"] == hypergeom.sf(found - 1, len(universe), len(known & universe), 6)
    assert set(uns["enrichment"]["kind"]) == {"gene set", "regulon"}
    part = uns["enrichment"].set_index(["kind", "gene_set"]).loc[("regulon", "S0")]
    assert part["p_value"] == pytest.approx(overlap["p_value"])


def test_by_change_and_from_a_file(made, tmp_path):
    adata = made.copy()
    scfast.tl.regulator(adata, "G4")
    uns = adata.uns["regulator"]
    assert uns["params"]["network"] == "change"
    change = adata.varp["grn_change"][[4]].toarray().ravel()
    np.testing.assert_allclose(uns["influenced"]["value"].abs(), np.sort(np.abs(change))[::-1][:10])
    adata.write_h5ad(tmp_path / "x.h5ad")
    again = anndata.read_h5ad(tmp_path / "x.h5ad")
    scfast.tl.regulator(again, "G4", key_added="again")
    assert_same(again.uns["again"], uns)


def test_what_a_regulator_refuses(made):
    for gene, options, error, says in (
        ("TP53", {}, KeyError, "TP53"),
        ("G3", {}, ValueError, "has no edge from G3"),
        ("G0", {"network": "NK"}, KeyError, "is not in the results"),
        ("G0", {"reference": {"G0": ["G1"]}, "top": 40}, ValueError, "name a smaller top"),
        ("G0", {"n_edges": 0}, ValueError, "n_edges=0"),
        (
            "G0",
            {"reference": {"TP53": ["MDM2"]}, "top": 5},
            ValueError,
            "names none of the genes: it has 'TP53'",
        ),
    ):
        with pytest.raises(error, match=says):
            scfast.tl.regulator(made, gene, **options)


def test_a_regulator_without_known_targets_has_no_p_value(made):
    adata = made.copy()
    scfast.tl.regulator(adata, "G4", network="all", reference={"G0": ["G1", "G2"]}, top=5)
    overlap = adata.uns["regulator"]["overlap"].iloc[0]
    assert overlap["known"] == 0
    assert np.isnan(overlap["p_value"])


def blocks(seed=0):
    """60 genes with states in four directions."""
    draws = np.random.default_rng(seed)
    of_gene = np.repeat(np.arange(4), [20, 18, 19, 3])
    states = np.eye(8)[of_gene] + 0.2 * draws.normal(size=(60, 8))
    adata = anndata.AnnData(
        np.ones((2, 61), np.float32), var=pd.DataFrame(index=[f"G{i}" for i in range(61)])
    )
    names = adata.var_names[:60].astype(str).to_numpy()
    adata.uns["similarity"] = {
        "genes": {"names": names, "layers": [2], "states": states[None].astype(np.float32)}
    }
    return adata, of_gene


def test_programs_are_the_blocks(tmp_path):
    adata, of_gene = blocks()
    sets = {"first": [f"G{i}" for i in range(20)], "none": ["G60", "G5"]}
    scfast.tl.gene_programs(adata, threshold=0.6, gene_sets=sets)
    found = adata.var["gene_programs"].cat.codes.to_numpy()
    np.testing.assert_array_equal(found[:57], np.repeat([0, 2, 1], [20, 18, 19]))
    assert (found[57:] == -1).all()  # three genes are no program
    uns = adata.uns["gene_programs"]
    assert list(uns["programs"]["genes"]) == [20, 19, 18]
    best = uns["enrichment"].iloc[0]
    assert (best["program"], best["gene_set"], best["overlap"], best["set_size"]) == ("0", "first", 20, 20)
    assert best["p_value"] == pytest.approx(hypergeom.sf(19, 60, 20, 20))
    adata.write_h5ad(tmp_path / "x.h5ad")
    scfast.tl.gene_programs(adata, share=0.2, key_added="again")
    assert adata.uns["again"]["params"]["edges"] == pytest.approx(0.2 * 60 * 59 / 2, rel=0.2)
    assert len(set(of_gene)) == 4


def test_what_programs_refuse():
    adata, _ = blocks()
    for options, error, says in (
        ({"key": "x"}, KeyError, "no states of genes named 'x'"),
        ({"layer": 1}, ValueError, "layer=1 was not kept"),
        ({"threshold": 1.5}, ValueError, "no two of 60 genes"),
        ({"share": 1.0}, ValueError, "share=1.0"),
        ({"min_genes": 0}, ValueError, "must be positive"),
    ):
        with pytest.raises(error, match=says):
            scfast.tl.gene_programs(adata, **options)


def test_rand_index_is_that_of_scikit_learn():
    draws = np.random.default_rng(0)
    for n in (2, 9, 100):
        one, other = draws.integers(0, 4, (2, n))
        assert adjusted_rand(one, other) == pytest.approx(adjusted_rand_score(one, other))


def test_seeds_agree_as_far_as_they_do():
    adata, _ = blocks()
    draws = np.random.default_rng(0)
    truth = draws.random((61, 61))
    for seed in range(3):
        adata.varp[f"net{seed}"] = truth + 0.1 * draws.random((61, 61))
        scfast.tl.gene_programs(adata, threshold=0.6, seed=seed, key_added=f"programs{seed}")
    keys, programs = [f"net{i}" for i in range(3)], [f"programs{i}" for i in range(3)]
    scfast.tl.grn_agreement(adata, keys, programs=programs)
    pairs = adata.uns["grn_consensus"]["pairs"]
    assert len(pairs) == 3
    assert (pairs["edges"] > 0.9).all()
    assert pairs["programs"].tolist() == [1.0] * 3
    assert adata.var["grn_consensus"].notna().sum() == 57
    consensus = adata.varp["grn_consensus"].toarray()
    assert np.corrcoef(consensus.ravel(), truth.ravel())[0, 1] > 0.98
    with pytest.raises(ValueError, match="two or more different"):
        scfast.tl.grn_agreement(adata, ["net0", "net0"])
    with pytest.raises(ValueError, match="1 programs for 2 networks"):
        scfast.tl.grn_agreement(adata, ["net0", "net1"], programs=["programs0"])
    with pytest.raises(KeyError, match="programs 'x', and the genes of their graph, are not there"):
        scfast.tl.grn_agreement(adata, ["net0", "net1"], programs=["programs0", "x"])
    adata.varp["apart"] = np.eye(61)[::-1]
    adata.varp["net0"] = np.eye(61)
    adata.varp["apart"][30, 30] = 0
    with pytest.raises(ValueError, match="no edge in common"):
        scfast.tl.grn_agreement(adata, ["net0", "apart"])
