"""scGPT's tokens: bins as the authors' code makes them, and choices that depend on the cell and the seed alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse, stats

from scfast import models
from scfast.models import checkpoint
from scfast.models.base import TokenKind, Tokens
from scfast.models.scgpt import ScgptSource
from scfast.models.scgpt_tokens import drawn, fingerprints
from scfast.reference.bin_values import quantile_bins, random
from tests.models import scgpt_files
from tests.models.scgpt_files import GENES


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scgpt_files.write(tmp_path_factory.mktemp("scgpt"))


def load(folder: Path, **options: Any) -> ScgptSource:
    source = models.load("scgpt", folder, **options)
    assert isinstance(source, ScgptSource)
    return source


def cells(n: int = 6, genes: int = len(GENES), seed: int = 0) -> sparse.csr_matrix:
    rng = np.random.default_rng(seed)
    return sparse.csr_matrix(rng.poisson(1.0, (n, genes)).astype(np.float32))


def var(names: Any = GENES, **columns: Any) -> pd.DataFrame:
    return pd.DataFrame(columns, index=pd.Index(names))


def same(one: Tokens, other: Tokens) -> None:
    assert one.lengths == other.lengths
    for name in ("ids", "positions", "values", "kind", "lost_vocabulary", "lost_truncation"):
        assert getattr(one, name).tolist() == getattr(other, name).tolist(), name


def test_tokens_of_a_cell(folder: Path) -> None:
    row = np.zeros(len(GENES), dtype=np.float32)
    row[[4, 7, 9, 30]] = [1, 8, 8, 2]
    source = load(folder)
    counts = sparse.csr_matrix(np.stack([row, 0 * row]))
    tokens = source.tokenize(counts, var())
    cls = source.rules.cls
    assert tokens.lengths == (5, 1)
    assert tokens.ids.tolist() == [cls, 7, 9, 30, 4, cls]
    assert tokens.gene_index.tolist() == [-1, 7, 9, 30, 4, -1]
    assert tokens.positions.tolist() == [0, 1, 2, 3, 4, 0]
    special, gene = int(TokenKind.SPECIAL), int(TokenKind.GENE)
    assert tokens.kind.tolist() == [special, gene, gene, gene, gene, special]
    assert tokens.values is not None
    # edges lie evenly between 1, 2, 8 and 8: the lowest count gets bin 1, the next that of the edges up to it
    values = tokens.values.tolist()
    assert values[0] == values[5] == -2
    assert values[4] == 1
    assert values[3] == 17
    assert all(33 < value <= 50 for value in values[1:3])
    assert load(folder, cls_value=0).tokenize(counts, var()).values.tolist()[::5] == [0, 0]


@pytest.mark.filterwarnings("ignore:most values are not whole numbers")
@pytest.mark.parametrize("row", [0, 1, 2, 3, 4, 5, 7])
def test_bins_are_those_of_the_original(shared: Path, tmp_path: Path, row: int) -> None:
    """The formula gives the golden bins from the golden random numbers, and the tokens theirs from their own."""
    golden = np.load(shared / "golden" / "scgpt_binning_a.npz")
    counts = golden[f"row_{row}"]
    (columns,) = np.nonzero(counts)
    exact = quantile_bins(counts[columns], 51, golden[f"rand_seed0_row_{row}"])
    assert np.array_equal(exact, golden[f"binned51_row_{row}"][0][columns])

    genes = [f"G{number}" for number in range(len(counts))]
    source = load(scgpt_files.write(tmp_path, genes), seed=7)
    cell = sparse.csr_matrix(counts[None])
    tokens = source.tokenize(cell, var(genes))
    uniforms = random(7, fingerprints(cell)[0], columns)
    bins = np.zeros(len(counts))
    bins[columns] = quantile_bins(counts[columns], 51, uniforms)
    assert tokens.values is not None
    assert np.array_equal(tokens.values[1:].numpy(), bins[tokens.ids[1:].numpy()])


def test_choices_depend_on_the_cell_and_the_seed_alone(folder: Path) -> None:
    source, counts = load(folder, max_tokens=16), cells(12)
    whole = source.tokenize(counts, var())
    assert int(whole.lost_truncation.sum()) > 0
    for step in (1, 5):
        for start in range(0, 12, step):
            rows = list(range(start, min(start + step, 12)))
            same(source.tokenize(counts[rows], var()), whole.select(rows))
    order = np.random.default_rng(1).permutation(len(GENES))
    shuffled = source.tokenize(counts[:, order], var(np.array(GENES)[order]))
    same(shuffled, whole)
    assert (
        order[shuffled.gene_index[shuffled.gene_index >= 0]] == whole.gene_index[whole.gene_index >= 0]
    ).all()
    same(source.tokenize(counts.astype(np.int64), var()), whole)
    other = load(folder, max_tokens=16, seed=1).tokenize(counts, var())
    assert other.ids.tolist() != whole.ids.tolist()
    full, other = (load(folder, seed=seed).tokenize(counts, var()) for seed in (0, 1))
    assert full.ids.tolist() == other.ids.tolist()
    assert full.values.tolist() != other.values.tolist()


def test_bins_are_those_among_all_genes(folder: Path) -> None:
    """Drawn genes keep the bins that they have where none is left out."""
    counts = cells(5)
    whole = load(folder).tokenize(counts, var())
    some = load(folder, max_tokens=11).tokenize(counts, var())
    for cell in range(5):
        one, other = whole.select([cell]), some.select([cell])
        assert other.n_tokens == 11
        bins = dict(zip(one.ids.tolist(), one.values.tolist(), strict=True))
        assert [bins[gene] for gene in other.ids.tolist()] == other.values.tolist()
        assert int(other.lost_truncation[0]) == one.n_tokens - 11


def test_every_gene_is_drawn_as_often() -> None:
    """20,000 draws of 10 out of 40: counts of genes and of neighbours are those of chance."""
    n = 20_000
    counts = sparse.csr_matrix(np.ones((n, 40), dtype=np.float32))
    kept = drawn(counts, np.arange(n), 10, seed=3).reshape(n, 40)
    assert (kept.sum(1) == 10).all()
    expected = n * 10 / 40
    chi2 = (
        (kept.sum(0) - expected) ** 2 / (expected * 0.75)
    ).sum()  # a gene's count is binomial, all sum to 10 n
    assert stats.chi2.sf(chi2 * 39 / 40, 39) > 1e-4
    both = (kept[:, :-1] & kept[:, 1:]).sum()
    chance = 39 * n * (10 / 40) * (9 / 39)
    assert abs(both - chance) < 5 * chance**0.5


@given(st.integers(0, 2**31), st.integers(1, 5))
def test_fingerprints_tell_cells_apart(seed: int, n: int) -> None:
    counts = cells(n, 20, seed)
    keys = fingerprints(counts)
    distinct = len({row.tobytes() for row in counts.toarray()})
    assert len(set(keys.tolist())) == distinct
    swapped = counts.toarray()[:, ::-1].copy()
    assert fingerprints(sparse.csr_matrix(swapped)).tolist() != keys.tolist() or (swapped == counts).all()


def test_genes_are_found_by_symbol_or_by_translated_id(folder: Path) -> None:
    counts = cells(3, 60)
    wanted = load(folder).tokenize(counts, var())
    ids = [f"ENSG{number:011d}" for number in range(60)]
    same(load(folder).tokenize(counts, var(ids, feature_name=GENES)), wanted)
    names = dict(zip(GENES, ids, strict=True))
    same(load(folder, gene_names=names).tokenize(counts, var([f"{gene}.3" for gene in ids])), wanted)
    with pytest.raises(ValueError, match="no gene of the data is in the model's vocabulary"):
        load(folder).tokenize(counts, var(ids))


def test_columns_of_one_gene_are_added_up_and_losses_counted(folder: Path) -> None:
    counts = sparse.csr_matrix(np.array([[1, 2, 5, 9, 0]], dtype=np.float32))
    tokens = load(folder).tokenize(counts, var(["GENE3", "GENE1", "GENE3", "OTHER", "ELSE"]))
    assert tokens.ids.tolist() == [load(folder).rules.cls, 2, 0]
    assert tokens.gene_index.tolist() == [-1, 0, 1]
    assert tokens.values.tolist()[1:] == [50, 1]
    assert tokens.lost_vocabulary.tolist() == [1]
    assert tokens.lost_truncation.tolist() == [0]


@pytest.mark.parametrize("value", [-1.0, np.nan, np.inf])
def test_values_that_are_no_counts(folder: Path, value: float) -> None:
    counts = cells(3).toarray()
    counts[1, 7] = value
    with pytest.raises(ValueError, match=r"cell 1 has .* of GENE8; .* raw counts"):
        load(folder).tokenize(sparse.csr_matrix(counts), var())


def test_normalised_values_are_said_to_be_none(folder: Path) -> None:
    logs = cells(4)
    logs.data = np.log1p(logs.data * 1.7)
    with pytest.warns(UserWarning, match="look normalised or log-transformed, and bins will not be those"):
        load(folder).tokenize(logs, var())


def test_real_cells(shared: Path, tmp_path: Path) -> None:
    """The published vocabulary: genes of real cells, drawn where the context is short."""
    genes = checkpoint.read_config(shared / "data" / "scgpt", "default_census_vocab.json")
    folder = scgpt_files.write(tmp_path, sorted(genes, key=genes.__getitem__), special=())
    data = anndata.read_h5ad(shared / "data" / "cells" / "pbmc_facs_mini.h5ad")[:20].copy()
    source = load(folder, max_tokens=300)
    tokens = source.tokenize(data.X, data.var)
    expressed = np.asarray((data.X > 0).sum(axis=1)).ravel()
    kept = np.array(tokens.lengths) - 1
    assert kept.max() == 299
    assert (kept + tokens.lost_truncation.numpy() + tokens.lost_vocabulary.numpy() == expressed).all()
    assert source.match(data.var).n_matched > 0.8 * data.n_vars
    assert source.rules.cls == 60695
