"""Real blood cells through a Geneformer of random weights, with the published V1 vocabulary and medians."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

import scfast
from scfast import models
from tests import materialised
from tests.toy import BACKEND


def assert_close(got, expected):
    """The forward runs in float32 in both; ours differs by how attention is added up."""
    np.testing.assert_allclose(got, expected, rtol=2e-4, atol=2e-7)


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("layers", [None, (0, 1), "prefix", "suffix"])
def test_agrees_with_maps(cells, folders, version, layers):
    adata, source = cells.copy(), models.load("geneformer", folders[version])
    tokens = source.tokenize(adata.X, adata.var, adata.obs["n_counts"].to_numpy())
    assert max(tokens.lengths) == 96
    frequent = tokens.gene_index[tokens.gene_index >= 0].bincount()
    common = adata.var_names[int(frequent.argmax())]
    readouts = ["mean", f"gene:{common}", *(["cls"] if version == "v2" else [])]
    for readout in readouts:
        for heads in ("mean", "max"):
            options = {"layers": layers, "heads": heads, "residual": 0.5}
            scfast.tl.rollout(adata, source, readout=readout, backend=BACKEND, **options)
            gene = adata.var_names.get_loc(common) if readout.startswith("gene") else None
            has = [gene is None or gene in tokens.select([cell]).gene_index for cell in range(adata.n_obs)]
            rows = np.flatnonzero(has)
            chosen = tokens.select(rows)
            expected = materialised.rollout(source, chosen, readout, gene=gene, **options)
            complete = {"prefix": -1, "suffix": 0}.get(layers)
            one = [scores if complete is None else scores[complete] for scores in expected]
            assert_close(
                adata.layers["rollout"][rows].toarray(), materialised.per_gene(one, chosen, adata.n_vars)
            )
            if complete is not None:
                for layer in range(source.n_layers):
                    row = materialised.per_gene([scores[layer] for scores in expected], chosen, adata.n_vars)
                    assert_close(adata.uns["rollout"]["by_layer"][layer, :, 0], row.mean(0))


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_scores_sum_to_one(cells, folders, version):
    adata = cells.copy()
    scfast.tl.rollout(
        adata, f"geneformer:{folders[version]}", groupby="celltype", null="untrained", backend=BACKEND
    )
    tokens = models.load("geneformer", folders[version]).tokenize(adata.X, adata.var)
    sums = np.asarray(adata.layers["rollout"].sum(1)).ravel()
    about = adata.uns["rollout"]["groups"]
    if version == "v1":
        np.testing.assert_allclose(sums, 1, atol=3 * 4e-6)
        assert (about["mass_special"] == 0).all()
    else:
        means = pd.Series(sums).groupby(adata.obs["celltype"].to_numpy()).mean()
        np.testing.assert_allclose(about["mass_special"], 1 - means.reindex(about.index), atol=1e-5)
        assert (about["mass_special"] > 0.01).all()
    np.testing.assert_array_equal(np.diff(adata.layers["rollout"].indptr), [
        int((tokens.select([cell]).gene_index >= 0).sum()) for cell in range(adata.n_obs)
    ])  # fmt: skip
    lost = about["lost_truncation"] + about["lost_vocabulary"]
    assert (lost > 50).all()
    assert about["lost_truncation"].mean() == pytest.approx(tokens.lost_truncation.double().mean().item())


def test_file_round_trip(cells, folders, tmp_path):
    """Names such as 'CD8+/CD45RA+ Naive Cytotoxic' reach the file and come back."""
    adata = cells.copy()
    scfast.tl.rollout(
        adata, f"geneformer:{folders['v1']}", groupby="celltype", layers="prefix", backend=BACKEND
    )
    scfast.tl.embed(adata, f"geneformer:{folders['v1']}", backend=BACKEND)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    again = anndata.read_h5ad(tmp_path / "cells.h5ad")
    assert "CD8+/CD45RA+ Naive Cytotoxic" in list(again.uns["rollout"]["groups"].index)
    pd.testing.assert_frame_equal(again.varm["rollout"], adata.varm["rollout"], check_names=False)
    np.testing.assert_array_equal(again.obsm["X_geneformer"], adata.obsm["X_geneformer"])
    assert torch.isfinite(torch.from_numpy(again.obsm["X_geneformer"])).all()
