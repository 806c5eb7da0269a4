"""tl.rank_profile: attention received by place in the encoding, against maps and plain loops."""

from __future__ import annotations

from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest

import scfast
from scfast import models
from scfast.models.base import TokenKind
from scfast.run import Counts, EqualLength
from tests import materialised
from tests.same import assert_same
from tests.toy import BACKEND, ToySource, toy_adata, toy_source


def run(adata, model, **options):
    scfast.tl.rank_profile(adata, model, backend=BACKEND, **options)
    return adata.uns["rank_profile"]


def by_rank(source, tokens):
    """What the gene tokens of each cell receive, in order: float64 [n] per cell, and their columns."""
    received, columns = [], []
    for cell, each in enumerate(materialised.received(source, tokens)):
        alone = tokens.select([cell])
        genes = (alone.kind == TokenKind.GENE).numpy()
        received.append(each.sum((0, 1))[genes])
        columns.append(alone.gene_index.numpy()[genes])
    return received, columns


def check(table, received, cells):
    """A profile of some cells, rank by rank."""
    longest = max(len(received[cell]) for cell in cells)
    assert table["rank"].tolist() == list(range(1, longest + 1))
    for rank, row in zip(range(longest), table.itertuples(), strict=True):
        at = np.array([received[cell][rank] for cell in cells if len(received[cell]) > rank])
        assert row.cells == len(at)
        assert row.sum == pytest.approx(at.sum(), rel=1e-5)
        assert row.mean == pytest.approx(at.mean(), rel=1e-5)
        if len(at) > 1:
            assert row.se == pytest.approx(at.std(ddof=1) / len(at) ** 0.5, rel=1e-3, abs=1e-6)
        else:
            assert np.isnan(row.se)


@pytest.mark.parametrize("cls", [False, True])
def test_one_model(cls):
    adata, source = toy_adata(), toy_source(cls=cls)
    received, _ = by_rank(source, source.tokenize(adata.X, adata.var))
    uns = run(adata, source)
    assert set(uns) == {"table", "lengths", "params"}
    assert "change" not in uns["table"]
    check(uns["table"], received, range(adata.n_obs))
    lengths = [len(part) for part in received]
    about = uns["lengths"].iloc[0]
    assert (about["cells"], about["median"]) == (23, np.median(lengths))
    assert (about["shortest"], about["longest"]) == (min(lengths), max(lengths))


def test_groups_and_bins_of_length():
    adata, source = toy_adata(60), toy_source()
    received, _ = by_rank(source, source.tokenize(adata.X, adata.var))
    lengths = np.array([len(part) for part in received])
    uns = run(adata, source, groupby="type", quantiles=3)
    bins = list(uns["table"]["lengths"].cat.categories)
    edges = [tuple(map(int, name.split("-"))) for name in bins]
    assert [first for first, _ in edges] == sorted(first for first, _ in edges)
    assert edges[0][0] == lengths.min()
    assert edges[-1][1] == lengths.max()
    sizes = [np.sum((lengths >= low) & (lengths <= high)) for low, high in edges]
    assert sum(sizes) == 60
    assert max(sizes) < 2 * min(sizes)
    seen = 0
    for (group, name), part in uns["table"].groupby(["group", "lengths"], observed=True):
        low, high = edges[bins.index(name)]
        cells = np.flatnonzero((adata.obs["type"] == group) & (lengths >= low) & (lengths <= high))
        check(part, received, cells)
        about = uns["lengths"].query("group == @group and lengths == @name").iloc[0]
        assert about["cells"] == len(cells)
        assert about["median"] == np.median(lengths[cells])
        seen += len(cells)
    assert seen == 59  # one cell has no group


def test_cells_all_of_one_length_fall_into_one_bin():
    adata = toy_adata()
    adata.X = np.ones_like(adata.X.toarray())
    uns = run(adata, toy_source(), quantiles=4)
    assert uns["lengths"]["lengths"].tolist() == ["24-24"]


def test_several_models_and_change():
    adata, old = toy_adata(), toy_source()
    new, third = old.untrained(1), old.untrained(2)
    uns = run(adata, {"old": old, "new": new, "third": third}, groupby="type")
    table = uns["table"]
    assert list(table["model"].cat.categories) == ["old", "new", "third"]
    assert table.loc[table["model"] == "old", "change"].isna().all()
    frames = {name: part.set_index(["group", "rank"]) for name, part in table.groupby("model", observed=True)}
    for name, source in (("new", new), ("third", third)):
        alone = toy_adata()
        single = run(alone, source, groupby="type")["table"].set_index(["group", "rank"])
        np.testing.assert_allclose(frames[name]["sum"], single["sum"])
        before = frames["old"]["sum"]
        np.testing.assert_allclose(frames[name]["change"], 100 * (frames[name]["sum"] - before) / before)
        assert frames[name]["change"].abs().max() > 0.1
    assert set(uns["params"]["runs"]) == {"old", "new", "third"}


def test_marked_genes():
    adata, source = toy_adata(), toy_source()
    received, columns = by_rank(source, source.tokenize(adata.X, adata.var))
    uns = run(adata, source, groupby="type", genes=["S5", "S0", "S3"], gene_symbols="symbol")
    marks = uns["genes"].set_index(["group", "label"])
    assert list(uns["genes"]["gene"].cat.categories) == ["G5", "G0", "G3"]
    for group in adata.obs["type"].cat.categories:
        cells = np.flatnonzero(adata.obs["type"] == group)
        for label, gene in (("S5", 5), ("S0", 0)):
            found = [(np.flatnonzero(columns[cell] == gene), received[cell]) for cell in cells]
            places = [where[0] for where, _ in found if len(where)]
            row = marks.loc[(group, label)]
            assert row["cells"] == len(places)
            assert row["rank"] == pytest.approx(1 + np.mean(places))
            assert row["mean"] == pytest.approx(
                np.mean([values[where[0]] for where, values in found if len(where)]), rel=1e-5
            )
        assert marks.loc[(group, "S3"), "cells"] == 0  # not in the vocabulary
        assert np.isnan(marks.loc[(group, "S3"), "rank"])


@pytest.mark.parametrize("cls", [False, True])
def test_equal_length(cls):
    """The drawn tokens keep their order and stand without gaps; the draw depends on row and seed alone."""
    adata, source = toy_adata(), toy_source(cls=cls)
    whole = source.tokenize(adata.X, adata.var)
    drawn = EqualLength(adata.X, adata.var, n_genes=9, seed=3)
    _, tokens = drawn.tokenize(source, np.arange(adata.n_obs))
    assert set(tokens.lengths) == {9 + cls}
    for cell in range(adata.n_obs):
        mine, all_ = tokens.select([cell]), whole.select([cell])
        assert mine.positions.tolist() == list(range(9 + cls))
        assert (mine.kind == TokenKind.SPECIAL).sum() == cls
        places = [all_.ids.tolist().index(token) for token in mine.ids.tolist()]
        assert places == sorted(places)
        _, alone = drawn.tokenize(source, np.array([cell]))
        assert alone.ids.tolist() == mine.ids.tolist()
    other = EqualLength(adata.X, adata.var, n_genes=9, seed=4).tokenize(source, np.arange(adata.n_obs))[1]
    assert other.ids.tolist() != tokens.ids.tolist()
    _, untouched = Counts(adata.X, adata.var).tokenize(source, np.arange(adata.n_obs))
    assert untouched.ids.tolist() == whole.ids.tolist()

    received, _ = by_rank(source, tokens)
    with_median = run(adata, source, equal_length=9, seed=3)
    check(with_median["table"], received, range(adata.n_obs))
    assert with_median["lengths"]["longest"].item() == max(whole.lengths) - cls
    assert with_median["params"]["equal_length"] == 9


def test_shorter_cells_are_left_out():
    adata, source = toy_adata(), toy_source()
    lengths = np.array(source.tokenize(adata.X, adata.var).lengths)
    shorter = int((lengths < 17).sum())
    with pytest.warns(UserWarning, match=f"{shorter} of 23 cells have fewer than equal_length=17") as seen:
        uns = run(adata, source, equal_length=17)
    assert [warning.filename for warning in seen] == [__file__]
    assert uns["table"]["cells"].tolist() == [23 - shorter] * 17
    assert run(toy_adata(), source, equal_length="shortest")["table"]["rank"].max() == lengths.min()


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_real_cells(cells, folders, version):
    adata, source = cells.copy(), models.load("geneformer", folders[version])
    tokens = source.tokenize(adata.X, adata.var, adata.obs["n_counts"].to_numpy())
    received, _ = by_rank(source, tokens)
    uns = run(adata, [source, source.untrained(0)])
    check(uns["table"][uns["table"]["model"] == source.name], received, range(adata.n_obs))


@pytest.mark.parametrize("memory", ["120KB", "1GB"])
def test_any_batch_size_gives_the_same_result(memory, monkeypatch):
    whole = run(toy_adata(), toy_source(), equal_length="shortest")["table"]
    monkeypatch.setattr("scfast.run.runner.AHEAD_TOKENS", 100)  # tokens made in several goes
    uns = run(toy_adata(), toy_source(), equal_length="shortest", memory=memory)
    pd.testing.assert_frame_equal(uns["table"], whole, rtol=2e-6, atol=1e-8)


def test_same_bits_copy_and_file(tmp_path):
    options = {"genes": ["G0"], "groupby": "type", "quantiles": 2, "equal_length": 8, "seed": 1}
    pair = {"a": toy_source(), "b": toy_source().untrained()}
    first, second = toy_adata(), toy_adata()
    run(first, pair, **options)
    run(second, pair, **options)
    assert_same(second, first)
    before = toy_adata()
    copied = scfast.tl.rank_profile(before, pair, backend=BACKEND, copy=True, **options)
    assert_same(before, toy_adata())
    copied.write_h5ad(tmp_path / "a.h5ad")
    assert_same(anndata.read_h5ad(tmp_path / "a.h5ad"), copied)


class Reversed(ToySource):
    """The same genes in another order: lengths agree, sequences do not."""

    def tokenize(self, counts, var, n_counts=None):
        tokens = super().tokenize(counts, var, n_counts)
        return replace(tokens, gene_index=tokens.gene_index.flip(0), ids=tokens.ids.flip(0))


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (ValueError, "quantiles=1 must be a whole number from 2", {"quantiles": 1}),
        (ValueError, "equal_length=0 must be a number of gene tokens", {"equal_length": 0}),
        (ValueError, "equal_length=500: the longest cell has 24 gene tokens", {"equal_length": 500}),
        (KeyError, r"genes \['G99'\] are not in adata.var_names", {"genes": ["G0", "G99"]}),
        (KeyError, "gene_symbols='name' is not in adata.var", {"genes": ["a"], "gene_symbols": "name"}),
        (KeyError, "groupby='kind'", {"groupby": "kind"}),
        (ValueError, "are called toy, toy: tell them apart", {"model": [toy_source(), toy_source()]}),
        (ValueError, "holds no model", {"model": []}),
        (ValueError, r"cannot be called \['a/b'\]", {"model": {"a/b": toy_source()}}),
        (
            ValueError,
            "'a' and 'b' read different sequences",
            {"model": {"a": toy_source(), "b": ToySource([f"G{i}" for i in range(30)])}},
        ),
        (
            ValueError,
            r"read different sequences of genes from the same cells \(0 of 23 differ in length\)",
            {"model": {"a": toy_source(), "b": Reversed(toy_source().genes)}},
        ),
        (TypeError, "scfast.models.load", {"model": "geneformer"}),
    ],
)
def test_bad_arguments_leave_no_trace(error, message, options):
    adata = toy_adata()
    before = adata.copy()
    with pytest.raises(error, match=message):
        scfast.tl.rank_profile(adata, **({"model": toy_source(), "backend": BACKEND} | options))
    assert_same(adata, before)
