"""Files of as many cells as wanted: rows of pbmc_facs drawn again and again, as CSR in h5ad and in sharded zarr."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import zarr
from scipy import sparse

#: Cells that are drawn and written at once.
DRAWN = 16384
CHUNK, SHARD = 2**18, 2**24
#: Name -> file, and whether it is compressed.
KINDS = {
    "h5ad": ("cells.h5ad", False),
    "zarr": ("cells.zarr", False),
    "h5ad, gzip": ("gzip.h5ad", True),
    "zarr, zstd": ("zstd.zarr", True),
}


def file(folder: Path, kind: str, n_cells: int, data: Path) -> Path:
    """The file of so many cells, made where ``folder`` has none."""
    name, compressed = KINDS[kind]
    path = folder / str(n_cells) / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"part-{name}")
        write(part, data, n_cells, compressed)
        part.rename(path)
    return path


def write(path: Path, data: Path, n_cells: int, compressed: bool = False) -> None:
    """Draw cells into a file, some at a time."""
    adata = anndata.read_h5ad(data / "cells" / "pbmc_facs.h5ad")
    matrix, total = sparse.csr_matrix(adata.X), np.asarray(adata.X.sum(1)).ravel()
    random = np.random.default_rng(0)
    sizes = np.diff(matrix.indptr)
    drawn = random.integers(0, adata.n_obs, n_cells)
    indptr = np.concatenate([[0], np.cumsum(sizes[drawn])])
    on_zarr = path.suffix == ".zarr"
    root: Any = zarr.open_group(str(path), mode="w", zarr_format=3) if on_zarr else h5py.File(path, "w")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        obs = anndata.AnnData(np.zeros((n_cells, 0), np.float32)).obs.assign(n_counts=total[drawn])
        anndata.io.write_elem(root, "obs", obs)
        anndata.io.write_elem(root, "var", adata.var[[]])
    group = root.create_group("X")
    group.attrs.update(
        {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [n_cells, adata.n_vars]}
    )
    parts = {"data": np.dtype("f4"), "indices": np.dtype("i4")}
    for name, dtype in parts.items():
        if on_zarr:
            group.create_array(
                name,
                shape=(int(indptr[-1]),),
                dtype=dtype,
                chunks=(CHUNK,),
                shards=(SHARD,),
                compressors="auto" if compressed else None,
            )
        else:
            compression = "gzip" if compressed else None
            group.create_dataset(
                name, shape=(int(indptr[-1]),), dtype=dtype, chunks=(CHUNK,), compression=compression
            )
    (group.create_array if on_zarr else group.create_dataset)("indptr", data=indptr)
    held: dict[str, list[np.ndarray]] = {name: [] for name in parts}
    done = waiting = 0
    for start in range(0, n_cells, DRAWN):
        block = matrix[drawn[start : start + DRAWN]]
        for name in parts:
            held[name].append(getattr(block, name))
        waiting += block.nnz
        if waiting >= SHARD or start + DRAWN >= n_cells:  # zarr writes whole shards
            stop = waiting if start + DRAWN >= n_cells else waiting // SHARD * SHARD
            for name in parts:
                values = np.concatenate(held[name])
                group[name][done : done + stop] = values[:stop]
                held[name] = [values[stop:]]
            done, waiting = done + stop, waiting - stop
    if not on_zarr:
        root.close()
