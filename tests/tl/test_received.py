"""tl.received: column sums of the maps, per cell, group, layer and head."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

import scfast
from scfast import models
from tests import materialised
from tests.same import assert_same
from tests.toy import BACKEND, ToySource, toy_adata, toy_source


def run(adata, source, **options):
    scfast.tl.received(adata, source, backend=BACKEND, **options)
    return adata.layers["received"].toarray(), adata.uns["received"]


def expected(source, adata):
    """float64 [cells, layers, heads, genes], from maps that are held."""
    tokens = source.tokenize(adata.X, adata.var)
    cells = materialised.received(source, tokens)
    return np.stack(
        [
            np.stack(
                [
                    materialised.per_gene([cell[layer, head] for cell in cells], tokens, adata.n_vars)
                    for head in range(source.n_heads)
                ],
                axis=1,
            )
            for layer in range(source.n_layers)
        ],
        axis=1,
    )


@pytest.mark.parametrize("cls", [False, True])
@pytest.mark.parametrize("by", [None, "layer", "head"])
def test_sums_of_the_maps(by, cls):
    adata, source = toy_adata(), toy_source(cls=cls)
    wanted = expected(source, adata)
    got, uns = run(adata, source, groupby="type", by=by)
    np.testing.assert_allclose(got, wanted.sum((1, 2)), rtol=1e-5, atol=1e-6)
    groups = adata.obs["type"].cat.categories
    in_group = [(adata.obs["type"] == group).to_numpy() for group in groups]
    means = np.stack([wanted[cells].mean(0) for cells in in_group], axis=-1)  # [layers, heads, genes, groups]
    np.testing.assert_allclose(adata.varm["received"], means.sum((0, 1)), rtol=1e-5, atol=1e-6)
    assert set(uns) == {"params", "groups", "table", *([f"by_{by}"] if by else [])}
    if by == "layer":
        np.testing.assert_allclose(uns["by_layer"], means.sum(1), rtol=1e-5, atol=1e-6)
    if by == "head":
        np.testing.assert_allclose(uns["by_head"], means, rtol=1e-5, atol=1e-6)


def test_a_cell_gives_layers_times_heads_for_each_token():
    adata, source = toy_adata(), toy_source(cls=True)
    got, uns = run(adata, source)
    lengths = np.array(source.tokenize(adata.X, adata.var).lengths)
    mass = uns["groups"].filter(like="mass_").loc["all"]
    assert mass.sum() == pytest.approx(6 * lengths.mean(), rel=1e-6)
    assert mass["mass_gene"] == pytest.approx(got.sum(1).mean(), rel=1e-6)


@pytest.mark.parametrize("replicate_key", [None, "donor"])
def test_table(replicate_key):
    adata = toy_adata()
    scores, uns = run(adata, toy_source(), groupby="type", replicate_key=replicate_key, null="untrained")
    frame = pd.DataFrame(scores, columns=adata.var_names)
    tokens = toy_source().tokenize(adata.X, adata.var)
    for name, part in uns["table"].groupby("group", observed=True):
        member = (adata.obs["type"] == name).to_numpy()
        part = part.set_index("gene")
        assert part["mean"].is_monotonic_decreasing
        np.testing.assert_allclose(part["mean"], frame[member].mean()[part.index], rtol=1e-5)
        if replicate_key is None:
            np.testing.assert_allclose(part["se"], frame[member].sem()[part.index], rtol=1e-4)
        places = {gene: [] for gene in adata.var_names}
        for cell in np.flatnonzero(member):
            for place, gene in enumerate(tokens.select([cell]).gene_index.tolist(), start=1):
                places[f"G{gene}"].append(place)
        np.testing.assert_allclose(part["rank"], [np.mean(places[gene]) for gene in part.index])
        spread = [np.std(places[gene], ddof=1) if len(places[gene]) > 1 else np.nan for gene in part.index]
        np.testing.assert_allclose(part["rank_sd"], spread, atol=1e-6)
    other = toy_adata()
    run(other, toy_source().untrained(0), groupby="type")
    np.testing.assert_allclose(adata.varm["received_null"], other.varm["received"])


@pytest.mark.parametrize("by", [None, "layer", "head"])
def test_the_untrained_model_gives_scores_alone(by, monkeypatch):
    recorded = []

    def forward(source, tokens, recorder):
        recorded.append([observable.name for observable in recorder.observables])
        real(source, tokens, recorder)

    real = ToySource.forward
    monkeypatch.setattr(ToySource, "forward", forward)
    run(toy_adata(), toy_source(), by=by, null="untrained")
    assert recorded == [["received", *(["each"] if by else [])], ["received"]]


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_real_cells_against_eager_attentions(cells, folders, version):
    adata, source = cells.copy(), models.load("geneformer", folders[version])
    _, uns = run(adata, source, by="head")
    tokens = source.tokenize(adata.X, adata.var, adata.obs["n_counts"].to_numpy())
    eager = source.hf()
    eager.set_attn_implementation("eager")
    each = np.zeros((adata.n_obs, source.n_layers, source.n_heads, adata.n_vars))
    for cell in range(adata.n_obs):
        alone = tokens.select([cell])
        with torch.no_grad():
            maps = eager(input_ids=alone.ids[None], output_attentions=True).attentions
        sums = np.stack([layer[0].double().numpy().sum(1) for layer in maps])  # [layers, heads, n]
        gene = alone.gene_index.numpy()
        each[cell][:, :, gene[gene >= 0]] = sums[:, :, gene >= 0]
    np.testing.assert_allclose(adata.layers["received"].toarray(), each.sum((1, 2)), rtol=2e-4, atol=1e-5)
    np.testing.assert_allclose(uns["by_head"][..., 0], each.mean(0), rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("memory", ["250KB", "1GB"])
def test_any_batch_size_gives_the_same_result(memory):
    whole, parts = toy_adata(), toy_adata()
    run(whole, toy_source(), groupby="type", by="head")
    _, uns = run(parts, toy_source(), groupby="type", by="head", memory=memory)
    assert (uns["params"]["plan"]["batches"] > 3) == (memory == "250KB")
    np.testing.assert_allclose(
        parts.layers["received"].toarray(), whole.layers["received"].toarray(), rtol=2e-6, atol=1e-7
    )
    np.testing.assert_allclose(uns["by_head"], whole.uns["received"]["by_head"], rtol=2e-6, atol=1e-7)


def test_one_plan_gives_the_same_bits():
    first, second = toy_adata(), toy_adata()
    run(first, toy_source(), groupby="type", by="layer")
    run(second, toy_source(), groupby="type", by="layer")
    assert_same(second, first)


def test_copy_and_file(tmp_path):
    adata = toy_adata()
    before = adata.copy()
    result = scfast.tl.received(
        adata, toy_source(), groupby="type", by="head", store_cells=False, copy=True, backend=BACKEND
    )
    assert_same(adata, before)
    assert not result.layers
    result.write_h5ad(tmp_path / "cells.h5ad")
    assert_same(anndata.read_h5ad(tmp_path / "cells.h5ad"), result)


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (ValueError, "by='rank' is unknown", {"by": "rank"}),
        (ValueError, "null='shuffled'", {"null": "shuffled"}),
        (KeyError, "groupby='kind' is not in adata.obs", {"groupby": "kind"}),
        (ValueError, "key_added='a/b'", {"key_added": "a/b"}),
        (ValueError, "memory='2 apples' is not an amount", {"memory": "2 apples"}),
        (ValueError, "too little: the longest cell has 24 tokens", {"memory": "9KB"}),
        (TypeError, "scfast.models.load", {"model": "geneformer"}),
    ],
)
def test_bad_arguments_leave_no_trace(error, message, options):
    adata = toy_adata()
    before = adata.copy()
    with pytest.raises(error, match=message):
        scfast.tl.received(adata, **({"model": toy_source(), "backend": BACKEND} | options))
    assert_same(adata, before)
