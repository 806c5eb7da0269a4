"""tl.attention_shift: cosines and received attention of two models, against maps that are held and pandas."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr

import scfast
from scfast import models
from tests import materialised
from tests.same import assert_same
from tests.toy import BACKEND, ToySource, toy_adata, toy_source


def maps(source, adata):
    """Per layer and cell, [H, n, n] float64."""
    recorder = materialised.MapRecorder()
    with torch.inference_mode():
        source.forward(source.tokenize(adata.X, adata.var), recorder)
    return recorder.maps


def run(adata, *sources, **options):
    scfast.tl.attention_shift(adata, *sources, backend=BACKEND, **options)
    return adata.uns[options.get("key_added", "attention_shift")]


def two(**options):
    return toy_source(**options), toy_source(seed=7, **options)


def inner(a, b, adata):
    """[cells, N, H] inner products of the maps of two models."""
    pairs = [list(zip(*layers, strict=True)) for layers in zip(maps(a, adata), maps(b, adata), strict=True)]
    return np.stack([np.stack([(p * q).sum((1, 2)).numpy() for p, q in layer]) for layer in pairs], axis=1)


@pytest.mark.parametrize("groupby", [None, "type"])
@pytest.mark.parametrize("cls", [False, True])
def test_cosines(groupby, cls):
    adata, (a, b) = toy_adata(), two(cls=cls)
    table = run(adata, a, b, groupby=groupby)["cosine"].set_index(["group", "layer", "head"])
    dot, square_a, square_b = inner(a, b, adata), inner(a, a, adata), inner(b, b, adata)
    cosine = dot / np.sqrt(square_a * square_b)
    groups = adata.obs["type"] if groupby else pd.Series("all", adata.obs_names)
    assert len(table) == groups.nunique() * a.n_layers * a.n_heads
    for (group, layer, head), row in table.iterrows():
        cells = (groups == group).to_numpy()
        each = cosine[cells, layer, head]
        assert row["mean"] == pytest.approx(each.mean(), rel=1e-5)
        assert row["se"] == pytest.approx(each.std(ddof=1) / np.sqrt(cells.sum()), rel=1e-3)
        x, y, z = (part[cells, layer, head].sum() for part in (dot, square_a, square_b))
        assert row["concatenated"] == pytest.approx(x / np.sqrt(y * z), rel=1e-5)
        assert 0 < row["mean"] < 1


def long_table(a, b, adata):
    """A row per gene token: attention received before and after."""
    tokens = a.tokenize(adata.X, adata.var)
    received = [
        [sum(layer[cell].sum((0, 1)) for layer in maps(source, adata)).numpy() for cell in range(adata.n_obs)]
        for source in (a, b)
    ]
    rows = []
    for cell in range(adata.n_obs):
        genes = tokens.select([cell]).gene_index.tolist()
        rank = 0
        for at, gene in enumerate(genes):
            if gene < 0:
                continue
            rank += 1
            old, new = (of[cell][at] for of in received)
            rows.append((cell, f"G{gene}", rank, old, new, new - old))
    columns = ["cell", "gene", "rank", "before", "after", "change"]
    return pd.DataFrame(rows, columns=columns).join(adata.obs.reset_index(drop=True), on="cell")


@pytest.mark.parametrize("cls", [False, True])
def test_genes_and_ranks(cls):
    adata, (a, b) = toy_adata(), two(cls=cls)
    uns = run(adata, a, b, groupby="type")
    cells = long_table(a, b, adata)
    for key, by in (("genes", "gene"), ("ranks", "rank")):
        table = uns[key].set_index(["group", by])
        expected = cells.groupby(["type", by], observed=True)
        means = expected[["before", "after", "change"]].mean().reindex(table.index)
        assert set(table.index) == set(expected.size().index)
        np.testing.assert_array_equal(table["cells"], expected.size().reindex(table.index))
        for column in means:
            np.testing.assert_allclose(table[column], means[column], rtol=1e-4, atol=1e-5, err_msg=column)
        np.testing.assert_allclose(
            table["percent"], 100 * means["change"] / means["before"], rtol=1e-3, atol=1e-3
        )
        np.testing.assert_allclose(
            table["se"], expected["change"].sem().reindex(table.index), rtol=1e-3, atol=1e-5
        )
    genes = uns["genes"].set_index(["group", "gene"])
    rank = cells.groupby(["type", "gene"], observed=True)["rank"].mean().reindex(genes.index)
    np.testing.assert_allclose(genes["rank"], rank)
    for group, part in uns["genes"].groupby("group", observed=True):
        assert part["change"].abs().is_monotonic_decreasing
        for against in ("expression", "detection", "rank"):
            expected = spearmanr(part["change"], part[against]).statistic
            assert uns["groups"].loc[group, f"spearman_{against}"] == pytest.approx(expected)
    np.testing.assert_array_equal(
        uns["groups"]["cells"], adata.obs["type"].value_counts().reindex(uns["groups"].index)
    )
    mean = uns["cosine"].groupby("group", observed=True)["mean"].mean()
    np.testing.assert_allclose(uns["groups"]["cosine"], mean)


def between_donors(values, donors):
    """Standard error of the mean of ``values`` between donors, as that of a ratio of totals."""
    off = (values - values.mean()).groupby(donors).sum()
    n = len(off)
    return np.sqrt(n / (n - 1) * (off**2).sum()) / len(values) if n > 1 else np.nan


def test_errors_between_replicates():
    adata, (a, b) = toy_adata(), two()
    uns = run(adata, a, b, groupby="type", replicate_key="donor")
    plain = run(toy_adata(), a, b, groupby="type")
    cells = long_table(a, b, adata)
    for key, by in (("genes", "gene"), ("ranks", "rank")):
        table = uns[key].set_index(["group", by])
        groups = cells.groupby(["type", by], observed=True)
        expected = groups[["change", "donor"]].apply(lambda x: between_donors(x["change"], x["donor"]))
        np.testing.assert_allclose(table["se"], expected.reindex(table.index), rtol=1e-3, atol=1e-5)
        assert_same(uns[key].drop(columns="se"), plain[key].drop(columns="se"), key)
    dot, square_a, square_b = inner(a, b, adata), inner(a, a, adata), inner(b, b, adata)
    cosine = dot / np.sqrt(square_a * square_b)
    for (group, layer, head), row in uns["cosine"].set_index(["group", "layer", "head"]).iterrows():
        member = (adata.obs["type"] == group).to_numpy()
        each = pd.Series(cosine[member, layer, head])
        expected = between_donors(each, adata.obs["donor"].to_numpy()[member])
        assert row["se"] == pytest.approx(expected, rel=1e-3)
    donors = adata.obs.groupby("type", observed=True)["donor"].nunique()
    np.testing.assert_array_equal(uns["groups"]["replicates"], donors.reindex(uns["groups"].index))
    assert (plain["groups"]["replicates"] == 0).all()
    assert uns["params"]["replicate_key"] == "donor"


def test_a_model_against_itself_has_not_shifted():
    adata, source = toy_adata(), toy_source()
    uns = run(adata, source, source)
    for statistic in ("mean", "concatenated"):
        np.testing.assert_allclose(uns["cosine"][statistic], 1, rtol=1e-12)
    assert (uns["genes"]["change"] == 0).all()
    assert (uns["ranks"]["percent"] == 0).all()
    params = uns["params"]
    assert (params["model_a"], params["model_b"], params["n_layers"]) == ("toy", "toy", 3)
    assert "model" not in params


def test_exchanged_models():
    adata, (a, b) = toy_adata(), two()
    there, back = run(adata, a, b), run(adata, b, a, key_added="back")
    np.testing.assert_array_equal(there["cosine"]["mean"], back["cosine"]["mean"])
    there, back = (uns["genes"].set_index("gene")["change"] for uns in (there, back))
    np.testing.assert_allclose(there, -back.reindex(there.index), atol=1e-6)


def test_memory_and_batches_change_nothing_but_rounding():
    a, b = two()
    free, tight = toy_adata(), toy_adata()
    run(free, a, b, groupby="type")
    uns = run(tight, a, b, groupby="type", memory=150_000)
    assert uns["params"]["plan"]["batches"] > free.uns["attention_shift"]["params"]["plan"]["batches"]
    for key in ("cosine", "ranks"):
        pd.testing.assert_frame_equal(uns[key], free.uns["attention_shift"][key], rtol=1e-5, atol=1e-6)


def test_copy_and_file(tmp_path):
    adata, (a, b) = toy_adata(), two()
    before = adata.copy()
    copied = scfast.tl.attention_shift(adata, a, b, groupby="type", copy=True, backend=BACKEND)
    assert_same(adata, before)
    copied.write_h5ad(tmp_path / "x.h5ad")
    read = anndata.read_h5ad(tmp_path / "x.h5ad").uns["attention_shift"]
    for key in ("cosine", "genes", "ranks", "groups"):
        assert_same(read[key], copied.uns["attention_shift"][key], key)


def fails(error, message, a, b, change=None, **options):
    adata = toy_adata()
    adata.uns["attention_shift"] = {"from": "before"}
    if change is not None:
        change(adata)
    before = adata.copy()
    with pytest.raises(error, match=message):
        scfast.tl.attention_shift(adata, a, b, backend=BACKEND, **options)
    assert_same(adata, before)


class Unsorted(ToySource):
    """Makes tokens of its own: the last gene first."""

    def tokenize(self, counts, var, n_counts=None):
        tokens = super().tokenize(counts, var, n_counts)
        tokens.ids[:2] = tokens.ids[:2].flip(0)
        return tokens


class Short(ToySource):
    """Takes fewer genes than it says."""

    def tokenize(self, counts, var, n_counts=None):
        room, self.max_tokens = self.max_tokens, 10
        tokens = super().tokenize(counts, var, n_counts)
        self.max_tokens = room
        return tokens


GENES = toy_source().genes


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (toy_source(n_layers=2), "cannot be compared.*differ in layers: 3 and 2"),
        (toy_source(n_layers=2, cls=True), "layers: 3 and 2; position of the cls token: None and 0"),
        (toy_source(max_tokens=12), "most tokens of a cell: 24 and 12"),
        (ToySource(GENES[2:]), "vocabulary: 2 only in toy, 0 only in toy"),
        (ToySource(GENES[::-1]), "vocabulary: the same genes in another order"),
        (Unsorted(GENES), r"different tokens of the same cells \(ids in 1 of 23 cells\)"),
        (Short(GENES), r"different tokens of the same cells \(lengths of \d+ of 23 cells\)"),
        ("toy", "model='toy' is not a model"),
    ],
)
def test_models_that_cannot_be_compared(other, message):
    error = TypeError if isinstance(other, str) else ValueError
    fails(error, message, toy_source(), other)


def no_cells(adata):
    """A group whose only cell has no gene that the model knows."""
    adata.X[0] = 0
    adata.X[0, 3] = 5  # not in the vocabulary
    adata.obs["type"] = adata.obs["type"].cat.add_categories("lost")
    adata.obs.iloc[0, adata.obs.columns.get_loc("type")] = "lost"


@pytest.mark.filterwarnings("ignore:.*left out", "ignore:Changing the sparsity structure")
def test_other_bad_input():
    a, b = two()
    fails(ValueError, "no cell of lost has a gene of the models' vocabulary", a, b, no_cells, groupby="type")
    fails(KeyError, "groupby='dose' is not in adata.obs", a, b, groupby="dose")
    fails(KeyError, "replicate_key='person' is not in adata.obs", a, b, replicate_key="person")
    fails(ValueError, "memory='much' is not an amount", a, b, memory="much")
    fails(ValueError, "key_added='a/b' must be a name without", a, b, key_added="a/b")
    fails(KeyError, "counts_layer='raw' is not in adata.layers", a, b, counts_layer="raw")
    fails(ValueError, "memory=0.02MB is too little", a, b, memory=20_000)
    b.weights[1] = torch.nan
    fails(RuntimeError, "inner products of two attention maps are not finite", a, b)


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_geneformer_before_and_after(version, cells, folders):
    base = models.load("geneformer", folders[version])
    adata = cells.copy()
    uns = run(adata, base, base.untrained(3), groupby="celltype")
    assert len(uns["cosine"]) == 3 * base.n_layers * base.n_heads
    assert uns["cosine"]["mean"].between(0, 1).all()
    assert uns["ranks"]["cells"].max() == 3
    sums = [(uns["ranks"][name] * uns["ranks"]["cells"]).sum() for name in ("before", "after")]
    assert sums[1] - sums[0] == pytest.approx(
        (uns["ranks"]["change"] * uns["ranks"]["cells"]).sum(), rel=1e-3, abs=1e-3
    )
