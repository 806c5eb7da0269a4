"""tl.relevance: gradient-weighted attention per gene, against autograd on eager models that hold their maps."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

import scfast
from scfast import models
from tests import materialised
from tests.models import fixtures
from tests.models.test_targets import classifier
from tests.observables.eager import chefer_mm, maps_and_gradients, row_normalised, weighted
from tests.ops.helpers import FLOOR, assert_by_rule
from tests.same import assert_same
from tests.tl.test_attention_norms import adata_of_genes
from tests.toy import BACKEND, toy_adata, toy_source

GENE = fixtures.GENES[0]  # in every cell


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {
        "gene": models.load("geneformer", fixtures.write_v1(folder / "v1")),
        "class": models.load("geneformer", classifier(folder / "tuned")),
    }


def eager(source, adata, target, dtype):
    """Tokens, and per cell maps and gradients [N, H, n, n], and where the target is read."""
    tokens = source.tokenize(adata.X, adata.var)
    model, cells = source.hf(), []
    for cell in range(adata.n_obs):
        one = tokens.select([cell])
        at = int((one.gene_index == 0).nonzero()[0, 0])

        def logit(output, one=one, at=at):
            return output.logits[0, 1] if target.startswith("class") else output.logits[0, at, one.ids[at]]

        maps, gradients = maps_and_gradients(model, logit, dtype, input_ids=one.ids[None])
        cells.append((maps[:, 0], gradients[:, 0], 0 if target.startswith("class") else at))
    return tokens, cells


def expected_scores(source, adata, target, method, dtype):
    """[cells, 1 + layers, genes]: all layers together, and for gradient attention each."""
    tokens, cells = eager(source, adata, target, dtype)
    rows = []
    for maps, gradients, at in cells:
        cams = weighted(maps, gradients)
        if method == "chefer-mm":
            joint = chefer_mm(cams)
            rows.append((joint - torch.eye(len(joint)))[at][None])
        elif method == "row-normalised":
            rows.append(row_normalised(cams)[at][None])
        else:
            rows.append(torch.cat([cams.sum((0, 1))[None], cams.sum(1)]))
    return np.stack(
        [
            materialised.per_gene([x[row].numpy() for x in rows], tokens, adata.n_vars)
            for row in range(len(rows[0]))
        ],
        axis=1,
    )


def assert_scores(name, *scores):
    """The error rule; gradients are sums that cancel, so that a score has the size of the largest of its cell."""
    assert_by_rule(name, *(torch.from_numpy(np.array(x)) for x in scores))


@pytest.mark.parametrize("kind", ["gene", "class"])
@pytest.mark.parametrize("method", ["chefer-mm", "row-normalised", "gradient-attention"])
def test_agrees_with_autograd(sources, kind, method):
    source, adata = sources[kind], adata_of_genes()
    target = f"gene:{GENE}" if kind == "gene" else "class:high"
    options = {"by": "layer"} if method == "gradient-attention" else {}
    scfast.tl.relevance(adata, source, target, method=method, groupby="type", backend=BACKEND, **options)
    exact, plain = (
        expected_scores(source, adata, target, method, dtype) for dtype in (torch.float64, torch.float32)
    )
    sizes = np.broadcast_to(np.abs(exact).max(-1, keepdims=True), exact.shape)
    assert_scores("cells", adata.layers["relevance"].toarray(), exact[:, 0], plain[:, 0], sizes[:, 0])
    for number, name in enumerate(adata.obs["type"].cat.categories):
        member = (adata.obs["type"] == name).to_numpy()
        cells = adata.layers["relevance"][member].toarray().mean(0, dtype=np.float64)
        np.testing.assert_allclose(adata.varm["relevance"][name.replace("/", "|")], cells, rtol=FLOOR)
        if "by" in options:
            by_layer = adata.uns["relevance"]["by_layer"][..., number]
            means = (x[member, 1:].mean(0) for x in (exact, plain, sizes))  # [layers, genes]
            assert_scores(f"{name} by layer", by_layer, *means)


def test_attribution_is_signed_and_adds_up(sources):
    """Completeness of one layer's attribution is tested with the observable; here, what becomes of it."""
    source, adata = sources["class"], adata_of_genes()
    scfast.tl.relevance(
        adata, source, "class:high", method="attribution", steps=3, by="layer", backend=BACKEND
    )
    uns = adata.uns["relevance"]
    assert uns["params"]["steps"] == 3
    assert (adata.varm["relevance"].to_numpy() < 0).any()
    np.testing.assert_allclose(uns["by_layer"].sum(0), adata.varm["relevance"], rtol=1e-4, atol=1e-6)


def test_only_cells_with_the_gene_are_run(sources):
    adata = adata_of_genes(23)
    rare = fixtures.GENES[7]
    scfast.tl.relevance(adata, sources["gene"], f"gene:{rare}", backend=BACKEND)
    has = np.asarray(adata[:, rare].X.todense()).ravel() > 0
    assert 0 < has.sum() < 23
    assert adata.uns["relevance"]["groups"]["cells"].sum() == has.sum()
    assert (np.diff(adata.layers["relevance"].indptr) > 0).tolist() == has.tolist()


def test_readouts(sources):
    adata, source = adata_of_genes(), sources["class"]
    scfast.tl.relevance(adata, source, "class:high", key_added="first", backend=BACKEND)
    scfast.tl.relevance(adata, source, "class:high", readout="cls", key_added="cls", backend=BACKEND)
    assert_same(adata.layers["first"].toarray(), adata.layers["cls"].toarray())
    scfast.tl.relevance(
        adata, source, "class:high", readout=f"gene:{GENE}", key_added="gene", backend=BACKEND
    )
    assert np.abs(adata.layers["gene"] - adata.layers["cls"]).max() > 0


def test_one_run_or_several_batches(sources, tmp_path):
    source, whole, parts = sources["class"], adata_of_genes(), adata_of_genes()
    scfast.tl.relevance(whole, source, "class:low", groupby="type", backend=BACKEND)
    scfast.tl.relevance(parts, source, "class:low", groupby="type", memory="4MB", backend=BACKEND)
    tables = [adata.uns["relevance"].copy() for adata in (whole, parts)]
    assert tables[0].pop("params")["plan"]["hash"] != tables[1].pop("params")["plan"]["hash"]
    for name in tables[0]:
        pd.testing.assert_frame_equal(tables[0][name], tables[1][name], rtol=1e-5)
    file = tmp_path / "relevance.h5ad"
    whole.write_h5ad(file)
    assert_same(anndata.read_h5ad(file).uns["relevance"], whole.uns["relevance"])


@pytest.mark.parametrize(
    ("target", "options", "error", "message"),
    [
        ("class:middle", {}, ValueError, "has the classes 'low', 'high', 'none'"),
        ("gene:CD3D", {}, KeyError, "target='gene:CD3D': a gene is looked up in adata.var_names"),
        ("logit:3", {}, ValueError, "target='logit:3' is unknown"),
        (3, {}, TypeError, "target must be 'class:NAME' or 'gene:NAME', got int"),
        ("class:low", {"method": "lrp"}, ValueError, "method='lrp' is unknown"),
        ("class:low", {"method": "attribution", "readout": "cls"}, ValueError, "attribution sums over all queries"),
        ("class:low", {"by": "layer"}, ValueError, "by='layer': use 'layer' with 'gradient-attention'"),
        ("class:low", {"method": "attribution", "steps": 0}, ValueError, "steps must be at least 1"),
        ("class:low", {"readout": "first"}, ValueError, "readout='first' is unknown"),
    ],
)  # fmt: skip
def test_bad_input_leaves_the_data_alone(sources, target, options, error, message):
    adata = adata_of_genes()
    with pytest.raises(error, match=message):
        scfast.tl.relevance(adata, sources["class"], target, backend=BACKEND, **options)
    assert not adata.uns


def test_models_without_a_head(sources):
    with pytest.raises(ValueError, match="has no classifier; fine-tune one"):
        scfast.tl.relevance(adata_of_genes(), sources["gene"], "class:low", backend=BACKEND)
    with pytest.raises(ValueError, match="target='class:low': toy cannot be differentiated"):
        scfast.tl.relevance(toy_adata(), toy_source(), "class:low", backend=BACKEND)


def test_a_gene_that_no_cell_has(sources):
    adata = adata_of_genes()
    adata.X = adata.X.multiply(np.arange(adata.n_vars) != 5).tocsr()
    with pytest.raises(ValueError, match="no cell has a token of that gene"):
        scfast.tl.relevance(adata, sources["gene"], f"gene:{fixtures.GENES[5]}", backend=BACKEND)
