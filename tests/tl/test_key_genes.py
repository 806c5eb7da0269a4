"""tl.key_genes: the table against maps, pandas and scipy."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.stats import mannwhitneyu, spearmanr

import scfast
from scfast import models
from tests import materialised
from tests.same import assert_same
from tests.toy import BACKEND, toy_adata, toy_source

GENES = ["S5", "S0", "S1", "S17", "NONE"]


def run(adata, source, **options):
    scfast.tl.key_genes(adata, source, backend=BACKEND, **options)
    return adata.uns["key_genes"]


def long_table(adata, source, tokens):
    """One row per token: cell, gene, place and what it receives."""
    parts = []
    for cell, received in enumerate(materialised.received(source, tokens)):
        genes = tokens.select([cell]).gene_index.numpy()
        at = np.flatnonzero(genes >= 0)
        columns = {"gene": adata.var_names[genes[at]], "place": np.arange(len(at)) + 1.0}
        parts.append(pd.DataFrame({**columns, "attention": received.sum((0, 1))[at], "cell": cell}))
    return pd.concat(parts)


def check(table, tokens, adata, groupby):
    by_gene = tokens.groupby("gene")
    total = by_gene["attention"].sum()[table.index]
    np.testing.assert_allclose(table["attention_sum"], total, rtol=1e-4)
    scaled = (total - total.min()) / (total.max() - total.min())
    np.testing.assert_allclose(table["attention"], scaled, rtol=1e-3, atol=1e-5)
    assert table["attention"].is_monotonic_decreasing
    assert (table["attention"].iloc[0], table["attention"].iloc[-1]) == (1, 0)
    np.testing.assert_allclose(table["attention_mean"], by_gene["attention"].mean()[table.index], rtol=1e-4)
    np.testing.assert_allclose(
        table["attention_se"], by_gene["attention"].sem()[table.index], rtol=2e-3, atol=1e-5
    )
    np.testing.assert_array_equal(table["cells"], by_gene.size()[table.index])
    np.testing.assert_allclose(table["rank"], by_gene["place"].mean()[table.index])
    np.testing.assert_allclose(table["rank_sd"], by_gene["place"].std()[table.index], atol=1e-5)
    labels = adata.obs[groupby].to_numpy()[tokens["cell"]]
    per_group = tokens.groupby([labels, "gene"])["place"].mean()
    for group in adata.obs[groupby].cat.categories:
        expected = per_group[group].reindex(table.index)
        np.testing.assert_allclose(table[f"rank_{group.replace('/', '|')}"], expected)
    detected = np.asarray((adata.X > 0).mean(0)).ravel()
    np.testing.assert_allclose(table["detection"], pd.Series(detected, adata.var_names)[table.index])


@pytest.mark.parametrize("cls", [False, True])
def test_table(cls):
    adata, source = toy_adata(), toy_source(cls=cls)
    tokens = long_table(adata, source, source.tokenize(adata.X, adata.var))
    uns = run(adata, source, groupby="type", highlight=GENES, gene_symbols="symbol", null="untrained")
    table = uns["table"].set_index("gene")
    assert set(table.index) == set(tokens["gene"])
    check(table, tokens, adata, "type")
    assert (table["symbol"] == table.index.str.replace("G", "S")).all()
    assert set(table.index[table["highlight"]]) == {"G5", "G0", "G1"}  # G17 is not in the vocabulary
    assert uns["params"]["not_found"].tolist() == ["NONE"]
    other = run(toy_adata(), source.untrained(0))["table"].set_index("gene")
    np.testing.assert_allclose(table["null"], other["attention"][table.index], atol=1e-9)

    for kind, row in uns["correlations"].iterrows():
        for name, got in row.items():
            assert got == pytest.approx(spearmanr(table[kind], table[name]).statistic)
    marked = table["highlight"]
    for name, row in uns["highlight"].iterrows():
        values = -table[name] if name == "rank" else table[name]
        statistic = mannwhitneyu(values[marked], values[~marked]).statistic
        assert row["auroc"] == pytest.approx(statistic / (3 * (~marked).sum()))
        assert row["genes"] == 3


def test_without_options():
    uns = run(toy_adata(), toy_source())
    assert set(uns) == {"table", "correlations", "params"}
    assert not uns["table"]["highlight"].any()
    assert not {"symbol", "null", "rank_all"} & set(uns["table"])


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_real_cells(cells, folders, version):
    adata, source = cells.copy(), models.load("geneformer", folders[version])
    read = source.tokenize(adata.X, adata.var, adata.obs["n_counts"].to_numpy())
    tokens = long_table(adata, source, read)
    adata.obs["celltype"] = adata.obs["celltype"].astype("category").cat.remove_unused_categories()
    uns = run(adata, source, groupby="celltype", highlight=["CD3E", "LYZ"], gene_symbols="symbol")
    check(uns["table"].set_index("gene"), tokens, adata, "celltype")


def test_one_gene_is_scaled_to_zero():
    adata = toy_adata()[:, :1].copy()
    table = run(adata, toy_source())["table"]
    assert table["attention"].tolist() == [0]
    assert table["attention_mean"].tolist() == [pytest.approx(6)]


def test_same_bits_copy_and_file(tmp_path):
    options = {"groupby": "type", "highlight": ["G0"], "null": "untrained", "backend": BACKEND}
    adata = toy_adata()
    first = scfast.tl.key_genes(adata, toy_source(), copy=True, **options)
    assert_same(adata, toy_adata())
    scfast.tl.key_genes(adata, toy_source(), **options)
    assert_same(adata, first)
    adata.write_h5ad(tmp_path / "a.h5ad")
    assert_same(anndata.read_h5ad(tmp_path / "a.h5ad"), adata)


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (
            KeyError,
            r"none of the 2 genes \(\['X', 'Y'\], ...\) is in adata.var_names",
            {"highlight": ["X", "Y"]},
        ),
        (KeyError, "gene_symbols='name' is not in adata.var", {"gene_symbols": "name"}),
        (KeyError, "groupby='kind'", {"groupby": "kind"}),
        (ValueError, "null='shuffled'", {"null": "shuffled"}),
        (ValueError, "key_added=''", {"key_added": ""}),
        (TypeError, "scfast.models.load", {"model": 3}),
    ],
)
def test_bad_arguments_leave_no_trace(error, message, options):
    adata = toy_adata()
    before = adata.copy()
    with pytest.raises(error, match=message):
        scfast.tl.key_genes(adata, **({"model": toy_source(), "backend": BACKEND} | options))
    assert_same(adata, before)
