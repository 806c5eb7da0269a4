"""What is known of cells beside their counts, carried from file to file."""

from __future__ import annotations

import warnings

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest

import scfast
from scfast.io import carried
from scfast.io.carried import CellsOnDisk
from tests.toy import toy_adata

ADATA = toy_adata()
N = ADATA.n_obs
ADATA.obs_names = [f"cell {i}" for i in range(N)]
ADATA.obs = ADATA.obs[[]].assign(
    donor=[f"D{i}" for i in range(N)],
    type=pd.Categorical(["B", "T", None] * (N // 3) + ["B"] * (N % 3)),
    score=np.linspace(0, 1, N),
    kept=np.arange(N) % 2 == 0,
    number=pd.array([1, None] * (N // 2) + [2] * (N % 2), dtype="Int64"),
)
ADATA.obs.index.name = "barcode"
ADATA.obsm["X_pca"] = np.arange(2.0 * N).reshape(N, 2)
ADATA.obsm["frame"] = pd.DataFrame({"a": np.arange(N)}, index=ADATA.obs_names)
ADATA.uns["note"] = {"by": "nobody", "numbers": np.arange(3)}


@pytest.fixture(params=["cells.h5ad", "cells.zarr"])
def path(request, tmp_path):
    path = tmp_path / request.param
    write = ADATA.write_h5ad if path.suffix == ".h5ad" else ADATA.write_zarr
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write(path)
    return path


@pytest.mark.parametrize("where", [None, "score > 0.3 and kept"])
def test_nothing_that_is_known_of_cells_is_lost(path, where, tmp_path, monkeypatch):
    monkeypatch.setattr(carried, "ROWS_AT_ONCE", 7)
    adata = scfast.io.open(path, obs=["type"], where=where)
    rows = getattr(adata.X, "rows", None)
    assert list(adata.obs) == ["type"]
    assert not adata.obsm
    adata.X = None
    adata.obs["found"] = np.arange(adata.n_obs)
    adata.uns["result"] = {"numbers": np.arange(2)}
    adata.obsm["X_pca"] = np.zeros((adata.n_obs, 3))  # what a tool made is not replaced
    found = ad.read_h5ad(scfast.io.write_h5ad(adata, tmp_path / "out.h5ad", cells=CellsOnDisk(path, rows)))
    stored = scfast.io.read(path)
    expected = stored.obs if where is None else stored.obs.query(where)
    pd.testing.assert_frame_equal(found.obs.drop(columns="found"), expected)
    assert list(found.obs) == [*stored.obs, "found"]
    assert found.obs["found"].tolist() == list(range(len(expected)))
    assert found.obsm["X_pca"].shape == (len(expected), 3)
    pd.testing.assert_frame_equal(found.obsm["frame"], stored.obsm["frame"].loc[expected.index])
    assert found.uns["note"]["by"] == "nobody"
    assert set(found.uns) == {"note", "result"}


@pytest.mark.parametrize("rows", [None, np.array([0, 4])])
def test_categories_as_old_files_have_them(rows, tmp_path):
    names, types = np.array([b"a", b"b", b"c", b"d", b"e"], dtype=object), np.array([0, 1, 0, 1, 1])
    with h5py.File(tmp_path / "old.h5ad", "w") as file:
        obs = file.create_group("obs")
        obs.attrs.update({"_index": "index", "column-order": ["type"], "encoding-type": "dataframe"})
        obs["index"], obs["type"], obs["__categories/type"] = (
            names,
            types,
            np.array([b"B", b"T"], dtype=object),
        )
        for name in ("index", "__categories/type"):
            obs[name].attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})
        obs["type"].attrs["categories"] = obs["__categories/type"].ref
    chosen = np.arange(5) if rows is None else rows
    cells = pd.DataFrame(index=pd.RangeIndex(len(chosen)).astype(str))
    adata = ad.AnnData(obs=cells, var=pd.DataFrame(index=["LYZ"]))
    out = scfast.io.write_h5ad(adata, tmp_path / "new.h5ad", cells=CellsOnDisk(tmp_path / "old.h5ad", rows))
    found = ad.read_h5ad(out)
    assert found.obs_names.tolist() == [names[i].decode() for i in chosen]
    assert found.obs["type"].tolist() == ["BT"[types[i]] for i in chosen]
