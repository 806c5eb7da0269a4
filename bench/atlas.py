"""Cells a second, and memory, of all that is not a model: reading from disk, tokens, batches, sums over groups.

Cells: rows of pbmc_facs.h5ad drawn again and again, as CSR in h5ad and in sharded zarr, uncompressed and compressed.
Model: the tokeniser and context of Geneformer V1, with a forward pass that does nothing. Every size runs in a process
of its own: what memory grows by from one size to the next is what a cell costs.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import torch
import zarr
from scipy import sparse

import scfast
from end_to_end import write_checkpoint
from machine import RESULTS, cores, describe
from scfast.analyses import GroupExpression, Strata
from scfast.models.geneformer import GeneformerSource
from scfast.run import Counts, StoredCounts, make_plan, run, survey

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


class NoModel(GeneformerSource):
    """The tokeniser alone."""

    def forward(self, tokens: Any, recorder: Any) -> None:
        return None


def write(path: Path, data: Path, n_cells: int, compressed: bool = False) -> None:
    """Draw cells into a file, some at a time."""
    adata = anndata.read_h5ad(data / "cells" / "pbmc_facs.h5ad")
    matrix, total = sparse.csr_matrix(adata.X), np.asarray(adata.X.sum(1)).ravel()
    random = np.random.default_rng(0)
    sizes = np.diff(matrix.indptr)
    drawn = random.integers(0, adata.n_obs, n_cells)
    indptr = np.concatenate([[0], np.cumsum(sizes[drawn])])
    on_zarr = path.suffix == ".zarr"
    root = zarr.open_group(str(path), mode="w", zarr_format=3) if on_zarr else h5py.File(path, "w")
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


def measure(path: Path, checkpoint: Path, threads: int) -> dict[str, float]:
    """Seconds of reading, of reading and tokenising, and of that with an analysis; the most memory it took."""
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    loaded = scfast.models.load("geneformer", checkpoint)
    loaded.__class__ = NoModel
    adata = scfast.io.open(path, obs=["n_counts"])  # names of cells would take a hundred bytes each
    n_counts = adata.obs["n_counts"].to_numpy()

    def counts() -> StoredCounts:
        return StoredCounts(adata.X, adata.var, n_counts)

    found: dict[str, float] = {"cells": adata.n_obs}
    survey(loaded, Counts(counts().take(np.arange(100))[0], adata.var))  # threads and lazy imports
    stored, start = counts(), time.perf_counter()
    for first in range(0, adata.n_obs, stored.block_cells):
        stored.take(np.arange(first, min(first + stored.block_cells, adata.n_obs)))
    found["read"] = time.perf_counter() - start
    stored, start = counts(), time.perf_counter()
    lengths = survey(loaded, stored).lengths
    found["tokenised"] = time.perf_counter() - start
    found["entries"] = int(stored.matrix.group["data"].shape[0]) / adata.n_obs
    plan = make_plan(lengths, token_budget=2**17, max_batch_tokens=2**17, shard_cells=stored.shard_cells)
    strata = Strata.from_codes(np.arange(adata.n_obs) % 10, 10)
    analysis = GroupExpression(strata, adata.n_vars)
    start = time.perf_counter()
    run(loaded, counts(), {"expression": analysis}, plan, lambda tokens: [], progress=False)
    found["analysed"] = time.perf_counter() - start
    found["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("SCFAST_TEST_DATA"), help="Holds cells/, geneformer/."
    )
    parser.add_argument("--cells", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--files", type=Path, help="Folder where files are kept for the next time.")
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--out", type=Path, help="Folder for the result.  [default: bench/results/MACHINE]")
    parser.add_argument("--one", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(*options.one, options.threads)))
        return
    if options.data is None:
        parser.error("give --data or set SCFAST_TEST_DATA: a folder that holds cells/ and geneformer/")
    sizes: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "model"
        checkpoint.mkdir()
        write_checkpoint(checkpoint, options.data)
        for kind in options.kinds:
            name, compressed = KINDS[kind]
            for n_cells in options.cells:
                path = (options.files or Path(folder)) / str(n_cells) / name
                if not path.exists():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    part = path.with_name(f"part-{name}")
                    write(part, options.data, n_cells, compressed)
                    part.rename(path)
                command = [sys.executable, __file__, "--one", str(path), str(checkpoint)]
                command += ["--threads", str(options.threads)]
                answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                found = json.loads(answer.splitlines()[-1])
                sizes.setdefault(kind, []).append(found)
                rates = "  ".join(
                    f"{step} {n_cells / found[step]:9,.0f}/s" for step in ("read", "tokenised", "analysed")
                )
                print(
                    f"{kind:10s} {n_cells:9,d} cells  {rates}  {found['peak_bytes'] / 1e6:7.0f} MB",
                    flush=True,
                )
                if options.files is None:
                    subprocess.run(["rm", "-r", str(path)], check=True)
            low, high = sizes[kind][0], sizes[kind][-1]
            if high["cells"] > low["cells"]:
                growth = (high["peak_bytes"] - low["peak_bytes"]) / (high["cells"] - low["cells"])
                print(f"{kind:10s} {growth:.1f} bytes a cell", flush=True)
    here = describe()
    result = {"op": "atlas", "machine": here, "threads": options.threads, "sizes": sizes}
    out = options.out or RESULTS / here["name"]
    out.mkdir(parents=True, exist_ok=True)
    (out / "atlas.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
