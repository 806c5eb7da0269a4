"""AvgBIO by hand: populations that lie apart score 1, shuffled ones nothing."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
from sklearn.metrics import silhouette_score

import scfast


@pytest.fixture
def cells() -> ad.AnnData:
    """Three populations of 40 cells, far from each other."""
    random = np.random.default_rng(0)
    kind = np.repeat(["a", "b", "c"], 40)
    adata = ad.AnnData(np.zeros((120, 1), dtype=np.float32), obs={"kind": kind})
    adata.obsm["apart"] = random.normal(size=(120, 5)) + 40 * (
        kind[:, None] == np.array(["a", "b", "c", "", ""])
    )
    adata.obs["shuffled"] = random.permutation(kind)
    return adata


def test_populations_that_lie_apart(cells: ad.AnnData) -> None:
    before = list(cells.obs)
    found = scfast.tl.avg_bio(cells, "kind", use_rep="apart")
    assert found["nmi"] == pytest.approx(1)
    assert found["ari"] == pytest.approx(1)
    assert found["asw"] == pytest.approx((silhouette_score(cells.obsm["apart"], cells.obs["kind"]) + 1) / 2)
    assert found["avg_bio"] == pytest.approx((2 + found["asw"]) / 3)
    assert found["clusters"] == 3
    assert list(cells.obs) == before
    assert found.equals(scfast.tl.avg_bio(cells, "kind", use_rep="apart"))
    nothing = scfast.tl.avg_bio(cells, "shuffled", use_rep="apart")
    assert nothing["nmi"] < 0.2
    assert abs(nothing["ari"]) < 0.1
    assert nothing["asw"] < 0.55


def test_bad_input_is_named(cells: ad.AnnData) -> None:
    with pytest.raises(KeyError, match=r"use_rep='X_pca' is not in adata.obsm"):
        scfast.tl.avg_bio(cells, "kind", use_rep="X_pca")
    with pytest.raises(KeyError, match=r"label='type' is not in adata.obs"):
        scfast.tl.avg_bio(cells, "type", use_rep="apart")
    cells.obsm["apart"][3, 0] = np.nan
    with pytest.raises(ValueError, match="is not finite in 1 cells"):
        scfast.tl.avg_bio(cells, "kind", use_rep="apart")
