"""tl.rollout: scores against the materialised rollout, group statistics against pandas."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

import scfast
from tests import materialised
from tests.toy import BACKEND, toy_adata, toy_source


def run(adata, source, **options):
    scfast.tl.rollout(adata, source, backend=BACKEND, **options)
    return adata.layers["rollout"].toarray(), adata.uns["rollout"]


@pytest.mark.parametrize("layers", [None, (1, 2), (-2, -2), "prefix", "suffix"])
@pytest.mark.parametrize(
    ("readout", "heads", "residual"),
    [("mean", "mean", 0.5), ("cls", "max", 0.5), ("gene:G0", "min", 0.7), ("cls", "mean", 1.0)],
)
def test_scores(readout, layers, heads, residual):
    adata, source = toy_adata(), toy_source(cls=True)
    tokens = source.tokenize(adata.X, adata.var)
    gene = 0 if readout.startswith("gene:") else None
    span = (1, 1) if layers == (-2, -2) else layers
    expected = materialised.rollout(
        source, tokens, readout, gene=gene, layers=span, heads=heads, residual=residual
    )
    options = {"readout": readout, "layers": layers, "heads": heads, "residual": residual}
    got, uns = run(adata, source, **options)
    rows = {"prefix": -1, "suffix": 0}
    complete = [scores[rows[layers]] if layers in rows else scores for scores in expected]
    wanted = materialised.per_gene(complete, tokens, adata.n_vars)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(adata.varm["rollout"]["all"], wanted.mean(0), rtol=1e-5, atol=1e-8)
    special = 1 - wanted.sum(1).mean()
    assert uns["groups"].loc["all", "mass_special"] == pytest.approx(special, abs=1e-6)
    assert uns["groups"].filter(like="mass_").sum(axis=1).item() == pytest.approx(1, abs=1e-6)
    if layers in rows:
        for layer in range(source.n_layers):
            row = materialised.per_gene([scores[layer] for scores in expected], tokens, adata.n_vars)
            np.testing.assert_allclose(uns["by_layer"][layer, :, 0], row.mean(0), rtol=1e-5, atol=1e-8)
    else:
        assert "by_layer" not in uns


def test_gene_readout_runs_only_cells_with_the_gene():
    adata, source = toy_adata(), toy_source()
    scores, uns = run(adata, source, readout="gene:G5")
    tokens = source.tokenize(adata.X, adata.var)
    has = [5 in tokens.select([cell]).gene_index for cell in range(adata.n_obs)]
    assert 0 < sum(has) < adata.n_obs
    np.testing.assert_allclose(scores.sum(1), has, atol=1e-5)
    assert uns["groups"].loc["all", "cells"] == sum(has)


def long_table(adata, scores):
    """One row per cell and gene, by pandas' own means."""
    tokens = toy_source().tokenize(adata.X, adata.var)
    rows = []
    for cell in range(adata.n_obs):
        genes = tokens.select([cell]).gene_index.tolist()
        total = adata.X[cell].sum()
        for gene in range(adata.n_vars):
            count = adata.X[cell, gene]
            rank = genes.index(gene) + 1 if gene in genes else np.nan
            rows.append(
                (cell, f"G{gene}", scores[cell, gene], rank, np.log1p(count / total * 1e4), count > 0)
            )
    table = pd.DataFrame(rows, columns=["cell", "gene", "score", "rank", "expression", "detected"])
    return table.join(adata.obs.reset_index(drop=True), on="cell")


@pytest.mark.parametrize("replicate_key", [None, "donor"])
def test_group_statistics(replicate_key):
    adata = toy_adata()
    scores, uns = run(adata, toy_source(), groupby="type", replicate_key=replicate_key, null="untrained")
    cells = long_table(adata, scores)
    table = uns["table"].set_index(["group", "gene"])
    groups = cells.groupby(["type", "gene"], observed=True)
    holds = cells[cells["rank"].notna()].groupby(["type", "gene"], observed=True)

    def check(column, expected):
        expected = expected.reindex(table.index)
        np.testing.assert_allclose(table[column], expected, rtol=1e-4, atol=1e-7, err_msg=column)

    check("mean", groups["score"].mean())
    check("mean_detecting", holds["score"].mean())
    check("cells", holds.size())
    check("rank", holds["rank"].mean())
    check("expression", groups["expression"].mean())
    check("detection", groups["detected"].mean())
    if replicate_key is None:
        check("se", groups["score"].sem())
        check("se_detecting", holds["score"].sem())
    else:
        check("se", groups[["score", "donor"]].apply(between_donors))
        check("se_detecting", holds[["score", "donor"]].apply(between_donors))
    assert set(table.index) == set(holds.size().index)
    for _, part in uns["table"].groupby("group", observed=True):
        assert part["mean"].is_monotonic_decreasing

    about = uns["groups"]
    assert list(about.index) == ["B/plasma", "Mono", "T"]
    np.testing.assert_array_equal(about["cells"], adata.obs["type"].value_counts().reindex(about.index))
    donors = adata.obs.groupby("type", observed=True)["donor"].nunique() if replicate_key else 0
    np.testing.assert_array_equal(about["replicates"], donors)
    tokens = toy_source().tokenize(adata.X, adata.var)
    for lost in ("lost_vocabulary", "lost_truncation"):
        per_cell = pd.Series(getattr(tokens, lost).numpy(), adata.obs_names)
        expected = per_cell.groupby(adata.obs["type"], observed=True).mean()
        np.testing.assert_allclose(about[lost], expected.reindex(about.index))
        assert about[lost].sum() > 0
    for name, part in uns["table"].groupby("group", observed=True):
        for against in ("expression", "detection", "rank", "null"):
            expected = spearmanr(part["mean"], part[against]).statistic
            assert about.loc[name, f"spearman_{against}"] == pytest.approx(expected)
    assert list(adata.varm["rollout"].columns) == ["B|plasma", "Mono", "T"]


def between_donors(part):
    """Linearised standard error of a mean over cells that come in clusters."""
    sizes, sums = part.groupby("donor")["score"].count(), part.groupby("donor")["score"].sum()
    if len(sizes) < 2:
        return np.nan
    off = sums - sizes * part["score"].mean()
    return np.sqrt(len(sizes) / (len(sizes) - 1) * (off**2).sum()) / sizes.sum()


def test_error_between_replicates_of_one_size_is_that_of_their_means():
    adata = toy_adata(24)
    adata.obs["donor"] = [f"d{i % 4}" for i in range(24)]
    scores, uns = run(adata, toy_source(), replicate_key="donor")
    means = pd.DataFrame(scores, columns=adata.var_names).groupby(adata.obs["donor"].to_numpy()).mean()
    table = uns["table"].set_index("gene")
    np.testing.assert_allclose(table["se"], means.sem().reindex(table.index), rtol=1e-4)


def test_null_is_the_untrained_model():
    adata, other = toy_adata(), toy_adata()
    _, uns = run(adata, toy_source(), null="untrained", seed=4)
    run(other, toy_source().untrained(4))
    np.testing.assert_allclose(adata.varm["rollout_null"], other.varm["rollout"])
    table = uns["table"].set_index("gene")
    np.testing.assert_allclose(table["null"], adata.varm["rollout_null"]["all"].reindex(table.index))
    assert np.abs(table["null"] - table["mean"]).max() > 1e-4


@pytest.mark.parametrize("memory", ["120KB", "1GB"])
def test_any_batch_size_gives_the_same_result(memory, monkeypatch):
    whole, parts = toy_adata(), toy_adata()
    run(whole, toy_source(), groupby="type")
    monkeypatch.setattr("scfast.run.runner.AHEAD_TOKENS", 100)  # tokens made in several goes
    _, uns = run(parts, toy_source(), groupby="type", memory=memory)
    assert (uns["params"]["plan"]["batches"] > 5) == (memory == "120KB")
    np.testing.assert_allclose(
        parts.layers["rollout"].toarray(), whole.layers["rollout"].toarray(), rtol=2e-5, atol=1e-8
    )
    np.testing.assert_allclose(parts.varm["rollout"], whole.varm["rollout"], rtol=2e-5, atol=1e-8)
    pd.testing.assert_series_equal(
        parts.uns["rollout"]["groups"]["lost_vocabulary"], whole.uns["rollout"]["groups"]["lost_vocabulary"]
    )


def test_one_plan_gives_the_same_bits():
    results = []
    for _ in range(2):
        adata = toy_adata()
        scores, uns = run(adata, toy_source(), groupby="type")
        results.append((scores, adata.varm["rollout"].to_numpy(), uns["params"]["plan"]["hash"]))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])
    assert results[0][2] == results[1][2]


def test_genes_with_several_tokens_are_added_up():
    class Twice(type(toy_source())):
        """Every cell is followed by its own tokens again, as models that sample with replacement do."""

        def tokenize(self, counts, var, n_counts=None):
            from dataclasses import replace

            from scfast import Packing

            tokens = super().tokenize(counts, var, n_counts)
            doubled = tokens.select(np.repeat(np.arange(tokens.n_cells), 2))
            return replace(
                doubled,
                packing=Packing.from_lengths([2 * n for n in tokens.lengths]),
                lost_vocabulary=tokens.lost_vocabulary,
                lost_truncation=tokens.lost_truncation,
            )

    adata = toy_adata()
    source = Twice(toy_source().genes)
    scores, uns = run(adata, source)
    once = toy_source().tokenize(adata.X, adata.var)
    np.testing.assert_allclose(scores.sum(1), 1, atol=1e-5)
    assert (scores > 0).sum() == once.n_tokens
    assert uns["table"]["cells"].sum() == once.n_tokens
    table = uns["table"].set_index("gene")
    ranks = long_table(adata, scores).dropna(subset="rank").groupby("gene")["rank"].mean()
    np.testing.assert_allclose(table["rank"], ranks.reindex(table.index))
