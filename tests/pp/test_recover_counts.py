import anndata as ad
import numpy as np
import pytest
from scipy import sparse

import scfast


@pytest.fixture
def counts() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.poisson(0.7, size=(40, 30)).astype(np.float32)


def logged(counts: np.ndarray, target: float = 1e4) -> ad.AnnData:
    totals = counts.sum(axis=1) + 100.0  # counts of genes that were filtered out
    adata = ad.AnnData(sparse.csr_matrix(np.log1p(counts / totals[:, None] * target), dtype=np.float32))
    adata.obs["n_counts"] = totals
    return adata


def test_counts_come_back(counts):
    adata = logged(counts)
    assert scfast.pp.recover_counts(adata) is None
    got = adata.layers["counts"]
    assert got.dtype == np.float32
    assert got.has_sorted_indices
    np.testing.assert_array_equal(got.toarray(), counts)
    assert 0 < adata.uns["counts"]["max_residual"] < 1e-3


def test_another_target_layer_and_column(counts):
    adata = logged(counts, target=1e6)
    adata.layers["logged"], adata.X = adata.X, sparse.csr_matrix(adata.shape)
    adata.obs["total"] = adata.obs.pop("n_counts")
    result = scfast.pp.recover_counts(
        adata, layer="logged", n_counts="total", target=1e6, key_added="whole", copy=True
    )
    np.testing.assert_array_equal(result.layers["whole"].toarray(), counts)
    assert "whole" not in adata.layers


def test_raw_is_taken_with_its_own_gene_order(counts):
    adata = logged(counts)
    adata.raw = adata.copy()
    chosen = adata[:, ["7", "3", "29"]].copy()
    chosen.X = np.full(chosen.shape, -1.0)
    scfast.pp.recover_counts(chosen)
    np.testing.assert_array_equal(chosen.layers["counts"].toarray(), counts[:, [7, 3, 29]])


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda a: a.obs.drop(columns="n_counts", inplace=True), KeyError, "n_counts"),
        (lambda a: a.obs.__setitem__("n_counts", 0.0), ValueError, "positive"),
        (lambda a: setattr(a, "X", a.X * -1), ValueError, "scaling cannot be undone"),
        (lambda a: setattr(a, "X", a.X * 0.9), ValueError, "whole number"),
        (lambda a: setattr(a, "X", a.X * np.nan), ValueError, "not finite"),
    ],
)
def test_what_cannot_be_undone_is_refused_and_nothing_changes(counts, change, kind, message):
    adata = logged(counts)
    change(adata)
    with pytest.raises(kind, match=message):
        scfast.pp.recover_counts(adata)
    assert not adata.layers
    assert not adata.uns


def test_wrong_sources_are_named(counts):
    adata = logged(counts)
    with pytest.raises(KeyError, match="no layer 'x'"):
        scfast.pp.recover_counts(adata, layer="x")
    with pytest.raises(KeyError, match="raw is None"):
        scfast.pp.recover_counts(adata, use_raw=True)
    adata.raw = adata[:, :5].copy()
    with pytest.raises(KeyError, match="lacks 25 genes"):
        scfast.pp.recover_counts(adata)
