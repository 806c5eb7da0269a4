"""tl.rollout_matrix: rows of rollout matrices that are held, gene by gene, as pandas averages them."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

import scfast
from scfast import models
from scfast.run.memory import readouts_that_fit
from scfast.tl import _batches, _gene_pairs
from tests import materialised
from tests.ops.helpers import FLOOR
from tests.same import assert_same
from tests.toy import BACKEND, toy_adata, toy_source

GENES = ["G5", "G0", "G12", "G33"]
COMPLETE = {"prefix": -1, "suffix": 0}


def run(adata, source, genes=GENES, **options):
    scfast.tl.rollout_matrix(adata, source, genes, backend=BACKEND, **options)
    return adata.uns["rollout_matrix"]


def expected(adata, source, genes, **options):
    """A row per cell, step, target and source that the cell has: scores of matrices in float64, and by plain torch."""
    tokens = source.tokenize(adata.X, adata.var, totals(adata))
    rows = []
    for cell in range(adata.n_obs):
        alone = tokens.select([cell])
        columns = alone.gene_index.numpy()
        for gene in genes:
            target = adata.var_names.get_loc(gene)
            if target not in columns:
                continue
            both = [
                np.atleast_2d(
                    *materialised.rollout(source, alone, "gene", gene=target, dtype=dtype, **options)
                )
                for dtype in (torch.float64, torch.float32)
            ]
            for step, (exact, plain) in enumerate(zip(*both, strict=True)):
                for column in np.unique(columns[columns >= 0]):
                    scores = (x[columns == column].sum(dtype=np.float64) for x in (exact, plain))
                    rows.append((cell, step, gene, adata.var_names[column], *scores))
    return pd.DataFrame(rows, columns=["cell", "step", "target", "source", "score", "plain"])


def totals(adata):
    return adata.obs["n_counts"].to_numpy() if "n_counts" in adata.obs else None


def frame(uns, values):
    """[groups, targets, sources] as a Series."""
    names = [uns[f"{name}_names"] for name in ("group", "target", "source")]
    index = pd.MultiIndex.from_product(names, names=["group", "target", "source"])
    return pd.Series(values.reshape(-1), index=index).sort_index()


def assert_scores(got, expected):
    """The error rule, on scores, which are their own size: 2 x plain torch in float32 + the floor."""
    exact, plain = (expected[name].to_numpy() for name in ("score", "plain"))
    ours, theirs = (np.max(np.abs(x - exact) / exact, initial=0) for x in (np.asarray(got), plain))
    assert ours <= 2 * theirs + FLOOR, f"error {ours:.3g}, plain torch {theirs:.3g}"


@pytest.mark.parametrize("cls", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"heads": "max"},
        {"residual": 0.8, "layers": (1, 2)},
        {"layers": "prefix"},
        {"layers": "suffix", "heads": "min"},
    ],
    ids=str,
)
def test_means_of_matrices_that_are_held(options, cls):
    adata, source = toy_adata(), toy_source(cls=cls)
    uns = run(adata, source, groupby="type", **options)
    cells = expected(adata, source, GENES, **options)
    cells["group"] = adata.obs["type"].to_numpy()[cells["cell"]]
    complete = COMPLETE.get(options.get("layers"), 0) % (cells["step"].max() + 1)
    whole = cells[cells["step"] == complete]
    by = ["group", "target", "source"]
    means, size = whole.groupby(by)[["score", "plain"]].mean(), whole.groupby(by).size()
    count = frame(uns, uns["cells"])
    assert set(count[count > 0].index) == set(means.index)
    np.testing.assert_array_equal(count[means.index], size)
    mean = frame(uns, uns["mean"])
    assert_scores(mean[means.index], means)
    assert mean[count == 0].isna().all()
    grouped = whole[whole["group"].notna()].groupby(["target", "source"])[["score", "plain"]].mean()
    assert_scores(adata.varm["rollout_matrix"].stack().swaplevel()[grouped.index], grouped)
    assert adata.varm["rollout_matrix"].stack().notna().sum() == len(grouped)
    if isinstance(options.get("layers"), str):
        assert uns["by_layer"].shape == (source.n_layers, *uns["mean"].shape)
        for step, part in cells.groupby("step"):
            means = part.groupby(by)[["score", "plain"]].mean()
            assert_scores(frame(uns, uns["by_layer"][step])[means.index], means)
    else:
        assert "by_layer" not in uns


def test_table():
    adata, source = toy_adata(), toy_source(cls=True)
    uns = run(adata, source, groupby="type", null="untrained", seed=3, n_top=6)
    table, mean, cells = uns["table"], frame(uns, uns["mean"]), frame(uns, uns["cells"])
    assert list(table) == [
        "group", "target", "source", "mean", "cells", "rank", "expression", "detection", "null"
    ]  # fmt: skip
    keys = pd.MultiIndex.from_frame(table[["group", "target", "source"]].astype(str))
    np.testing.assert_array_equal(table["mean"], mean[keys])
    np.testing.assert_array_equal(table["cells"], cells[keys])
    about = uns["targets"].set_index(["group", "target"])
    for key, part in table.groupby(["group", "target"], observed=True):
        usual = mean[key][(cells[key] >= 0.1 * about.loc[key, "cells"]) & (cells[key] > 0)].drop(key[1])
        assert list(part["source"]) == list(usual.sort_values(ascending=False).head(6).index)
    other = toy_adata()
    run(other, source.untrained(3), groupby="type")
    np.testing.assert_allclose(uns["null"], other.uns["rollout_matrix"]["mean"])
    np.testing.assert_array_equal(table["null"], frame(uns, uns["null"])[keys])
    tokens = source.tokenize(adata.X, adata.var)
    held = [
        any(adata.var_names.get_loc(gene) in tokens.select([cell]).gene_index for gene in GENES)
        for cell in range(adata.n_obs)
    ]
    plain = toy_adata()[np.array(held)].copy()
    scfast.tl.rollout(plain, source, groupby="type", backend=BACKEND)
    genes = plain.uns["rollout"]["table"].set_index(["group", "gene"]).loc[keys.droplevel("target")]
    for column in ("rank", "expression", "detection"):
        np.testing.assert_allclose(table[column], genes[column])


def test_what_targets_read_in_all():
    adata, source = toy_adata(), toy_source(cls=True)
    uns = run(adata, source)
    cells = expected(adata, source, GENES)
    about = uns["targets"].set_index("target")
    assert list(about.index) == GENES
    np.testing.assert_array_equal(about["cells"], cells.groupby("target")["cell"].nunique()[GENES])
    columns = ["score", "plain"]
    own = cells[cells["target"] == cells["source"]].groupby("target")[columns].mean().loc[GENES]
    assert_scores(about["self"], own)
    mass = cells.groupby(["target", "cell"])[columns].sum().groupby("target").mean().loc[GENES]
    assert_scores(about["mass_gene"], mass)
    np.testing.assert_allclose(about["mass_gene"] + about["mass_other"], 1, rtol=1e-15)
    assert (about["mass_other"] > 0.01).all()


def test_one_row_is_the_rollout_of_its_gene():
    adata, source = toy_adata(), toy_source()
    uns = run(adata, source, ["G5"])
    scfast.tl.rollout(adata, source, readout="gene:G5", backend=BACKEND)
    table = adata.uns["rollout"]["table"].set_index("gene")
    sums = pd.Series(uns["mean"][0, 0] * uns["cells"][0, 0], index=uns["source_names"])
    np.testing.assert_allclose(sums[table.index], table["mean"] * uns["targets"]["cells"].item(), rtol=1e-6)


def test_several_tokens_of_a_gene():
    """Rows are even over the tokens of a target; a source has the sum over its tokens."""
    adata, source = toy_adata(), toy_source(cls=True)
    tokens = source.tokenize(adata.X, adata.var)
    tokens.gene_index[tokens.gene_index == 7] = 5
    weights = _gene_pairs.row_weights(tokens, np.array([5, 0]), 40)
    cell = tokens.packing.cell_of_query()
    for row, gene in enumerate((5, 0)):
        chosen = tokens.gene_index == gene
        count = torch.bincount(cell[chosen], minlength=adata.n_obs)
        assert int(count.max()) == (2 if gene == 5 else 1)
        torch.testing.assert_close(weights[row], torch.where(chosen, 1 / count[cell], 0.0))


def test_chosen_sources_are_a_part_of_all():
    whole, part = toy_adata(), toy_adata()
    run(whole, toy_source(), groupby="type")
    symbols = [f"S{gene.removeprefix('G')}" for gene in GENES]
    uns = run(part, toy_source(), symbols, sources=["S0", "S3", "S8"], gene_symbols="symbol", groupby="type")
    assert list(uns["source_names"]) == ["G0", "G3", "G8"]  # of G3 the vocabulary knows nothing
    assert list(uns["target_names"]) == GENES
    everything = frame(whole.uns["rollout_matrix"], whole.uns["rollout_matrix"]["mean"])
    found = frame(uns, uns["mean"])
    assert found[:, :, "G3"].isna().all()
    for source in ("G0", "G8"):
        np.testing.assert_array_equal(found[:, :, source], everything[:, :, source])
    assert uns["params"]["gene_symbols"] == "symbol"


def test_blocks_of_targets_and_batches_change_nothing_but_rounding(monkeypatch):
    genes = [f"G{i}" for i in range(1, 40, 2) if i % 7 != 3]
    free, tight, source = toy_adata(), toy_adata(), toy_source()
    run(free, source, genes, groupby="type", null="untrained", layers="prefix")
    monkeypatch.setattr(_gene_pairs, "readouts_that_fit", lambda *args, **options: 10)
    uns = run(tight, source, genes, groupby="type", null="untrained", layers="prefix", memory=800_000)
    whole = free.uns["rollout_matrix"]
    assert whole["params"]["genes_together"] == len(genes)
    assert uns["params"]["genes_together"] == 3
    assert uns["params"]["plan"]["batches"] > whole["params"]["plan"]["batches"]
    for name in ("mean", "null", "by_layer"):
        np.testing.assert_allclose(uns[name], whole[name], rtol=FLOOR)
    assert_same(uns["cells"], whole["cells"])
    pd.testing.assert_frame_equal(uns["targets"], whole["targets"], rtol=1e-5)


def test_as_many_rows_as_fit():
    source, longest, row = toy_source(), 1000, 72 * 1000
    fixed = 1000 * (1000 + 3 * 128 + 160)
    fit = lambda memory, wanted: readouts_that_fit(  # noqa: E731
        source, memory, longest, wanted, each=32, layers_kept=3
    )
    assert fit(10**9, 100) == 100
    for rows in (1, 7, 99):
        assert fit(int((fixed + rows * row) / 0.8) + 10, 100) == rows
        assert fit(int((fixed + rows * row) / 0.8) - 10, 100) == max(1, rows - 1)
    assert fit(1000, 100) == 1  # whether that fits is for the plan to say


def test_memory_holds_the_rows(monkeypatch):
    planned = []
    real = _batches.fit
    monkeypatch.setattr(_batches, "fit", lambda *a, **k: (planned.append(k), real(*a, **k))[1])
    run(toy_adata(), toy_source(), layers="suffix")
    assert (planned[0]["readouts"], planned[0]["observed"]) == (12, 12 * 32)
    assert planned[0]["layers_kept"] == 3
    assert planned[0]["reserved"] > 2 * 8 * 4 * 40 * (1 + 3)


def test_genes_without_tokens_have_empty_rows():
    adata = toy_adata()
    with pytest.warns(
        UserWarning, match=r"no cell of any group has a token of G3 \(1 of 2 genes\): their rows"
    ):
        uns = run(adata, toy_source(), ["G3", "G5"], groupby="type")
    assert np.isnan(uns["mean"][:, 0]).all()
    assert (uns["cells"][:, 0] == 0).all()
    assert "G3" not in set(uns["table"]["target"])
    about = uns["targets"].set_index(["group", "target"])
    assert about.loc[("T", "G3"), "cells"] == 0
    assert about.loc[("T", "G3")].drop("cells").isna().all()


def test_copy_and_file(tmp_path):
    adata = toy_adata()
    before = adata.copy()
    options = {"groupby": "type", "layers": "suffix", "null": "untrained", "backend": BACKEND}
    copied = scfast.tl.rollout_matrix(adata, toy_source(), GENES, copy=True, **options)
    assert_same(adata, before)
    copied.write_h5ad(tmp_path / "x.h5ad")
    read = anndata.read_h5ad(tmp_path / "x.h5ad")
    for key, value in copied.uns["rollout_matrix"].items():
        if key != "params":
            assert_same(read.uns["rollout_matrix"][key], value, key)
    assert_same(read.varm["rollout_matrix"], copied.varm["rollout_matrix"])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"genes": []}, ValueError, r"genes=\[\] names no gene"),
        ({"genes": ["TP53", "G5"]}, KeyError, r"genes \['TP53'\] are not in adata.var_names"),
        ({"genes": ["G3"]}, ValueError, r"no cell has a token of the genes \['G3'\], ...: they are not expr"),
        ({"sources": []}, ValueError, r"sources=\[\] names no gene"),
        ({"sources": ["TP53"]}, KeyError, r"\['TP53'\] are not in adata.var_names"),
        ({"gene_symbols": "name"}, KeyError, "gene_symbols='name' is not in adata.var"),
        ({"layers": (0, 3)}, ValueError, "layers=.* use 'prefix', 'suffix' or"),
        ({"heads": "sum"}, ValueError, "heads='sum' is not a fusion for a rollout"),
        ({"residual": 1.5}, ValueError, "residual must lie in"),
        ({"n_top": 0}, ValueError, "n_top=0 must be a whole number"),
        ({"null": "shuffled"}, ValueError, "null='shuffled' is unknown"),
        ({"key_added": "a/b"}, ValueError, "must be a name without"),
        ({"memory": "much"}, ValueError, "memory='much' is not an amount"),
        ({"memory": 20_000}, ValueError, "memory=0.02MB is too little"),
        ({"groupby": "kind"}, KeyError, "groupby='kind' is not in adata.obs"),
    ],
    ids=str,
)
def test_bad_input(options, error, message):
    adata = toy_adata()
    before = adata.copy()
    with pytest.raises(error, match=message):
        scfast.tl.rollout_matrix(adata, **({"model": toy_source(), "genes": GENES} | options))
    assert_same(adata, before)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_real_cells(cells, folders, version):
    adata, source = cells.copy(), models.load("geneformer", folders[version])
    tokens = source.tokenize(adata.X, adata.var, totals(adata))
    frequent = tokens.gene_index[tokens.gene_index >= 0].bincount()
    genes = list(adata.var_names[frequent.argsort(descending=True)[[0, 3, 60, 200]].numpy()])
    uns = run(adata, source, genes, groupby="celltype")
    exact = expected(adata, source, genes)
    exact["group"] = adata.obs["celltype"].to_numpy()[exact["cell"]]
    grouped = exact.groupby(["group", "target", "source"], observed=True)
    means = grouped[["score", "plain"]].mean()
    np.testing.assert_array_equal(frame(uns, uns["cells"])[means.index], grouped.size())
    assert_scores(frame(uns, uns["mean"])[means.index], means)
    other = uns["targets"]["mass_other"].dropna()
    assert ((other > 0.01) == (version == "v2")).all()
