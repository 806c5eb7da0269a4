"""Real blood cells, and Geneformers of random weights with the published vocabularies and medians."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest

from tests.models import fixtures


@pytest.fixture(scope="session")
def cells(shared):
    """Three cells of each of three types."""
    adata = anndata.read_h5ad(shared / "data" / "cells" / "pbmc_facs_mini.h5ad")
    labels = ["CD19+ B", "CD14+ Monocyte", "CD8+/CD45RA+ Naive Cytotoxic"]
    chosen = [np.flatnonzero(adata.obs["celltype"] == label)[:3] for label in labels]
    return adata[np.concatenate(chosen)].copy()


@pytest.fixture(scope="session")
def folders(shared, tmp_path_factory):
    """V1 and V2 checkpoints of 96 positions."""
    root = tmp_path_factory.mktemp("geneformer")
    made = {}
    for name, write, file in (
        ("v1", fixtures.write_v1, "v1_gc30M_tokens.csv.gz"),
        ("v2", fixtures.write_v2, "v2_gc104M_tokens.csv.gz"),
    ):
        table = pd.read_csv(shared / "data" / "geneformer" / file).dropna(subset="nonzero_median")
        medians = dict(zip(table["token"], table["nonzero_median"].astype(float), strict=True))
        made[name] = write(root / name, list(medians), medians=medians, max_position_embeddings=96)
    return made
