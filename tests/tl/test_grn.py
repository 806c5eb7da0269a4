"""tl.grn: networks that equal the sum of maps that are held, in every group, block and convention."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import scfast
from scfast.tl._edge_statistics import EdgeStatistics
from tests import materialised
from tests.same import assert_same
from tests.toy import BACKEND, toy_adata, toy_source

FEW = {"min_cells": 1, "n_blocks": 3}


def run(adata, source, **options):
    scfast.tl.grn(adata, source, backend=BACKEND, **{**FEW, **options})
    return adata.uns["grn"]


def maps_of_cells(adata, source, weights):
    """Per cell: (gene columns [n], sum of w_lh P^lh [n, n] between genes), in float64."""
    recorder = materialised.MapRecorder()
    tokens = source.tokenize(adata.X, adata.var)
    with torch.inference_mode():
        source.forward(tokens, recorder)
    cells = []
    for cell in range(adata.n_obs):
        gene = tokens.select([cell]).gene_index.numpy()
        fused = sum(
            (torch.tensor(weights[layer])[:, None, None] * maps[cell]).sum(0).numpy()
            for layer, maps in enumerate(recorder.maps)
        )
        kept = gene >= 0
        cells.append((gene[kept], fused[np.ix_(kept, kept)]))
    return cells


def expected(cells, rows, n):
    """(sums [n, n], cells [n, n]), source in rows."""
    score, held = np.zeros((n, n)), np.zeros((n, n))
    for row in rows:
        gene, fused = cells[row]
        score[np.ix_(gene, gene)] += fused.T
        held[np.ix_(gene, gene)] += 1
    return score, held


def mean(score, held, least=1):
    np.fill_diagonal(held, 0)
    return np.divide(score, held, out=np.zeros_like(score), where=held >= least)


@pytest.mark.parametrize("cls", [False, True])
@pytest.mark.parametrize("memory", [None, 160_000])
def test_networks_are_means_of_maps(cls, memory):
    adata, source = toy_adata(), toy_source(cls=cls)
    uns = run(adata, source, groupby="type", memory=memory, min_cells=2, compare=("T", "Mono"))
    even = np.full((3, 2), 1 / 6)
    cells = maps_of_cells(adata, source, even)
    known = np.flatnonzero(adata.obs["type"].notna())
    means = {}
    for name, place in uns["networks"]["varp"].items():
        rows = known if name == "all" else np.flatnonzero(adata.obs["type"] == name)
        assert uns["networks"].loc[name, "cells"] == len(rows)
        means[name] = mean(*expected(cells, rows, adata.n_vars), 2)
        np.testing.assert_allclose(adata.varp[place].toarray(), means[name], rtol=2e-6, atol=1e-9)
    assert (uns["params"]["passes"] > 9) == (memory is not None)
    change = adata.varp["grn_change"].toarray()
    both = (means["T"] != 0) & (means["Mono"] != 0)
    np.testing.assert_allclose(change, np.where(both, means["Mono"] - means["T"], 0), atol=1e-6)
    table = uns["changes"]
    assert table["change"].abs().is_monotonic_decreasing
    first = table.iloc[0]
    np.testing.assert_allclose(
        change[adata.var_names.get_loc(first["source"]), adata.var_names.get_loc(first["target"])],
        first["change"], rtol=1e-5,
    )  # fmt: skip


def test_errors_are_those_of_a_ratio_between_blocks():
    adata, source = toy_adata(), toy_source()
    run(adata, source)
    cells = maps_of_cells(adata, source, np.full((3, 2), 1 / 6))
    block = adata.obs["grn_block"].to_numpy()
    assert sorted(np.unique(block)) == [0, 1, 2]
    parts = [expected(cells, np.flatnonzero(block == b), adata.n_vars) for b in range(3)]
    score, held = (sum(x) for x in zip(*parts, strict=True))
    with np.errstate(invalid="ignore", divide="ignore"):
        m = score / held
        variance = 3 / 2 * sum((s - n * m) ** 2 for s, n in parts) / held**2
    variance[sum(n > 0 for _, n in parts) == 1] = np.nan  # a single block has no spread
    variance[held == 0] = 0
    np.fill_diagonal(variance, 0)
    # Maps are float32: measured at most 1.2e-8 apart, where errors are up to 0.011.
    np.testing.assert_allclose(adata.varp["grn_se"].toarray(), np.sqrt(variance), rtol=1e-5, atol=1e-7)


def test_the_error_is_the_jackknife_s():
    draws = np.random.default_rng(0)
    n = draws.integers(40, 60, (10, 1, 1)).astype(float)
    sums = n * (0.3 + 0.02 * draws.normal(size=(10, 1, 1)))
    whole = EdgeStatistics.empty((1, 1))
    for score, cells in zip(sums, n, strict=True):
        whole.add(score, cells)
    whole.close()
    left = (sums.sum(0) - sums) / (n.sum(0) - n)
    np.testing.assert_allclose(whole.error(1), np.sqrt(9 * left.var(0)), rtol=0.02)


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ({"layers": [-1]}, [[0, 0], [0, 0], [1, 1]]),
        ({"layers": [0, 2], "heads": [1]}, [[0, 1], [0, 0], [0, 1]]),
        ({"weights": np.array([[1, 2], [0, 0], [3, 0]])}, [[1, 2], [0, 0], [3, 0]]),
    ],
)
def test_layers_and_heads_are_chosen_and_weighed(options, weights):
    adata, source = toy_adata(), toy_source(cls=True)
    run(adata, source, **options)
    weights = np.array(weights) / np.sum(weights)
    cells = maps_of_cells(adata, source, weights)
    found = mean(*expected(cells, range(adata.n_obs), adata.n_vars))
    np.testing.assert_allclose(adata.varp["grn"].toarray(), found, rtol=2e-6, atol=1e-9)


def test_some_genes_and_sources_and_the_strongest_edges():
    whole, adata, source = toy_adata(), toy_adata(), toy_source(cls=True)
    run(whole, source)
    genes, sources = [f"S{i}" for i in range(20)], ["S0", "S1", "S30"]
    uns = run(adata, source, genes=genes, sources=sources, gene_symbols="symbol", top=4)
    assert list(uns["sources"]) == ["G0", "G1", "G30"]
    kept = adata.varp["grn"].toarray()
    every = whole.varp["grn"].toarray()
    inside = np.isin(whole.var_names, uns["genes"])
    for row in range(40):
        if adata.var_names[row] not in uns["sources"]:
            assert not kept[row].any()
            continue
        limit = np.sort(every[row][inside])[-4]
        np.testing.assert_allclose(
            kept[row], np.where(inside & (every[row] >= limit), every[row], 0), rtol=2e-6
        )


def test_the_strongest_edges_are_those_of_all_whatever_the_blocks_of_sources():
    one, many = toy_adata(), toy_adata()
    for adata, memory in ((one, None), (many, 160_000)):
        run(adata, toy_source(), top=3, memory=memory)
    assert many.uns["grn"]["params"]["passes"] > 2 * one.uns["grn"]["params"]["passes"]
    assert (np.diff(one.varp["grn"].indptr) <= 3).all()
    for key in ("grn", "grn_se"):
        np.testing.assert_array_equal(one.varp[key].indices, many.varp[key].indices)
        np.testing.assert_allclose(one.varp[key].data, many.varp[key].data, rtol=1e-5)
    pd.testing.assert_frame_equal(one.uns["grn"]["strength"], many.uns["grn"]["strength"], rtol=1e-6)


def test_bits_do_not_depend_on_threads():
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            adata = toy_adata()
            run(adata, toy_source(), groupby="type", compare=("T", "Mono"), replicate_key="donor")
            found.append(adata)
    finally:
        torch.set_num_threads(threads)
    for adata in found[1:]:
        assert_same(adata.varp, found[0].varp)
        assert_same(adata.uns["grn"]["changes"], found[0].uns["grn"]["changes"])


def test_ranks_are_those_of_the_tutorial(shared):
    from scfast.observables.gene_edges import _ranks, edge_ranks

    golden = np.load(shared / "golden" / "scgpt_grn_rank_a.npz")
    n_cells, m, heads, width = golden["params"][:4].tolist()
    qkv = torch.from_numpy(golden["qkv"]).reshape(n_cells, m, 3, heads, width)
    for cell in range(n_cells):
        q, k = qkv[cell, :, 0], qkv[cell, :, 1]
        for head in range(heads):
            np.testing.assert_array_equal(
                _ranks(q[:, head] @ k[:, head].T, 1), golden["row_rank"][cell, head]
            )
        found = torch.stack([edge_ranks(q[:, head], k[:, head]) for head in range(heads)]).mean(0).numpy()
        low, high = golden["per_cell_lowest"][cell], golden["per_cell_highest"][cell]
        assert (found >= low - 1e-6).all()
        assert (found <= high + 1e-6).all()
        np.testing.assert_allclose(
            found, golden["per_cell"][cell], atol=1e-6
        )  # ties as they come, at 14 genes


def test_ranks_over_cells():
    adata, source = toy_adata(), toy_source(cls=True)
    run(adata, source, convention="rank", layers=[1])
    scores = {}

    class Ranks(materialised.MapRecorder):
        def attend(self, attention):
            if attention.layer == 1:
                scores["q"], scores["k"] = attention.q, attention.k
            return super().attend(attention)

    tokens = source.tokenize(adata.X, adata.var)
    with torch.inference_mode():
        source.forward(tokens, Ranks())
    total, held = np.zeros((2, 40, 40))
    for q, k, gene in zip(
        *(tokens.packing.split_q(x) for x in (scores["q"], scores["k"], tokens.gene_index)), strict=True
    ):
        kept = gene >= 0
        for head in range(2):
            raw = (q[kept, head] @ k[kept, head].T).numpy()
            rows = raw.argsort(1, kind="stable").argsort(1)
            ranks = rows.argsort(0, kind="stable").argsort(0) / len(raw)
            total[np.ix_(gene[kept], gene[kept])] += ranks.T / 2
        held[np.ix_(gene[kept], gene[kept])] += 1
    np.testing.assert_allclose(adata.varp["grn"].toarray(), mean(total, held), rtol=2e-6, atol=1e-9)


def test_means_of_queries_and_keys():
    """One cell: the map of its means is its map, without its other tokens; several: written out."""
    adata, source = toy_adata(), toy_source()
    run(adata, source, convention="qk-mean", layers=[0], groupby="type")
    tokens = source.tokenize(adata.X, adata.var)
    states = source.table[tokens.ids] + tokens.positions[:, None] / 50
    wq, wk, _ = source.weights[0]
    genes = np.unique(tokens.gene_index)
    q, k = (
        torch.stack([(states @ w)[tokens.gene_index == gene].mean(0) for gene in genes]) for w in (wq, wk)
    )
    q, k = (x.reshape(-1, 2, 8).double() for x in (q, k))
    p = torch.softmax(torch.einsum("ihd,jhd->hij", q, k) / 8**0.5, -1).mean(0).numpy()
    cells = np.flatnonzero(adata.obs["type"].notna())
    assert len(cells) == 22
    only = toy_adata()
    run(only, source, convention="qk-mean", layers=[0])
    np.fill_diagonal(p, 0)
    np.testing.assert_allclose(only.varp["grn"][genes][:, genes].toarray(), p.T, rtol=1e-5)
    assert only.varp["grn_se"].nnz == only.varp["grn"].nnz
    assert adata.uns["grn"]["networks"].shape[0] == 4


def test_blocks_that_are_kept_add_up_and_give_intervals_over_cells(tmp_path):
    adata, source = toy_adata(60), toy_source()
    reference = {"G0": ["G1", "G2", "G9"], "G4": ["G1", "G11"], "G5": ["G2", "G8"]}
    uns = run(adata, source, groupby="type", sources=list(reference), keep_blocks=True)
    for name, place in uns["networks"]["varp"].items():
        if name == "all":
            continue
        kept = uns["blocks"][place]
        total = kept["score"].sum(0) / np.maximum(kept["cells"].sum(0), 1)
        rows = [adata.var_names.get_loc(x) for x in uns["blocks"]["sources"]]
        columns = [adata.var_names.get_loc(x) for x in uns["blocks"]["targets"]]
        own = np.equal.outer(rows, columns)
        np.testing.assert_allclose(
            adata.varp[place].toarray()[np.ix_(rows, columns)], np.where(own, 0, total), rtol=1e-5
        )
    scfast.tl.grn_score(adata, reference, n_null=10)
    scores = adata.uns["grn_score"]
    assert scores["params"]["intervals"] == "cells"
    assert list(scores["table"]["network"].cat.categories) == [
        "all",
        *uns["networks"].index[1:],
        "stratified",
    ]
    assert np.isfinite(scores["table"]["epr_low"]).all()
    assert scores["verdict"][0].startswith("How well the model predicts")
    adata.write_h5ad(tmp_path / "x.h5ad")
    again = anndata.read_h5ad(tmp_path / "x.h5ad")
    assert_same(again.uns["grn"]["networks"], uns["networks"])
    scfast.tl.grn_score(again, reference, n_null=10)
    assert_same(again.uns["grn_score"]["table"], scores["table"])


def test_replicates_are_blocks():
    adata, source = toy_adata(), toy_source()
    run(adata, source, replicate_key="donor")
    codes = adata.obs["donor"].astype("category").cat.codes
    np.testing.assert_array_equal(adata.obs["grn_block"], codes)


def test_a_model_that_does_not_beat_its_baseline_says_so():
    adata, source = toy_adata(), toy_source()
    log = {
        "history": [{"held_out_loss": 1.0, "held_out_sensitivity": 0.2}],
        "baseline": {"loss": 1.2, "sensitivity": 0.3},
    }
    params = run(adata, source, training=log)["params"]
    assert "does not beat the mean predictor" in params["model_verdict"]
    log["history"][0]["held_out_sensitivity"] = 0.4
    assert "beats the mean predictor" in run(adata, source, training=log)["params"]["model_verdict"]


def test_what_is_refused():
    adata, source = toy_adata(), toy_source()
    for options, error, says in (
        ({"convention": "max"}, ValueError, "convention='max' is unknown"),
        ({"layers": [3]}, ValueError, r"layers=\[3\] do not all exist"),
        ({"weights": np.ones((2, 2))}, ValueError, r"weights have the shape \[2, 2\]"),
        ({"compare": ("a", "b")}, ValueError, "name two of the groups"),
        ({"genes": ["TP53"]}, KeyError, "genes: none of"),
        ({"min_cells": 1000}, ValueError, "a network needs two genes"),
        ({"top": 0}, ValueError, "top=0 must be"),
        ({"memory": "1KB"}, ValueError, "memory"),
        ({"training": {"history": []}}, ValueError, "says nothing of held-out cells"),
        ({"keep_blocks": True, "convention": "qk-mean"}, ValueError, "keep_blocks=True keeps sums"),
    ):
        with pytest.raises(error, match=says):
            run(adata, source, **options)
    foreign = toy_adata()
    unknown = foreign.X.tolil()
    unknown[0, [i for i in range(40) if i % 7 != 3]] = 0
    foreign.X = unknown.tocsr()
    foreign.obs["type"] = pd.Categorical(["lost", *["rest"] * 22])
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(ValueError, match="no cell of lost has a gene"),
    ):
        run(foreign, source, groupby="type")
    normalised = toy_adata()
    normalised.X = sparse.csr_matrix(normalised.X.log1p())
    with pytest.raises(ValueError, match="look log-normalised"):
        run(normalised, source)
    assert not adata.varp.keys()
    assert "grn" not in adata.uns
