import json

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

import scfast

QUICK = {"steps": 2, "batch_tokens": 400, "progress": False}


@pytest.fixture
def adata() -> ad.AnnData:
    rng = np.random.default_rng(0)
    adata = ad.AnnData(sparse.csr_matrix(rng.poisson(0.8, size=(40, 25)).astype(np.float32)))
    adata.var_names = [f"gene{i}" for i in range(25)]
    adata.var["ensembl_id"] = [f"ENSG{i:011d}" for i in range(25)]
    return adata


def test_the_folder_is_read_back_with_the_vocabulary_and_medians_of_the_data(adata, tmp_path):
    adata.X = sparse.csr_matrix(adata.X.toarray() * (np.arange(25) != 4))
    log = scfast.tl.pretrain(adata, tmp_path / "model", **QUICK)
    assert log["finished"]
    model = scfast.models.load("geneformer", tmp_path / "model")
    assert model.genes == [f"gene{i}" for i in range(25) if i != 4]
    assert (model.n_layers, model.n_heads, model.max_tokens) == (2, 4, 512)
    held = json.loads((tmp_path / "model" / "gene_median_dictionary.json").read_text())
    expected = scfast.pp.gene_medians(adata).dropna()
    assert held == pytest.approx(expected.to_dict())


def test_vocabulary_and_medians_given(adata, tmp_path):
    genes = ["gene7", "elsewhere", "gene2"]
    medians = {"gene2": 2.0, "gene7": 0.5, "elsewhere": 3.0, "unused": 9.0}
    scfast.tl.pretrain(adata, tmp_path, vocabulary=genes, medians=medians, **QUICK)
    model = scfast.models.load("geneformer", tmp_path)
    assert model.genes == genes
    assert json.loads((tmp_path / "token_dictionary.json").read_text()) == {
        "<pad>": 0,
        "<mask>": 1,
        "gene7": 2,
        "elsewhere": 3,
        "gene2": 4,
    }
    tokens = model.tokenize(adata.X, adata.var)
    assert set(tokens.gene_index.tolist()) <= {7, 2}


def test_ids_from_a_column(adata, tmp_path):
    scfast.tl.pretrain(adata, tmp_path, gene_ids="ensembl_id", **QUICK)
    model = scfast.models.load("geneformer", tmp_path)
    assert model.genes[0] == "ENSG00000000000"
    assert model.tokenize(adata.X, adata.var).n_tokens == adata.X.nnz


def test_counts_in_a_layer(adata, tmp_path):
    adata.layers["counts"], adata.X = adata.X, sparse.csr_matrix(-np.ones(adata.shape))
    scfast.tl.pretrain(adata, tmp_path, counts_layer="counts", **QUICK)
    with pytest.raises(ValueError, match="negative"):
        scfast.tl.pretrain(adata, tmp_path / "other", **QUICK)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"preset": "huge"}, ValueError, "preset='huge' is unknown; use one of 'tiny'"),
        ({"steps": 3, "epochs": 2}, ValueError, "not both"),
        ({"steps": 0}, ValueError, "at least 1"),
        ({"mask": 1.5}, ValueError, "mask must lie between 0 and 1"),
        ({"held_out": 0.0}, ValueError, "held_out must lie between"),
        ({"count_noise": 2.0}, ValueError, "count_noise must lie in"),
        ({"lr": -1.0}, ValueError, "lr must be positive"),
        ({"vocabulary": ["ENSG1", "ENSG2"]}, ValueError, "no gene of the vocabulary"),
        ({"vocabulary": ["gene1", "gene1"]}, ValueError, "more than once"),
        ({"vocabulary": ["gene1", "gene2"], "medians": {"gene1": 1.0}}, ValueError, "lack 1 genes.*'gene2'"),
        ({"medians": {"x": 1.0}}, ValueError, "none of the genes"),
        ({"medians": {"gene1": 0.0}}, ValueError, "'gene1' must be positive"),
        ({"gene_ids": "nowhere"}, KeyError, "nowhere"),
        ({"counts_layer": "nowhere"}, KeyError, "nowhere"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_written(adata, tmp_path, arguments, kind, message):
    with pytest.raises(kind, match=message):
        scfast.tl.pretrain(adata, tmp_path / "model", **(QUICK | arguments))
    assert not (tmp_path / "model").exists()


def test_ids_that_are_not_unique(adata, tmp_path):
    adata.var["ensembl_id"] = "ENSG1"
    with pytest.raises(ValueError, match="24 genes more than once"):
        scfast.tl.pretrain(adata, tmp_path, gene_ids="ensembl_id", **QUICK)


def test_progress_is_reported(adata, tmp_path, capsys):
    seen = []
    scfast.tl.pretrain(adata, tmp_path / "a", **(QUICK | {"progress": seen.append}))
    assert [entry["step"] for entry in seen] == [1, 2]
    scfast.tl.pretrain(adata, tmp_path / "b", **(QUICK | {"progress": True}))
    assert capsys.readouterr().out.count("held-out loss") == 2


def test_epochs_are_passes_over_the_cells(adata, tmp_path):
    log = scfast.tl.pretrain(adata, tmp_path, epochs=3, batch_tokens=200, progress=False)
    assert log["history"][-1]["epoch"] in (3, 4)
