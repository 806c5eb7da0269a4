"""Cell sentences: the authors' draws, the order of genes, seeds, pads, and what is lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from scfast import models, tl
from scfast.models.base import TokenKind, Tokens
from scfast.models.uce import UceSource
from scfast.models.uce_tokens import Genes, SentenceRules, draw, sentence, weights_of
from scfast.run import Counts
from tests.models import uce_files

VAR = pd.DataFrame(index=[*uce_files.HUMAN, "UNKNOWN1", "UNKNOWN2"])


def counts(cells: int = 9, seed: int = 0) -> sparse.csr_matrix:
    rng = np.random.default_rng(seed)
    return sparse.csr_matrix(rng.poisson(0.7, (cells, len(VAR))) * rng.integers(1, 9, len(VAR)))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Any:
    written = uce_files.write(tmp_path_factory.mktemp("uce"))
    return lambda **options: models.load("uce", written.folder, **{**written.options, **options})


def per_cell(tokens: Tokens) -> list[list[int]]:
    return [part.tolist() for part in tokens.packing.split_q(tokens.ids)]


def test_draws_and_sentences_of_the_original(shared: Path) -> None:
    """One generator over all cells, as in the authors' code; genes that start at one place may stand in any order."""
    golden = np.load(shared / "golden" / "uce_a.npz")
    pad_length, size, _, offset, _, _, seed = golden["in/params"].tolist()
    genes = Genes(golden["in/pe_idx"], golden["in/chroms"], golden["in/starts"])
    start_of = dict(zip(golden["in/pe_idx"].tolist(), golden["in/starts"].tolist(), strict=True))
    rng = np.random.RandomState(seed)
    for cell, length in enumerate(golden["in/lengths"]):
        weights = weights_of(golden["in/counts"][cell])
        np.testing.assert_allclose(weights, golden[f"draw/weights_{cell}"], rtol=1e-6)
        drawn, order = draw(weights, genes.chromosomes, size, rng)
        assert drawn.tolist() == golden[f"draw/choice_{cell}"].tolist()
        assert order.tolist() == golden[f"draw/chrom_order_{cell}"].tolist()
        ours = sentence(drawn, order, genes, SentenceRules(size, offset, pad_length)).ids
        theirs = golden["in/token_ids"][cell, :length]
        assert sorted(ours) == sorted(theirs)
        assert [start_of.get(i, -i) for i in ours.tolist()] == [start_of.get(i, -i) for i in theirs.tolist()]


def test_a_sentence_goes_chromosome_by_chromosome_and_by_start() -> None:
    genes = Genes(
        rows=np.array([10, 11, 12, 13]), chromosomes=np.array([2, 0, 2, 2]), starts=np.array([9, 5, 9, 1])
    )
    made = sentence(np.array([2, 0, 1, 2, 3]), np.array([2, 0]), genes, SentenceRules(5, 100, 64))
    assert made.ids.tolist() == [3, 102, 13, 10, 12, 12, 2, 100, 11, 2]  # the tie at 9 by number
    assert made.genes.tolist() == [-1, -1, 3, 0, 2, 2, -1, -1, 1, -1]
    assert made.kinds.tolist() == [1, 2, 0, 0, 0, 0, 2, 2, 0, 2]
    assert sentence(np.array([2, 0]), np.array([2]), genes, SentenceRules(2, 100, 3)).ids.tolist() == [
        3,
        102,
        10,
    ]


def test_what_is_drawn_depends_on_the_cell_and_the_seed_alone(source: Any) -> None:
    x = counts()
    tokens = source().tokenize(x, VAR)
    alone = [per_cell(source().tokenize(x[row], VAR))[0] for row in range(9)]
    assert per_cell(tokens) == alone
    assert per_cell(source().tokenize(x[[4, 2]], VAR)) == [alone[4], alone[2]]
    assert per_cell(source(seed=1).tokenize(x, VAR)) != alone
    # columns that the model does not know, or that the cell does not express, change nothing
    assert per_cell(source().tokenize(x[:, :60], VAR[:60])) == alone


def test_tokens_say_what_they_stand_for_and_what_is_lost(source: Any) -> None:
    x = counts()
    loaded = source()
    tokens = loaded.tokenize(x, VAR)
    gene = tokens.kind == int(TokenKind.GENE)
    assert ((tokens.gene_index >= 0) == gene).all()
    rows = torch.from_numpy(loaded.species_genes.genes.rows)
    assert torch.equal(tokens.ids[gene], rows[tokens.gene_index[gene]])
    assert (torch.bincount(tokens.packing.cell_of_query()[gene]) == 24).all()
    dense = x.toarray() > 0
    for cell, columns in enumerate(tokens.packing.split_q(tokens.gene_index)):
        drawn = columns[columns >= 0].unique().numpy()
        assert dense[cell][drawn].all()
        assert tokens.lost_vocabulary[cell] == dense[cell, 60:].sum()
        assert tokens.lost_truncation[cell] == dense[cell, :60].sum() - len(drawn)


def test_an_empty_cell_is_cls_alone(source: Any) -> None:
    x = counts(3).tolil()
    x[1] = 0
    x[1, 61] = 5  # a gene that the model does not know
    tokens = source().tokenize(x.tocsr(), VAR)
    assert per_cell(tokens)[1] == [3]
    assert tokens.lost_vocabulary[1] == 1
    assert source().tokenize(counts(0), VAR).n_cells == 0


def test_frequent_genes_are_drawn_by_log1p_of_their_counts(source: Any) -> None:
    x = sparse.csr_matrix(np.r_[[1, 7, 63], np.zeros(59)][None].astype(int))
    tokens = source(sample_size=1500).tokenize(x, VAR)
    drawn = np.bincount(tokens.gene_index[tokens.gene_index >= 0].numpy(), minlength=3)
    expected = 1500 * np.array([1, 3, 6]) / 10
    assert (np.abs(drawn - expected) < 5 * np.sqrt(expected)).all()


def test_published_cells_are_padded_to_their_batch(source: Any) -> None:
    x = counts()
    plain, padded = source().tokenize(x, VAR), source(masking="published", batch_size=4).tokenize(x, VAR)
    lengths = plain.lengths
    assert padded.lengths == tuple(max(lengths[c // 4 * 4 : c // 4 * 4 + 4]) for c in range(9))
    for cell, ids in enumerate(per_cell(padded)):
        assert ids == per_cell(plain)[cell] + [0] * (padded.lengths[cell] - lengths[cell])
    pad = padded.kind == int(TokenKind.PAD)
    assert pad.any()
    assert (padded.gene_index[pad] == -1).all()


def test_published_batches_are_those_of_the_data_whatever_is_asked_for(source: Any) -> None:
    loaded, data = source(masking="published", batch_size=4), Counts(counts(), VAR)
    everything = loaded.tokenize(data.matrix, VAR)
    rows = np.array([8, 1, 6])
    block, tokens = data.tokenize(loaded, rows)
    assert per_cell(tokens) == per_cell(everything.select(rows))
    assert (block.toarray() == data.matrix[rows].toarray()).all()


@pytest.mark.parametrize("masking", ["strict", "published"])
def test_rollout_sums_the_tokens_of_a_gene_and_reports_the_rest(source: Any, masking: str) -> None:
    import anndata

    adata = anndata.AnnData(counts().astype(np.float32), var=VAR)
    loaded: UceSource = source(masking=masking, batch_size=4)
    tl.rollout(adata, loaded, progress=False)
    scores = adata.layers["rollout"]
    tokens = loaded.tokenize(adata.X, adata.var)
    for cell, columns in enumerate(tokens.packing.split_q(tokens.gene_index)):
        assert scores[cell].nnz == len(columns[columns >= 0].unique())
    groups = adata.uns["rollout"]["groups"].iloc[0]
    mass = groups[["mass_gene", "mass_special", "mass_chromosome", "mass_pad"]].to_numpy(dtype=float)
    assert mass.sum() == pytest.approx(1, abs=1e-5)
    assert scores.sum(1).mean() == pytest.approx(mass[0], abs=1e-6)
    assert (mass[3] > 0) == (masking == "published")
    assert mass[1:3].min() > 0
    settings = adata.uns["rollout"]["params"]["model_settings"]
    assert settings["masking"] == masking
    assert ("batch_size" in settings) == (masking == "published")


@pytest.mark.parametrize("layout", ["symbols", "ids first"])
def test_genes_are_found_by_ensembl_id_first_then_by_symbol(source: Any, layout: str) -> None:
    ids = [f"ENSG{number:011d}" for number in range(3)]
    names = {"GENE5": ids[0], "GENE6": ids[1]}
    var = pd.DataFrame({"symbol": ["gene1", "GENE2", "GENE3"]}, index=[f"{ids[0]}.4", ids[1], ids[2]])
    match = source(gene_names=names if layout == "ids first" else None).match(var)
    assert match.gene.tolist() == ([5, 6, 3] if layout == "ids first" else [1, 2, 3])
    told = match.describe()
    assert "3 of 3 genes are in the vocabulary" in told
    assert "1 by symbol in var['symbol']" in told or layout == "symbols"
    assert "0 are lost" in told


def test_data_of_another_species_are_refused(source: Any) -> None:
    with pytest.raises(ValueError, match=r"Ensembl ids of another species \(ENSMUSG\.\.\..*species='mouse'"):
        source().match(pd.DataFrame({"gene_ids": ["ENSMUSG00000000001"]}, index=["GENE1"]))
    with pytest.raises(ValueError, match=r"40 of 40 symbols are spelled as in mouse \(Gene0"):
        source().match(pd.DataFrame(index=list(uce_files.MOUSE)))
    assert source(species="mouse").match(pd.DataFrame(index=list(uce_files.MOUSE))).by_symbol == 40
    with pytest.raises(
        ValueError, match=r"no gene of the data is one of the model's human genes: the index of var"
    ):
        source().match(pd.DataFrame(index=["ABC", "DEF"]))
    with pytest.raises(ValueError, match="counts are finite and at least 0"):
        source().tokenize(-counts(), VAR)
