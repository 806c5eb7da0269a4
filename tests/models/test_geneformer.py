"""Loading published checkpoints, and tokens as the authors' own code makes them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from scfast.models import load, names
from scfast.models.base import TokenKind, Tokens
from scfast.models.dictionaries import read_table
from scfast.models.geneformer import GeneformerSource
from tests.models import fixtures
from tests.models.fixtures import GENES, SYMBOLS


def cells(n: int = 6, genes: int = 40, seed: int = 0) -> sparse.csr_matrix:
    rng = np.random.default_rng(seed)
    return sparse.csr_matrix(rng.poisson(0.7, (n, genes)).astype(np.float32))


def var(names: Any = GENES, **columns: Any) -> pd.DataFrame:
    return pd.DataFrame(columns, index=pd.Index(names))


def cell_tokens(tokens: Tokens, name: str = "ids") -> list[list[int]]:
    return [cell.tolist() for cell in tokens.packing.split_q(getattr(tokens, name))]


# -- golden ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, GeneformerSource]:
    """Sources with the published dictionaries and a toy encoder."""
    tables = shared / "data" / "geneformer"
    made = {}
    sizes = {"V1": ("v1_gc30M", 25426, 2048), "V2": ("v2_gc104M", 20275, 4096)}
    for version, (tag, vocabulary, context) in sizes.items():
        folder = tmp_path_factory.mktemp(version)
        size: Any = {"vocab_size": vocabulary, "max_position_embeddings": context}
        fixtures.write(folder, (), ("<pad>", "<mask>"), **size)
        options: dict[str, Any] = {
            "token_dictionary": tables / f"{tag}_tokens.csv.gz",
            "gene_names": tables / f"{tag}_gene_name_to_ensembl.csv.gz",
        }
        (folder / "gene_median_dictionary.pkl").unlink()
        if version == "V2":
            options["ensembl_mapping"] = tables / "v2_gc104M_ensembl_mapping.csv.gz"
        source = load("geneformer", folder, version=version, **options)
        assert isinstance(source, GeneformerSource)
        made[version] = source
    return made


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, np.ndarray]:
    with np.load(shared / "golden" / "geneformer_tokens_a.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.fixture(scope="module")
def pbmc(shared: Path, golden: dict[str, np.ndarray]) -> anndata.AnnData:
    data = anndata.read_h5ad(shared / "data" / "cells" / "pbmc_facs_mini.h5ad")
    return data[golden["cell_index"]].copy()


@pytest.mark.parametrize("stated", [None, np.float32, np.float64])
@pytest.mark.parametrize("version", ["V1", "V2"])
def test_tokens_are_those_of_the_authors_code(
    version: str, stated: Any, published: Any, golden: Any, pbmc: anndata.AnnData
) -> None:
    source = published[version]
    totals = None if stated is None else golden["n_counts"].astype(stated)
    tokens = source.tokenize(pbmc.X, pbmc.var, totals)
    prefix = version.lower()
    ranked, offsets = golden[f"{prefix}/tokens"], golden[f"{prefix}/offsets"]
    special = source.dictionaries.special
    for cell, got in enumerate(cell_tokens(tokens)):
        whole = ranked[offsets[cell] : offsets[cell + 1]].tolist()
        lost = max(len(whole) - (2048 if version == "V1" else 4094), 0)
        assert tokens.lost_truncation[cell] == lost
        whole = whole[: len(whole) - lost]
        if version == "V2":
            whole = [special["<cls>"], *whole, special["<eos>"]]
        assert got == whole, cell
    if version == "V2":
        assert tokens.ids.tolist() == golden["v2/final_tokens"].tolist()
        assert list(tokens.lengths) == golden["v2/final_length"].tolist()
    else:
        assert list(tokens.lengths) == golden["v1/length"].tolist()
    known = pbmc.var_names.isin(source.genes) if version == "V1" else None
    if known is not None:
        expected = (pbmc.X[:, ~known] > 0).sum(axis=1)
        assert tokens.lost_vocabulary.tolist() == np.asarray(expected).ravel().tolist()


@pytest.mark.parametrize(("version", "limit"), [("V1", 300), ("V2", 256)])
def test_cells_are_cut_where_the_authors_code_cuts(
    version: str,
    limit: int,
    published: Any,
    golden: Any,
    pbmc: anndata.AnnData,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = published[version]
    monkeypatch.setattr(source, "max_tokens", limit)
    tokens = source.tokenize(pbmc.X, pbmc.var)
    prefix = f"{version.lower()}/trunc{limit}"
    assert tokens.ids.tolist() == golden[f"{prefix}_tokens"].tolist()
    assert list(tokens.lengths) == golden[f"{prefix}_length"].tolist()
    full = np.diff(golden[f"{version.lower()}/offsets"])
    room = limit - 2 * (version == "V2")
    assert tokens.lost_truncation.tolist() == np.maximum(full - room, 0).tolist()


def test_columns_are_collapsed_as_the_authors_code_does(
    published: Any, golden: Any, pbmc: anndata.AnnData
) -> None:
    source = published["V2"]
    match = source.match(pbmc.var)
    by_token = {token: gene for gene, token in source.dictionaries.tokens.items()}
    for column, gene in enumerate(golden["v2/collapsed_id"]):
        token = match.token_ids[column]
        assert (by_token[token] if token >= 0 else None) == (
            gene if gene in source.dictionaries.tokens else None
        )
    columns = source.tokenize(pbmc.X, pbmc.var).gene_index
    assert set(columns[columns >= 0].tolist()) <= set(match.target.tolist())
    assert "the index of var read as gene ids" in match.describe()


def test_symbols_are_translated(published: Any, pbmc: anndata.AnnData) -> None:
    source = published["V1"]
    by_symbol = pbmc.var.reset_index()[["symbol"]].set_index("symbol")
    match = source.match(by_symbol)
    assert match.by == "symbol"
    assert match.n_matched > 0.7 * source.match(pbmc.var).n_matched
    both = source.match(pbmc.var.reset_index().set_index("symbol"))  # ids in a column, symbols in the index
    assert (both.by, both.source) == ("id", "ensembl_id")


def test_every_token_points_at_its_column(published: Any, pbmc: anndata.AnnData) -> None:
    for source in published.values():
        tokens = source.tokenize(pbmc.X, pbmc.var)
        match = source.match(pbmc.var)
        gene = tokens.kind == TokenKind.GENE
        columns = tokens.gene_index[gene].numpy()
        assert (match.token_ids[columns] == tokens.ids[gene].numpy()).all()
        assert (tokens.gene_index[~gene] == -1).all()
        for cell, length in zip(cell_tokens(tokens, "positions"), tokens.lengths, strict=True):
            assert cell == list(range(length))


# -- tokens on toy checkpoints -----------------------------------------------------------------------------


def test_v1_and_v2_are_told_apart_by_their_special_tokens(tmp_path: Path) -> None:
    v1 = load("geneformer", fixtures.write_v1(tmp_path / "1"))
    v2 = load("geneformer", fixtures.write_v2(tmp_path / "2"))
    assert isinstance(v1, GeneformerSource)
    assert isinstance(v2, GeneformerSource)
    assert (v1.version, v1.default_readout, v1.cls_position) == ("V1", "mean", None)
    assert (v2.version, v2.default_readout, v2.cls_position) == ("V2", "cls", 0)
    assert v1.genes == v2.genes == list(GENES)
    for cell in cell_tokens(v2.tokenize(cells(), var())):
        assert (cell[0], cell[-1]) == (2, 3)
    kinds = v2.tokenize(cells(), var()).kind
    assert int((kinds == TokenKind.SPECIAL).sum()) == 12
    with pytest.raises(ValueError, match=r"version='V2', but .* is a V1 dictionary"):
        load("geneformer", tmp_path / "1", version="V2")


def test_a_cell_without_counts_is_empty(tmp_path: Path) -> None:
    counts = sparse.csr_matrix(cells().toarray() * (np.arange(6) != 2)[:, None])
    for write, length in ((fixtures.write_v1, 0), (fixtures.write_v2, 2)):
        tokens = load("geneformer", write(tmp_path / write.__name__)).tokenize(counts, var())
        assert tokens.lengths[2] == length
    nothing = load("geneformer", tmp_path / "write_v2").tokenize(counts[:0], var())
    assert (nothing.n_cells, nothing.n_tokens) == (0, 0)


def test_losses_are_counted(tmp_path: Path) -> None:
    source = load("geneformer", fixtures.write_v2(tmp_path, max_position_embeddings=8))
    names = [*GENES[:30], *(f"ENSG{n:011d}" for n in range(900, 910))]
    counts = cells()
    tokens = source.tokenize(counts, var(names))
    dense = counts.toarray() > 0
    assert tokens.lost_vocabulary.tolist() == dense[:, 30:].sum(1).tolist()
    assert tokens.lost_truncation.tolist() == np.maximum(dense[:, :30].sum(1) - 6, 0).tolist()
    assert max(tokens.lengths) == 8


def test_columns_of_one_gene_are_added_up(tmp_path: Path) -> None:
    old = "ENSG00000999999"
    mapping = {gene: gene for gene in GENES} | {old: GENES[0]}
    source = load("geneformer", fixtures.write_v2(tmp_path, ensembl_mapping=mapping))
    counts = sparse.csr_matrix(np.array([[2, 3, 2, 0], [0, 1, 0, 5]], dtype=np.float32))
    tokens = source.tokenize(counts, var([old, GENES[0], GENES[7], GENES[8]]))
    assert cell_tokens(tokens, "gene_index")[0] == [
        -1,
        1,
        2,
        -1,
    ]  # 2 + 3 in the column with the gene's own id
    assert tokens.lost_vocabulary.tolist() == [0, 0]
    versioned = source.tokenize(counts, var([old + ".3", GENES[0] + ".11", GENES[7], GENES[8]]))
    assert versioned.ids.tolist() == tokens.ids.tolist()


def test_a_vocabulary_of_symbols_is_taken_as_it_is(tmp_path: Path) -> None:
    source = load("geneformer", fixtures.write_v1(tmp_path, SYMBOLS, gene_names={}))
    assert source.genes == list(SYMBOLS)
    assert source.tokenize(cells(), var(SYMBOLS)).n_tokens == cells().nnz
    inside = source.tokenize(cells(), var(range(40), symbol=SYMBOLS))
    assert inside.n_tokens == cells().nnz


def test_formats_of_counts_agree(tmp_path: Path) -> None:
    source = load("geneformer", fixtures.write_v1(tmp_path))
    counts = cells()
    wanted = source.tokenize(counts, var()).ids
    doubled = sparse.coo_matrix(counts)
    split = sparse.csr_matrix(
        (np.tile(doubled.data / 2, 2), (np.tile(doubled.row, 2), np.tile(doubled.col, 2))), counts.shape
    )
    unsorted = counts.copy()
    unsorted.indices[:2] = unsorted.indices[:2][::-1]
    unsorted.data[:2] = unsorted.data[:2][::-1]
    unsorted.has_sorted_indices = False
    zeros = counts.copy()
    zeros.data[:3] = 0
    kinds = [counts.astype(kind) for kind in (np.int32, np.uint8, np.int64, np.float64)]
    for other in (counts.toarray(), sparse.csc_matrix(counts), *kinds):
        assert source.tokenize(other, var()).ids.tolist() == wanted.tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert source.tokenize(split, var()).ids.tolist() == wanted.tolist()
    before = unsorted.indices.copy()
    assert source.tokenize(unsorted, var()).ids.tolist() == wanted.tolist()
    assert (unsorted.indices == before).all()
    assert source.tokenize(zeros, var()).n_tokens == len(wanted) - 3


# -- errors ------------------------------------------------------------------------------------------------


def test_no_overlap_shows_both_sides(tmp_path: Path) -> None:
    source = load("geneformer", fixtures.write_v1(tmp_path))
    with pytest.raises(ValueError, match=r"no gene of the data is in the model's vocabulary") as refused:
        source.tokenize(cells(), var([f"ENSMUSG{n:011d}" for n in range(40)]))
    message = str(refused.value)
    assert "ENSMUSG00000000000" in message
    assert GENES[0] in message
    assert "another species, ENSMUSG" in message
    assert "human Ensembl gene ids" in message


def test_ids_of_the_wrong_kind_are_named(tmp_path: Path) -> None:
    source = load("geneformer", fixtures.write_v1(tmp_path, SYMBOLS, gene_names={}))
    with pytest.raises(ValueError, match=r"human Ensembl gene ids.*names or symbols.*gene_names=PATH"):
        source.tokenize(cells(), var())
    with pytest.raises(ValueError, match="plain numbers"):
        source.tokenize(cells(), var([str(n) for n in range(40)]))
    with pytest.raises(ValueError, match="not text"):
        source.tokenize(cells(), var(range(40)))


@pytest.mark.parametrize("wrong", [-1.0, np.nan, np.inf])
def test_counts_that_are_none_are_an_error(tmp_path: Path, wrong: float) -> None:
    source = load("geneformer", fixtures.write_v1(tmp_path))
    counts = cells()
    counts.data[5] = wrong
    with pytest.raises(ValueError, match=r"column 7 is .*pass raw counts"):
        source.tokenize(counts, var())


def test_normalised_values_are_warned_of(tmp_path: Path) -> None:
    source = load("geneformer", fixtures.write_v1(tmp_path))
    counts = cells()
    counts.data = np.log1p(counts.data)
    with pytest.warns(UserWarning, match=r"not whole numbers.*scfast\.pp\.recover_counts"):
        source.tokenize(counts, var())


def test_shapes_and_kinds_of_counts(tmp_path: Path) -> None:
    source = load("geneformer", fixtures.write_v1(tmp_path))
    with pytest.raises(ValueError, match="counts have 39 columns, but var describes 40 genes"):
        source.tokenize(cells(genes=39), var())
    with pytest.raises(ValueError, match="n_counts must be 6 numbers"):
        source.tokenize(cells(), var(), np.ones(5))
    with pytest.raises(ValueError, match=r"n_counts of cell 3 is 0\.0, but the cell has counts"):
        source.tokenize(cells(), var(), np.array([1, 1, 1, 0, 1, 1.0]))
    with pytest.raises(TypeError, match="complex64"):
        source.tokenize(cells().astype(np.complex64), var())
    with pytest.raises(TypeError, match="counts are <U1; numbers are needed"):
        source.tokenize(np.array([["a"] * 40]), var())


def test_load_names_what_it_knows(tmp_path: Path) -> None:
    assert names() == sorted(names())
    assert {"bioformers", "geneformer", "hf", "scgpt"} <= set(names())
    with pytest.raises(ValueError, match=r"there is no model 'gpt'; .* knows .*geneformer"):
        load("gpt", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing \(there is no such folder\)"):
        load("geneformer", tmp_path / "none")
    with pytest.raises(TypeError, match=r"dtype=torch\.float64 cannot be run"):
        load("geneformer", fixtures.write_v1(tmp_path), dtype=torch.float64)


def test_a_dictionary_of_another_model_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has tokens up to 41, but the checkpoint's token table has 30 rows"):
        load("geneformer", fixtures.write_v1(tmp_path, vocab_size=30))


def test_hf_needs_a_head(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = fixtures.write_v1(tmp_path) / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(file).items() if not name.startswith("cls.")}
    save_file(kept, file)
    source = load("geneformer", tmp_path)
    assert isinstance(source, GeneformerSource)
    with pytest.raises(ValueError, match="has no masked-gene head"):
        source.hf()


def test_csv_tables_replace_pickles(tmp_path: Path) -> None:
    source = load("geneformer", fixtures.write_v2(tmp_path / "pickles"))
    assert isinstance(source, GeneformerSource)
    folder = fixtures.write_v2(tmp_path / "csv")
    for old in folder.glob("*.pkl"):
        table = read_table(old)
        rows = ["key,value", *(f"{key},{value}" for key, value in table.items())]
        old.with_suffix(".csv").write_text("\n".join(rows))
        old.unlink()
    again = load("geneformer", folder)
    assert isinstance(again, GeneformerSource)
    assert again.dictionaries.tokens == source.dictionaries.tokens
    assert again.dictionaries.medians == source.dictionaries.medians
    for old in folder.glob("*.csv"):
        table = {
            key: json.loads(value) if key and value[0].isdigit() else value
            for key, value in read_table(old).items()
        }
        old.with_suffix(".json").write_text(json.dumps(table))
        old.unlink()
    last = load("geneformer", folder)
    assert isinstance(last, GeneformerSource)
    assert last.dictionaries.medians == source.dictionaries.medians


def test_a_v2_without_mapping_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = fixtures.write_v2(tmp_path)
    load("geneformer", folder)
    assert "Ensembl mapping" not in caplog.text
    (folder / "ensembl_mapping_dict_gc104M.pkl").unlink()
    load("geneformer", folder)
    assert "has no Ensembl mapping" in caplog.text
