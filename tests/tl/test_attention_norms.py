"""tl.attention_norms: what the observables say of each cell, per gene, layer, head and group."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import scfast
from scfast import models
from scfast.attention import Recorder
from scfast.observables import AttentionNorms, GlobEnc, HeadNorms, MixingRatio
from tests import materialised
from tests.models import fixtures
from tests.same import assert_same
from tests.toy import BACKEND, toy_adata, toy_source


def adata_of_genes(n_cells: int = 9) -> anndata.AnnData:
    """Counts of the genes of the made-up checkpoints, and groups."""
    adata = toy_adata(n_cells)
    adata.var_names = list(fixtures.GENES)
    return adata


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return models.load("geneformer", fixtures.write_v2(tmp_path_factory.mktemp("v2")))


def recorded(source, adata, *observables):
    """Each observable's results by the reference, cell by cell, and the tokens."""
    tokens = source.tokenize(adata.X, adata.var)
    recorder = Recorder(observables, backend="reference")
    source.forward(tokens, recorder)
    return tokens, {observable.name: recorder[observable.name] for observable in observables}


@pytest.mark.parametrize("convention", ["row-normalised", "globenc"])
@pytest.mark.parametrize("readout", ["cls", "mean"])
def test_globenc_scores(source, convention, readout):
    adata = adata_of_genes()
    scfast.tl.attention_norms(
        adata, source, convention=convention, readout=readout, groupby="type", backend=BACKEND
    )
    tokens, by_cell = recorded(source, adata, GlobEnc(readout, convention=convention))
    scores = materialised.per_gene([x.numpy() for x in by_cell["globenc"]], tokens, adata.n_vars)
    np.testing.assert_allclose(adata.layers["attention_norms"].toarray(), scores, rtol=1e-5, atol=1e-7)
    table = adata.uns["attention_norms"]["table"]
    for name, part in table.groupby("group", observed=True):
        member = (adata.obs["type"] == name).to_numpy()
        means = pd.Series(scores[member].mean(0), adata.var_names)
        np.testing.assert_allclose(part["mean"], means[part["gene"]], rtol=1e-5, atol=1e-8)
    if convention == "row-normalised":
        masses = adata.uns["attention_norms"]["groups"].filter(like="mass_").sum(1)
        np.testing.assert_allclose(masses, 1, rtol=1e-5)


@pytest.mark.parametrize("score", ["attn-n", "attnres-n", "attnresln-n", "enc-n"])
def test_norms_as_scores(source, score):
    adata = adata_of_genes()
    scfast.tl.attention_norms(adata, source, score=score, by="layer", groupby="type", backend=BACKEND)
    tokens, by_cell = recorded(source, adata, AttentionNorms([score]))
    layers = [x[:, 0].double().numpy() for x in by_cell["attention_norms"]]  # [N, n]
    genes = materialised.per_gene([x.sum(0) for x in layers], tokens, adata.n_vars)
    np.testing.assert_allclose(adata.layers["attention_norms"].toarray(), genes, rtol=1e-5, atol=1e-6)
    uns = adata.uns["attention_norms"]
    per_query = np.array([x.mean(1) for x in layers])  # [cells, N]
    for number, name in enumerate(adata.obs["type"].cat.categories):
        member = (adata.obs["type"] == name).to_numpy()
        part = uns["norms"][uns["norms"]["group"] == name]
        np.testing.assert_allclose(part["norm"], per_query[member].mean(0), rtol=1e-5)
        for layer in range(source.n_layers):
            one = materialised.per_gene([x[layer] for x in layers], tokens, adata.n_vars)
            np.testing.assert_allclose(
                uns["by_layer"][layer, :, number], one[member].mean(0), rtol=1e-5, atol=1e-6
            )


@pytest.mark.parametrize("replicate_key", [None, "donor"])
def test_tables_of_heads_and_layers(source, replicate_key):
    adata = adata_of_genes(23)
    heads, mixing = ["prob", "weighted", "mixed"], ["attn-n", "attnresln-n", "enc-n"]
    scfast.tl.attention_norms(
        adata, source, heads=heads, mixing=mixing, groupby="type", replicate_key=replicate_key,
        backend=BACKEND,
    )  # fmt: skip
    _, by_cell = recorded(source, adata, HeadNorms(heads), MixingRatio(mixing))
    uns = adata.uns["attention_norms"]
    per_head = torch.stack(by_cell["head_norms"]).double().numpy()  # [B, N, H, Q]
    ratios = np.stack([x.double().mean(-1).numpy() for x in by_cell["mixing_ratio"]])  # [B, N, K]
    names = adata.obs["type"].cat.categories
    assert len(uns["heads"]) == len(names) * source.n_layers * source.n_heads
    for name in names:
        member = (adata.obs["type"] == name).to_numpy()
        for table, columns, cells in (
            ("heads", heads, per_head.reshape(23, -1, 3)),
            ("layers", [f"mixing_{kind}" for kind in mixing], ratios),
        ):
            part = uns[table][uns[table]["group"] == name]
            np.testing.assert_allclose(part[columns], cells[member].mean(0), rtol=1e-5)
            errors = part[[f"{column}_se" for column in columns]]
            if replicate_key is None:
                spread = cells[member].std(0, ddof=1) / np.sqrt(member.sum())
                np.testing.assert_allclose(errors, spread, rtol=1e-3, atol=1e-7)
            else:
                assert np.isfinite(errors.to_numpy()).all()
    order = uns["heads"][uns["heads"]["group"] == names[0]]
    assert order["layer"].tolist() == [layer for layer in range(3) for _ in range(4)]
    assert order["head"].tolist() == list(range(4)) * 3


def test_one_run_or_several_batches(source, tmp_path):
    whole, parts = adata_of_genes(), adata_of_genes()
    scfast.tl.attention_norms(whole, source, groupby="type", null="untrained", backend=BACKEND)
    scfast.tl.attention_norms(parts, source, groupby="type", null="untrained", memory="2MB", backend=BACKEND)
    tables = [adata.uns["attention_norms"].copy() for adata in (whole, parts)]
    plans = [table.pop("params")["plan"] for table in tables]
    assert plans[0]["hash"] != plans[1]["hash"]
    for name in tables[0]:
        pd.testing.assert_frame_equal(tables[0][name], tables[1][name], rtol=1e-5)
    file = tmp_path / "norms.h5ad"
    whole.write_h5ad(file)
    assert_same(anndata.read_h5ad(file).uns["attention_norms"], whole.uns["attention_norms"])


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_real_cells(cells, folders, version):
    adata = cells.copy()
    scfast.tl.attention_norms(adata, f"geneformer:{folders[version]}", groupby="celltype", backend=BACKEND)
    uns = adata.uns["attention_norms"]
    assert uns["params"]["readout"] == {"v1": "mean", "v2": "cls"}[version]
    np.testing.assert_allclose(uns["groups"].filter(like="mass_").sum(1), 1, rtol=1e-5)
    assert (uns["table"].groupby("group", observed=True).size() > 90).all()
    ratios = uns["layers"].filter(regex="mixing_[a-z-]+$")
    assert ratios.shape[1] == 3
    assert ((ratios > 0) & (ratios < 1)).all(axis=None)
    n = 96
    assert uns["heads"]["prob"].between(1 - 1e-5, n**0.5).all()


def test_what_is_not_wanted_is_not_there(source):
    adata = adata_of_genes()
    result = scfast.tl.attention_norms(
        adata, source, heads=(), mixing=(), store_cells=False, copy=True, backend=BACKEND
    )
    assert set(result.uns["attention_norms"]) == {"params", "groups", "table"}
    assert "attention_norms" not in result.layers
    assert "attention_norms" not in adata.uns


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"score": "norm"}, "score='norm' is unknown; use 'globenc', 'attn-n'"),
        ({"score": "attn-n", "readout": "cls"}, "readout='cls' belongs to score='globenc'"),
        ({"by": "layer"}, "by='layer': use 'layer' with one of the norms as the score"),
        ({"mixing": ["ln"]}, "'ln' is no norm-based measure"),
        ({"heads": ["max"]}, r"quantities=\['max'\]"),
        ({"convention": "raw"}, "convention='raw' is unknown; use 'globenc' or 'row-normalised'"),
        ({"key_added": "a/b"}, "must be a name without '/'"),
    ],
)
def test_bad_options_leave_the_data_alone(source, options, message):
    adata = adata_of_genes()
    with pytest.raises(ValueError, match=message):
        scfast.tl.attention_norms(adata, source, backend=BACKEND, **options)
    assert not adata.uns
    assert sparse.issparse(adata.X)


def test_a_model_that_does_not_say_where_its_parts_are():
    adata = toy_adata()
    with pytest.raises(ValueError, match="needs the values, the layer's input, projection and norms"):
        scfast.tl.attention_norms(adata, toy_source(), backend=BACKEND)
    assert not adata.uns
