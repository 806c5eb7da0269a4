import anndata as ad
import numpy as np
from scipy import sparse

import scfast


def test_medians_are_those_of_a_loop():
    rng = np.random.default_rng(1)
    counts = rng.poisson(0.4, size=(50, 20)).astype(np.float32)
    counts[:, 4] = 0
    totals = counts.sum(axis=1, dtype=np.float64) + 7
    adata = ad.AnnData(sparse.csr_matrix(counts))
    adata.obs["n_counts"] = totals
    got = scfast.pp.gene_medians(adata)
    for gene in range(20):
        here = counts[:, gene] > 0
        expected = (
            np.median(counts[here, gene].astype(np.float64) / totals[here] * 1e4) if here.any() else np.nan
        )
        np.testing.assert_allclose(got.iloc[gene], expected, rtol=1e-12)


def test_row_sums_stand_in_for_missing_totals_and_empty_cells_do_not_count():
    adata = ad.AnnData(np.array([[1.0, 3.0], [0.0, 0.0], [2.0, 0.0]]))
    np.testing.assert_allclose(scfast.pp.gene_medians(adata, target=4.0), [2.5, 3.0])
