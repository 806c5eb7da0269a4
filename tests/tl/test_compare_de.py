"""tl.compare_de: against scanpy's own test, and plain counting."""

from __future__ import annotations

import sys

import anndata
import numpy as np
import pandas as pd
import pytest
import scanpy
from scipy.stats import hypergeom, spearmanr

import scfast
from tests.same import assert_same
from tests.toy import BACKEND, toy_adata, toy_source


@pytest.fixture(scope="module")
def before():
    """Cells of three groups that differ in some genes, with attention received."""
    adata = toy_adata(90)
    rng = np.random.default_rng(1)
    counts = adata.X.toarray()
    for number, group in enumerate(adata.obs["type"].cat.categories):
        member = (adata.obs["type"] == group).to_numpy()
        counts[np.ix_(member, range(4 * number, 4 * number + 4))] += rng.poisson(2, (member.sum(), 4))
    adata.X = type(adata.X)(counts.astype(np.float32))
    scfast.tl.received(adata, toy_source(), groupby="type", null="untrained", backend=BACKEND)
    scfast.tl.rollout(adata, toy_source(), groupby="type", backend=BACKEND)
    return adata


def run(before, **options):
    adata = before.copy()
    scfast.tl.compare_de(adata, **({"top": (5, 10)} | options))
    return adata, adata.uns["compare_de"]


def scanpys(adata, **options):
    """Scanpy on its own, as its tutorials do it."""
    plain = adata[adata.obs["type"].notna()].copy()
    scanpy.pp.normalize_total(plain, target_sum=1e4)
    scanpy.pp.log1p(plain)
    scanpy.tl.rank_genes_groups(plain, "type", method="wilcoxon", **options)
    return scanpy.get.rank_genes_groups_df(plain, group=None).set_index(["group", "names"])


@pytest.mark.parametrize("tie_correct", [False, True])
@pytest.mark.parametrize("key", ["received", "rollout"])
def test_table(before, key, tie_correct):
    adata, uns = run(before, key=key, tie_correct=tie_correct, min_detection=0.0)
    test = scanpys(before, tie_correct=tie_correct)
    attended = before.uns[key]["table"]
    assert set(uns["table"]["group"].cat.categories) == {"B/plasma", "Mono", "T"}
    for group, part in uns["table"].groupby("group", observed=True):
        theirs = attended[(attended["group"] == group).to_numpy()].astype({"gene": str})
        assert part["gene"].tolist() == theirs["gene"].tolist()  # both: most attended first
        np.testing.assert_allclose(part["attention"], theirs["mean"])
        for name in ("rank", "expression", "detection"):
            np.testing.assert_array_equal(part[name], theirs[name])
        wilcoxon = test.loc[group].loc[part["gene"]]
        np.testing.assert_allclose(part["de_score"], wilcoxon["scores"], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(part["log_fold_change"], wilcoxon["logfoldchanges"], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(part["p_adjusted"], wilcoxon["pvals_adj"], rtol=1e-3, atol=1e-12)
        assert part["attention_place"].tolist() == list(range(1, len(part) + 1))
        by_test = part.sort_values("de_place")
        assert by_test["de_score"].is_monotonic_decreasing
        assert ("null" in part) == (key == "received")
    assert "rank_genes_groups" not in adata.uns


def test_overlap_and_correlations(before):
    _, uns = run(before, min_detection=0.6)
    everything = before.uns["received"]
    for group, part in uns["table"].groupby("group", observed=True):
        cells = everything["groups"].loc[group, "cells"]
        attended = everything["table"].query("group == @group")
        kept = attended[attended["cells"] >= 0.6 * cells]
        assert set(part["gene"]) == set(kept["gene"])
        about = uns["groups"].loc[group]
        assert about["genes"] == len(part) < len(attended)
        assert about["spearman_de"] == pytest.approx(spearmanr(part["attention"], part["de_score"]).statistic)
        for name in ("rank", "expression", "detection", "null"):
            assert about[f"spearman_{name}"] == pytest.approx(
                spearmanr(part["attention"], part[name]).statistic
            )
            assert about[f"de_{name}"] == pytest.approx(spearmanr(part["de_score"], part[name]).statistic)
        for k in (5, 10):
            row = uns["overlap"].query("group == @group and k == @k").iloc[0]
            marks = set(part.nlargest(k, "de_score")["gene"])
            shared = len(marks & set(part.nlargest(k, "attention")["gene"]))
            assert row["overlap"] == shared
            assert row["expected"] == pytest.approx(k * k / len(part))
            assert row["p_value"] == pytest.approx(hypergeom.sf(shared - 1, len(part), k, k))
            assert row["overlap_rank"] == len(marks & set(part.nsmallest(k, "rank")["gene"]))
            for name in ("expression", "detection", "null"):
                assert row[f"overlap_{name}"] == len(marks & set(part.nlargest(k, name)["gene"]))


def test_partial_correlation_holds_confounders_constant(before):
    """By the textbook: residuals of ranks on ranks."""
    _, uns = run(before)
    for group, part in uns["table"].groupby("group", observed=True):
        ranks = part[["attention", "de_score", "rank", "detection"]].rank()
        precision = np.linalg.inv(ranks.corr())
        expected = -precision[0, 1] / np.sqrt(precision[0, 0] * precision[1, 1])
        assert uns["groups"].loc[group, "partial_de"] == pytest.approx(expected)


@pytest.mark.parametrize("score", ["mean_detecting", "difference"])
def test_scores(before, score):
    _, uns = run(before, score=score, min_detection=0.0)
    scores = pd.DataFrame(before.layers["received"].toarray(), columns=before.var_names)
    for group, part in uns["table"].groupby("group", observed=True):
        member = (before.obs["type"] == group).to_numpy()
        others = (~member) & before.obs["type"].notna().to_numpy()
        if score == "difference":
            logged = before.copy()
            scanpy.pp.normalize_total(logged, target_sum=1e4)
            scanpy.pp.log1p(logged)
            frame = logged.to_df()
            for name, values in (("expression", frame), ("detection", frame > 0)):
                apart = values[member].mean() - values[others].mean()
                np.testing.assert_allclose(
                    part[f"{name}_difference"], apart[part["gene"]], rtol=1e-4, atol=1e-5
                )
            assert {"overlap_detection_difference"} <= set(uns["overlap"])
            expected = scores[member].mean() - scores[others].mean()
        else:
            inside = scores[member]
            expected = inside.where(inside > 0).mean()
        np.testing.assert_allclose(part["attention"], expected[part["gene"]], rtol=1e-4, atol=1e-4)
        assert part["attention"].is_monotonic_decreasing


def test_given_layer(before):
    adata = before.copy()
    logged = before.copy()
    scanpy.pp.normalize_total(logged, target_sum=1e4)
    scanpy.pp.log1p(logged)
    adata.layers["logged"] = logged.X
    scfast.tl.compare_de(adata, layer="logged", top=[5])
    _, uns = run(before, top=[5])
    np.testing.assert_allclose(
        adata.uns["compare_de"]["table"]["de_score"], uns["table"]["de_score"], rtol=1e-5
    )


def test_values_that_are_not_counts_warn_where_they_were_given(before):
    adata = before.copy()
    adata.X = adata.X.log1p()
    with pytest.warns(UserWarning, match="look log-normalised") as seen:
        scfast.tl.compare_de(adata, top=[5])
    assert [warning.filename for warning in seen] == [__file__]


def test_same_bits_copy_and_file(before, tmp_path):
    adata, _ = run(before)
    again, _ = run(before)
    assert_same(again, adata)
    other = before.copy()
    assert_same(scfast.tl.compare_de(other, top=(5, 10), copy=True), adata)
    assert_same(other, before)
    adata.write_h5ad(tmp_path / "a.h5ad")
    assert_same(anndata.read_h5ad(tmp_path / "a.h5ad").uns["compare_de"], adata.uns["compare_de"])


def drop_column(adata):
    del adata.obs["type"]


def rename_groups(adata):
    adata.obs["type"] = adata.obs["type"].cat.rename_categories({"T": "T cell"})


def ungrouped(adata):
    scfast.tl.received(adata, toy_source(), backend=BACKEND)


def one_group(adata):
    adata.obs["type"] = pd.Categorical(["T"] * adata.n_obs)
    scfast.tl.received(adata, toy_source(), groupby="type", backend=BACKEND)


def one_cell(adata):
    adata.obs["type"] = pd.Categorical(["B", *["T"] * (adata.n_obs - 1)])
    scfast.tl.received(adata, toy_source(), groupby="type", backend=BACKEND)


@pytest.mark.parametrize(
    ("error", "message", "options", "change"),
    [
        (KeyError, r"named 'other': run scfast.tl.received\(.*key_added='other'", {"key": "other"}, None),
        (
            ValueError,
            "groupby='donor', but 'received' was computed with groupby='type'",
            {"groupby": "donor"},
            None,
        ),
        (ValueError, "score='rank' is unknown; use one of mean", {"score": "rank"}, None),
        (ValueError, r"min_detection=2 must lie in \[0, 1\]", {"min_detection": 2}, None),
        (ValueError, r"top=\(\) must hold sizes", {"top": ()}, None),
        (ValueError, r"top=\[500\]: at most 34 genes are ranked", {"top": 500}, None),
        (KeyError, "layer='logged' is not in adata.layers", {"layer": "logged"}, None),
        (KeyError, "'type', which is not in adata.obs any more", {}, drop_column),
        (ValueError, "the column has changed; run it again", {}, rename_groups),
        (ValueError, "as one group: run it again with groupby=", {}, ungrouped),
        (ValueError, "has one group, 'T': a test needs another", {}, one_group),
        (ValueError, r"the groups \['B'\].*have one cell each", {}, one_cell),
    ],
)
def test_bad_input_leaves_no_trace(before, error, message, options, change):
    adata = before.copy()
    if change is not None:
        change(adata)
    untouched = adata.copy()
    with pytest.raises(error, match=message):
        scfast.tl.compare_de(adata, **options)
    assert_same(adata, untouched)


def test_without_scanpy(before, monkeypatch):
    monkeypatch.setitem(sys.modules, "scanpy", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'scfast\[scanpy\]'"):
        scfast.tl.compare_de(before.copy())
