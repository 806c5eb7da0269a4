"""tl.similarity of tokens, of genes' mean states and of one cell, against scikit-learn on states held in memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity

import scfast
from scfast.attention.recorder import Recorder
from scfast.observables import HiddenStates
from scfast.observables.token_cosines import PAIRS
from scfast.tl._token_pairs import QUANTILES, histogram_quantiles
from tests.same import assert_same
from tests.toy import BACKEND, toy_adata, toy_source

BINS = 2000


def states_of(adata, source):
    """Tokens, and float64 [states, T, d]."""
    tokens = source.tokenize(adata.X, adata.var)
    recorder = Recorder([HiddenStates()], keep=False)
    with torch.inference_mode():
        source.forward(tokens, recorder)
    return tokens, recorder.batch["hidden_states"].double().numpy()


def cosines_of(adata, source):
    """Cell -> pair -> layer -> similarities."""
    tokens, states = states_of(adata, source)
    found = []
    for start, length in zip(tokens.packing.starts_q, tokens.lengths, strict=True):
        gene = tokens.kind.numpy()[start : start + length] == 0
        upper = np.triu(np.ones((length, length), dtype=bool), 1)
        pairs = [np.outer(gene, gene) & upper, np.outer(gene, ~gene), np.outer(~gene, ~gene) & upper]
        alike = [cosine_similarity(each[start : start + length]) for each in states]
        found.append([[each[pair] for each in alike] for pair in pairs])
    return found


@pytest.mark.parametrize("cls", [True, False])
@pytest.mark.parametrize("memory", [None, "2.5MB"])
def test_distributions_equal_scikit_learn(cls, memory):
    adata, source = toy_adata(), toy_source(cls=cls)
    scfast.tl.similarity(adata, source, groupby="type", bins=BINS, memory=memory, backend=BACKEND)
    results = adata.uns["similarity"]
    assert (results["params"]["plan"]["batches"] > 1) == (memory is not None)
    assert results["token_groups"].tolist() == ["B/plasma", "Mono", "T", "all"]
    assert results["token_counts"].shape == (4, 4, 3, BINS)
    cosines, table = cosines_of(adata, source), results["tokens"].set_index(["group", "layer", "pair"])
    assert set(table.index.get_level_values("pair")) == set(PAIRS[: 1 + cls])
    for group, layer, pair in table.index:
        chosen = np.ones(23, dtype=bool) if group == "all" else (adata.obs["type"] == group).to_numpy()
        cells = [cosines[cell][PAIRS.index(pair)][layer] for cell in np.flatnonzero(chosen)]
        every, row = np.concatenate(cells), table.loc[(group, layer, pair)]
        assert row["pairs"] == len(every)
        assert row["cells"] == chosen.sum()
        for name in ("mean", "min", "max"):
            np.testing.assert_allclose(row[name], getattr(every, name)(), atol=1e-6)
        np.testing.assert_allclose(row["sd"], every.std(), atol=1e-5)
        for name, q in QUANTILES.items():
            low, high = (np.quantile(every, q, method=method) for method in ("lower", "higher"))
            assert low - 2 / BINS <= row[name] <= high + 2 / BINS
        means = np.array([each.mean() for each in cells])
        np.testing.assert_allclose(row["cell_mean"], means.mean(), atol=1e-6)
        np.testing.assert_allclose(
            row["cell_se"], means.std(ddof=1) / np.sqrt(len(means)), rtol=1e-4, atol=1e-8
        )
        assert row["zeros"] == 0
        counts = results["token_counts"][
            results["token_groups"].tolist().index(group), layer, PAIRS.index(pair)
        ]
        assert counts.sum() == len(every)
    assert len(results["edges"]) == BINS + 1


def test_bits_do_not_depend_on_what_else_is_asked():
    adata, source = toy_adata(), toy_source(cls=True)
    scfast.tl.similarity(adata, source, groupby="type", replicate_key="donor", backend=BACKEND)
    scfast.tl.similarity(adata, source, genes="all", key_added="more", backend=BACKEND)
    first, second = adata.uns["similarity"], adata.uns["more"]
    np.testing.assert_array_equal(first["token_counts"][-1], second["token_counts"][0])
    assert np.isfinite(first["tokens"].loc[first["tokens"]["pair"] == "gene-gene", "cell_se"]).all()
    scfast.tl.similarity(adata, source, tokens=False, key_added="less", backend=BACKEND)
    np.testing.assert_allclose(adata.uns["less"]["map"], second["map"], rtol=1e-7)
    assert "tokens" not in adata.uns["less"]


@pytest.mark.parametrize("memory", [None, "400KB"])
def test_mean_states_of_genes_equal_scikit_learn(memory):
    adata, source = toy_adata(), toy_source(cls=True)
    names, layers = ["G39", "G0", "G5", "G12", "G4", "G8"], [0, -1]
    scfast.tl.similarity(
        adata, source, genes=names, layers=layers, min_cells=5, n_neighbors=3, tokens=False, memory=memory,
        backend=BACKEND,
    )  # fmt: skip
    genes = adata.uns["similarity"]["genes"]
    tokens, states = states_of(adata, source)
    columns = sorted(adata.var_names.get_indexer(names))
    assert genes["names"].tolist() == adata.var_names[columns].tolist()
    assert genes["layers"].tolist() == [0, 3]
    for number, layer in enumerate([0, 3]):
        mean = np.stack([states[layer][(tokens.gene_index == c).numpy()].mean(0) for c in columns])
        np.testing.assert_allclose(genes["states"][number], mean, rtol=1e-6, atol=1e-6)
        alike = cosine_similarity(mean)
        np.testing.assert_allclose(genes["similarity"][number], alike, atol=1e-6)
        near = genes["neighbors"][genes["neighbors"]["layer"] == layer]
        np.fill_diagonal(alike, -2)
        for place, name in enumerate(genes["names"]):
            mine = near[near["gene"] == name].sort_values("rank")
            order = np.argsort(-alike[place])[:3]
            assert mine["neighbor"].tolist() == genes["names"][order].tolist()
            np.testing.assert_allclose(mine["similarity"], alike[place][order], atol=1e-6)
    assert genes["cells"].tolist() == [(tokens.gene_index == c).sum().item() for c in columns]
    assert genes["zeros"].tolist() == [0, 0]


def test_all_genes_have_neighbors_and_no_map():
    adata, source = toy_adata(), toy_source()
    scfast.tl.similarity(adata, source, genes="all", min_cells=12, n_neighbors=100, backend=BACKEND)
    genes = adata.uns["similarity"]["genes"]
    assert "similarity" not in genes
    assert (genes["cells"] >= 12).all()
    frequent = np.bincount(source.tokenize(adata.X, adata.var).gene_index.numpy(), minlength=40) >= 12
    assert genes["names"].tolist() == adata.var_names[frequent].tolist()
    assert len(genes["neighbors"]) == 4 * len(genes["names"]) * (len(genes["names"]) - 1)


def test_one_cell():
    adata, source = toy_adata(), toy_source(cls=True)
    scfast.tl.similarity(adata, source, cell="cell7", layers=[1, 3], tokens=False, backend=BACKEND)
    cell = adata.uns["similarity"]["cell"]
    tokens, states = states_of(adata[7:8], source)
    for number, layer in enumerate([1, 3]):
        np.testing.assert_allclose(cell["similarity"][number], cosine_similarity(states[layer]), atol=1e-6)
    assert cell["names"][0] == "special"
    assert cell["names"][1:].tolist() == adata.var_names[tokens.gene_index[1:]].tolist()
    assert cell["tokens"]["kind"].tolist() == ["special", *["gene"] * (len(cell["names"]) - 1)]


def test_results_go_through_a_file(tmp_path):
    adata = toy_adata()
    options = {"genes": ["G0", "G5", "G12"], "cell": "cell2", "groupby": "type", "backend": BACKEND}
    scfast.tl.similarity(adata, toy_source(cls=True), **options)
    again = scfast.io.read(scfast.io.write_h5ad(adata, tmp_path / "cells.h5ad"))
    for part in ("tokens", "token_counts", "token_groups", "genes", "cell"):
        assert_same(again.uns["similarity"][part], adata.uns["similarity"][part])


def test_in_shards(tmp_path):
    adata, source = toy_adata(), toy_source(cls=True)
    options = {"groupby": "type", "genes": "all", "min_cells": 5, "backend": BACKEND}
    scfast.tl.similarity(adata, source, **options)
    for _ in range(2):  # the second time, all of it is there
        with scfast.run.resumable(tmp_path, shard_cells=7):
            scfast.tl.similarity(adata, source, key_added="shards", **options)
    whole, shards = adata.uns["similarity"], adata.uns["shards"]
    np.testing.assert_array_equal(shards["token_counts"], whole["token_counts"])
    for name in ("min", "max", "pairs", "cells"):
        np.testing.assert_array_equal(shards["tokens"][name], whole["tokens"][name])
    np.testing.assert_allclose(shards["tokens"]["cell_mean"], whole["tokens"]["cell_mean"], rtol=1e-6)
    np.testing.assert_allclose(shards["genes"]["states"], whole["genes"]["states"], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(shards["genes"]["cells"], whole["genes"]["cells"])


def test_quantiles_of_histograms():
    values = np.random.default_rng(0).beta(5, 2, 20_000) * 2 - 1
    counts, edges = np.histogram(values, 400, (-1, 1))
    for q in (0.01, 0.5, 0.99):
        assert abs(histogram_quantiles(counts, edges, q) - np.quantile(values, q)) < 1 / 200
    counts = np.array([0, 3, 0, 1, 0])
    assert histogram_quantiles(counts, np.arange(6.0), 1.0) == 4
    assert 1 <= histogram_quantiles(counts, np.arange(6.0), 1e-9) <= 2


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"bins": 0}, ValueError, "bins=0 must be a whole number"),
        ({"min_cells": True}, ValueError, "min_cells=True must be a whole number"),
        ({"genes": ["G0", "X"]}, KeyError, r"genes \['X'\] are not in adata.var_names"),
        ({"genes": ["G0", "G5"], "min_cells": 24}, ValueError, "0 of 2 genes have a token in min_cells=24"),
        ({"genes": "all", "layers": [4]}, ValueError, r"layers=\[4\]: toy has states 0 .* to 3"),
        (
            {"genes": "all", "memory": "30KB"},
            ValueError,
            r"take 0\.0 MB and may take half.*pass memory='1MB'",
        ),
        ({"cell": "nobody"}, KeyError, "cell='nobody' stands 0 times in adata.obs_names"),
        (
            {"cell": "cell1", "memory": "2KB"},
            ValueError,
            r"4 maps of the \d+ x \d+ tokens of cell='cell1' take",
        ),
    ],
)
def test_errors(options, error, message):
    adata = toy_adata()
    before = adata.copy()
    with pytest.raises(error, match=message):
        scfast.tl.similarity(adata, toy_source(), backend=BACKEND, **options)
    assert_same(adata, before)


def test_rare_genes_are_left_out_with_a_warning():
    adata, source = toy_adata(), toy_source()
    with pytest.warns(UserWarning, match=r"1 of 3 genes \(G3\) have a token in fewer than min_cells=2 cells"):
        scfast.tl.similarity(adata, source, genes=["G0", "G5", "G3"], min_cells=2, backend=BACKEND)
    assert adata.uns["similarity"]["genes"]["names"].tolist() == ["G0", "G5"]


def test_states_that_are_zero_or_nan():
    adata, source = toy_adata(), toy_source(cls=True)
    source.table = torch.zeros_like(source.table)  # cls, at position 0, has the state 0
    scfast.tl.similarity(adata, source, backend=BACKEND)
    table = adata.uns["similarity"]["tokens"].set_index(["pair", "layer"])
    assert table.loc[("gene-special", 0), "zeros"] == 23
    assert table.loc[("gene-special", 0), "mean"] == 0
    source.weights = source.weights.clone()
    source.weights[0] = torch.nan
    with pytest.raises(ValueError, match=r"nan or infinite at layers \[1, 2, 3\] in \d+ of"):
        scfast.tl.similarity(adata, source, backend=BACKEND)
    adata.obs["type"] = adata.obs["type"].cat.rename_categories({"T": "all"})
    with pytest.raises(ValueError, match="has a group 'all'"):
        scfast.tl.similarity(adata, source, groupby="type", backend=BACKEND)
