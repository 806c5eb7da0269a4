"""tl.enrich: against counting by hand and scipy's hypergeometric distribution."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats

import scfast
from tests.same import assert_same
from tests.toy import BACKEND, toy_adata, toy_source

OPTIONS = {"top": 8, "min_detection": 0.3}


@pytest.fixture
def adata():
    adata = toy_adata(40)
    scfast.tl.rollout(adata, toy_source(cls=True), groupby="type", backend=BACKEND)
    return adata


@pytest.fixture
def sets():
    rng = np.random.default_rng(1)
    found = {f"SET{i}": rng.choice([f"G{g}" for g in range(40)], 4 + 3 * i, replace=False) for i in range(6)}
    return found | {"ELSEWHERE": ["X1", "X2"], "ALONE": ["G3", "X1"]}


def by_hand(adata, group, sets, top, min_detection):
    """One gene and one set at a time, from the definitions."""
    cells = np.flatnonzero((adata.obs["type"] == group).to_numpy())
    scores = adata.layers["rollout"][cells].toarray().astype(np.float64)
    held = adata.layers["rollout"][cells].toarray() > 0
    n = held.sum(1, keepdims=True)
    relative = {g: (scores * n)[held[:, g], g].mean() for g in range(adata.n_vars) if held[:, g].any()}
    universe = [g for g in relative if held[:, g].mean() >= min_detection]
    best = {f"G{g}" for g in sorted(universe, key=lambda g: -relative[g])[:top]}
    everyone = {f"G{g}" for g in universe}
    rows = {}
    for name, genes in sets.items():
        size, overlap = len(everyone & set(genes)), len(best & set(genes))
        if size:
            rows[name] = overlap, size, stats.hypergeom.sf(overlap - 1, len(everyone), size, top)
    return rows, len(everyone), best


def test_equals_counting_and_scipy(adata, sets):
    scfast.tl.enrich(adata, sets, **OPTIONS)
    results = adata.uns["enrich"]
    assert list(results["groups"].index) == ["B/plasma", "Mono", "T"]
    for group, part in results["table"].groupby("group", observed=True):
        expected, universe, best = by_hand(adata, group, sets, 8, 0.3)
        part = part.set_index("gene_set")
        assert set(part.index) == set(expected)
        assert results["groups"].loc[group, "universe"] == universe
        top = results["top_genes"].query("group == @group")["gene"]
        assert set(top) == best
        for name, (overlap, size, p) in expected.items():
            row = part.loc[name]
            assert (row["overlap"], row["set_size"], row["universe"]) == (overlap, size, universe)
            np.testing.assert_allclose(row["p_value"], p, rtol=1e-10)
            np.testing.assert_allclose(row["expected"], 8 * size / universe)
            assert set(filter(None, row["genes"].split(";"))) == best & set(sets[name])
        p = part["p_value"].to_numpy()
        assert (np.diff(p) >= 0).all()
        np.testing.assert_allclose(part["q_value"], benjamini_hochberg(p), rtol=1e-12)


def benjamini_hochberg(p):
    """min over larger p of p m / rank, for sorted p."""
    return np.minimum(1, np.minimum.accumulate((p * len(p) / np.arange(1, len(p) + 1))[::-1])[::-1])


def test_without_overlap_p_is_one_and_the_set_counts(adata):
    top = list(
        scfast.tl.enrich(adata, {"A": ["G0"]}, copy=True, **OPTIONS).uns["enrich"]["top_genes"]["gene"]
    )
    rest = [f"G{i}" for i in range(40) if f"G{i}" not in top and i % 7 != 3]
    scfast.tl.enrich(adata, {"TOP": top[:3], "REST": rest}, **OPTIONS)
    part = adata.uns["enrich"]["table"].set_index("gene_set").loc[["REST"]]
    assert (part["overlap"] == 0).all()
    assert (part["p_value"] == 1).all()
    assert (part["genes"] == "").all()
    first = adata.uns["enrich"]["table"].query("group == 'B/plasma'")
    assert len(first) == 2
    np.testing.assert_allclose(first["q_value"].iloc[0], min(1, 2 * first["p_value"].iloc[0]))


def test_a_tiny_p_does_not_underflow():
    """600 genes of 20,000, all of them in the set: p = 1 / C(20000, 600) is below the smallest double."""
    names = [f"G{i}" for i in range(20_000)]
    scores = np.ones((1, 20_000), dtype=np.float32)
    scores[:, :600] = 9
    adata = anndata.AnnData(np.ones((1, 20_000), np.float32), var=pd.DataFrame(index=names))
    adata.layers["rollout"] = sparse.csr_matrix(scores / scores.sum())
    adata.uns["rollout"] = {"table": pd.DataFrame(), "params": {}}
    scfast.tl.enrich(adata, {"S": names[:600]}, top=600)
    row = adata.uns["enrich"]["table"].iloc[0]
    choose = stats.hypergeom.logpmf(600, 20_000, 600, 600) / np.log(10)
    np.testing.assert_allclose(row["log10_p"], choose, rtol=1e-9)
    assert row["p_value"] == 0
    assert row["log10_p"] < -1000


def test_an_explicit_universe(adata, sets):
    universe = [f"G{i}" for i in range(30)] + ["NOWHERE"]
    scfast.tl.enrich(adata, sets, universe=universe, gene_symbols=None, **OPTIONS)
    results = adata.uns["enrich"]
    assert (results["groups"]["universe"] == 30).all()
    assert results["params"]["universe_not_found"] == 1
    assert set(results["top_genes"]["gene"]) <= set(universe)
    row = results["table"].query("gene_set == 'SET2'").iloc[0]
    size = len(set(sets["SET2"]) & set(universe))
    assert row["set_size"] == size
    np.testing.assert_allclose(
        row["p_value"], stats.hypergeom.sf(row["overlap"] - 1, 30, size, 8), rtol=1e-10
    )


def test_received_is_ranked_by_its_share(adata):
    """Its scores grow with the length of a cell, so they are divided by their sum before."""
    scfast.tl.received(adata, toy_source(cls=True), groupby="type", backend=BACKEND)
    scfast.tl.enrich(adata, {"A": ["G0", "G1"]}, key="received", **OPTIONS)
    scores = adata.layers["received"].toarray().astype(np.float64)
    held = scores > 0
    relative = scores / scores.sum(1, keepdims=True) * held.sum(1, keepdims=True)
    cells = (adata.obs["type"] == "T").to_numpy()
    for _, row in adata.uns["enrich"]["top_genes"].query("group == 'T'").iterrows():
        gene = adata.var_names.get_loc(row["gene"])
        np.testing.assert_allclose(row["score"], relative[cells & held[:, gene], gene].mean())
        np.testing.assert_allclose(row["detection"], held[cells, gene].mean())


def test_symbols_files_and_round_trip(adata, sets, tmp_path):
    lines = [
        "\t".join([name, "about", *(gene.replace("G", "S", 1) for gene in genes)])
        for name, genes in sets.items()
    ]
    (tmp_path / "sets.gmt").write_text("\n".join(lines))
    scfast.tl.enrich(adata, sets, **OPTIONS)
    scfast.tl.enrich(adata, tmp_path / "sets.gmt", gene_symbols="symbol", key_added="by_symbol", **OPTIONS)
    for mine, theirs in zip(
        adata.uns["enrich"]["table"].itertuples(), adata.uns["by_symbol"]["table"].itertuples(), strict=True
    ):
        assert mine.gene_set == theirs.gene_set
        assert mine.p_value == theirs.p_value
    path = scfast.io.write_h5ad(adata, tmp_path / "cells.h5ad")
    assert_same(scfast.io.read(path).uns["enrich"]["table"], adata.uns["enrich"]["table"])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"key": "received"}, KeyError, "no scores of cells named 'received'"),
        ({"top": 0}, ValueError, "top=0 must be"),
        ({"top": 35}, ValueError, "name a smaller top"),
        ({"min_detection": 1.5}, ValueError, r"must lie in \[0, 1\]"),
        ({"universe": []}, ValueError, "universe is empty"),
        ({"universe": ["X"]}, ValueError, "universe is empty: none of its 1 genes"),
        ({"gene_sets": {}}, ValueError, "holds no set"),
        ({"gene_sets": {"A": "G1"}}, TypeError, "is one text"),
        ({"gene_sets": {"A": ["X"]}}, KeyError, "none of their 1 genes"),
        ({"groupby": "nowhere"}, KeyError, "groupby='nowhere'"),
        ({"gene_symbols": "nowhere"}, KeyError, "gene_symbols='nowhere'"),
    ],
)
def test_errors(adata, options, error, message):
    before = adata.copy()
    arguments = {"gene_sets": {"A": ["G0"]}, **OPTIONS} | options
    with pytest.raises(error, match=message):
        scfast.tl.enrich(adata, **arguments)
    assert_same(adata, before)


def test_a_group_without_scores_has_an_empty_universe(adata):
    cells = (adata.obs["type"] == "Mono").to_numpy()
    adata.layers["rollout"] = sparse.csr_matrix(adata.layers["rollout"].multiply(~cells[:, None]))
    adata.layers["rollout"].eliminate_zeros()
    with pytest.raises(ValueError, match="universe of group 'Mono' is empty"):
        scfast.tl.enrich(adata, {"A": ["G0"]}, **OPTIONS)


def test_bad_scores(adata):
    good = adata.layers["rollout"].copy()
    for value, message in ((np.nan, "nan or infinite"), (-1.0, "negative scores")):
        adata.layers["rollout"] = good.copy()
        adata.layers["rollout"].data[0] = value
        with pytest.raises(ValueError, match=message):
            scfast.tl.enrich(adata, {"A": ["G0"]}, **OPTIONS)
    adata.layers["rollout"] = good.copy()
    adata.layers["rollout"].data[good.indptr[5] : good.indptr[6]] = 0
    with pytest.warns(UserWarning, match="scores of 1 cells .* are all 0"):
        scfast.tl.enrich(adata, {"A": ["G0"]}, **OPTIONS)
    adata.layers["rollout"] = good.toarray()
    with pytest.raises(TypeError, match="sparse scores are needed"):
        scfast.tl.enrich(adata, {"A": ["G0"]}, **OPTIONS)


def test_hallmark_sets_of_real_cells(shared):
    """Scores that follow expression find the sets of blood cells' work, in groups of sorted cells."""
    adata = anndata.read_h5ad(shared / "data" / "cells" / "pbmc_facs_mini.h5ad")
    totals = np.asarray(adata.X.sum(1))
    adata.layers["rollout"] = sparse.csr_matrix(adata.X.multiply(1 / totals)).astype(np.float32)
    adata.uns["rollout"] = {"table": pd.DataFrame(), "params": {"groupby": "celltype"}}
    path = shared / "data" / "genesets" / "msigdb_hallmark_v2025.Hs.symbols.gmt"
    scfast.tl.enrich(adata, path, gene_symbols="symbol")
    results = adata.uns["enrich"]
    assert len(results["groups"]) == 10
    assert (results["groups"]["sets"] <= 50).all()
    assert (results["groups"]["universe"] < 4000).all()
    for _, part in results["table"].groupby("group", observed=True):
        row = part.set_index("gene_set").loc["HALLMARK_MYC_TARGETS_V1"]  # ribosome and translation
        expected = stats.hypergeom.sf(row["overlap"] - 1, row["universe"], row["set_size"], 100)
        np.testing.assert_allclose(row["p_value"], expected, rtol=1e-10)
