import numpy as np

import scfast


def test_the_cells_hold_whole_counts_under_their_totals():
    adata = scfast.datasets.pbmc68k()
    assert adata.shape == (700, 765)
    assert adata.X.dtype == np.float32
    np.testing.assert_array_equal(adata.X.data, np.round(adata.X.data))
    assert adata.X.data.min() == 1
    assert (np.asarray(adata.X.sum(axis=1)).ravel() <= adata.obs["n_counts"]).all()
    assert adata.obs["cell_type"].nunique() == 10
    assert {"CD79A", "CD3D", "LYZ"} <= set(adata.var_names)
    # Known of these cells: monocytes hold lysozyme, B cells do not.
    lysozyme = adata[:, "LYZ"].X.toarray().ravel()
    label = adata.obs["cell_type"].to_numpy()
    assert lysozyme[label == "CD14+ Monocyte"].mean() > 5 * lysozyme[label == "CD19+ B"].mean()
