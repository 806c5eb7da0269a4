"""Results of every cell that stay on disk: what they are in memory, in the AnnData and in the file that is written."""

from __future__ import annotations

import anndata as ad
import h5py
import numpy as np
import pytest
from scipy import sparse

import scfast
from scfast.analyses import CellScores, Embedding
from scfast.run.row_files import HeldRows, RowFile
from scfast.tl._kept_scores import kept_scores
from tests.toy import toy_adata, toy_source

pytestmark = pytest.mark.filterwarnings("ignore:1 of .* cells express no gene:UserWarning")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "cells.h5ad"
    adata = toy_adata()
    keep = np.arange(adata.n_obs) != 5  # a cell without a result
    adata.X = sparse.csr_matrix(sparse.diags_array(keep.astype(np.float32)) @ adata.X)
    adata.X.eliminate_zeros()
    adata.write_h5ad(path)
    return path


def tools(adata, folder, shard_cells):
    with scfast.run.resumable(folder, shard_cells=shard_cells):
        scfast.tl.rollout(adata, toy_source(), groupby="type", progress=False)
        scfast.tl.embed(adata, toy_source(), key_added="vectors", progress=False)
    return adata


@pytest.mark.parametrize("shard_cells", [1, 7, 4096])
def test_rows_on_disk_are_those_in_memory(path, tmp_path, shard_cells):
    stored = tools(scfast.io.open(path), tmp_path / "run", shard_cells)
    held = tools(ad.read_h5ad(path), tmp_path / "other", shard_cells)
    assert isinstance(stored.layers["rollout"].group, h5py.Group)
    assert isinstance(stored.obsm["vectors"], h5py.Dataset)
    stored.X = None
    file = scfast.io.write_h5ad(stored, tmp_path / "results.h5ad")
    assert isinstance(stored.obsm["vectors"], h5py.Dataset), "the AnnData is as it was"
    written = ad.read_h5ad(file)
    for found in (stored.layers["rollout"].to_memory(), written.layers["rollout"]):
        assert found.has_sorted_indices
        for part in ("data", "indices", "indptr"):
            np.testing.assert_array_equal(getattr(found, part), getattr(held.layers["rollout"], part))
    for found in (stored.obsm["vectors"][:], written.obsm["vectors"]):
        np.testing.assert_array_equal(found, held.obsm["vectors"])
    assert np.isnan(written.obsm["vectors"][5]).all()
    np.testing.assert_array_equal(stored.varm["rollout"], held.varm["rollout"])


def test_scores_on_disk_are_read_by_the_tools_that_take_them(path, tmp_path):
    stored = tools(scfast.io.open(path), tmp_path / "run", 7)
    held = tools(ad.read_h5ad(path), tmp_path / "other", 7)
    first, second = (kept_scores(adata, "rollout") for adata in (stored, held))
    assert (first.matrix != second.matrix).nnz == 0
    assert first.sum_to_one == second.sum_to_one


def test_no_file_stays(path, tmp_path):
    tools(scfast.io.open(path), tmp_path, 7)
    assert not list(tmp_path.rglob("*.h5"))


def test_blocks_of_no_rows(tmp_path):
    width = 3
    writers = {"scores": CellScores(width), "vectors": Embedding(width)}
    blocks = [sparse.csr_matrix((n, width), dtype=np.float32) for n in (0, 2, 0)]
    stored, held = RowFile(writers, tmp_path), HeldRows(writers)
    for rows in (stored, held):
        for block in blocks:
            rows.append("scores", block)
            rows.append("vectors", np.zeros((block.shape[0], width), np.float32))
    found = ad.io.sparse_dataset(stored.result("scores"))
    assert found.shape == held.result("scores").shape == (2, width)
    assert stored.result("vectors").shape == held.result("vectors").shape == (2, width)
