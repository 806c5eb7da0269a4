"""What a cell costs in memory beyond its counts: all that a run keeps, from the opening of the file to the result.

Counted where arrays are asked for (tracemalloc), so that neither pages, nor gaps of a heap, nor threads come into it.
"""

from __future__ import annotations

import tracemalloc
import warnings

import anndata as ad
import h5py
import numpy as np
import pytest
import torch
import zarr
from scipy import sparse

import scfast
from scfast import Packing
from scfast.analyses import GroupExpression, Strata
from scfast.models.base import TokenKind, Tokens
from scfast.run import StoredCounts, make_plan, run, runner, survey
from tests.toy import ToySource

#: Bytes that a cell may cost: 24 MB of a million cells. It costs 22; sizes lie far apart, because whether two blocks of
#: cells are there at once when most is held, which is up to threads, makes 150 kB more or less.
ALLOWED = 24
SIZES, N_GENES, TOKENS = (3_000, 40_000), 30, 4


class Short(ToySource):
    """Cells of so few genes that only their number matters, tokenised at once; the model does nothing."""

    def tokenize(self, counts, var, n_counts=None):
        n_cells, gene = counts.shape[0], torch.from_numpy(counts.indices.astype(np.int64))
        return Tokens(
            ids=gene,
            positions=torch.arange(TOKENS).repeat(n_cells),
            packing=Packing.from_lengths([TOKENS] * n_cells),
            gene_index=gene,
            kind=torch.full((len(gene),), TokenKind.GENE, dtype=torch.uint8),
            lost_vocabulary=torch.zeros(n_cells, dtype=torch.int64),
            lost_truncation=torch.zeros(n_cells, dtype=torch.int64),
        )

    def forward(self, tokens, recorder):
        return None


def write(path, n_cells):
    random = np.random.default_rng(0)
    first = random.integers(0, N_GENES - TOKENS, n_cells)
    columns = (first[:, None] + np.arange(TOKENS)).astype(np.int32).ravel()
    x = sparse.csr_matrix(
        (np.ones(len(columns), np.float32), columns, np.arange(n_cells + 1) * TOKENS),
        shape=(n_cells, N_GENES),
    )
    root = h5py.File(path, "w") if path.suffix == ".h5ad" else zarr.open_group(str(path), mode="w")
    adata = ad.AnnData(x)
    adata.obs["n_counts"] = np.full(n_cells, TOKENS, np.float32)
    adata.obs["type"] = np.array(["B", "T"])[first % 2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for part in ("X", "obs", "var"):
            chunks = (
                {"dataset_kwargs": {"chunks": (1024,)}} if part == "X" else {}
            )  # a chunk is held when it is read
            ad.io.write_elem(root, part, getattr(adata, part), **chunks)
    if path.suffix == ".h5ad":
        root.close()


def peak(path):
    """Bytes asked for by Python, NumPy and pandas at once."""
    tracemalloc.start()
    try:
        adata = scfast.io.open(path, obs=["type"])
        tracemalloc.reset_peak()  # of a table in which pandas looks for names, only one place is ever touched
        source = Short(list(adata.var_names))
        stored = StoredCounts(adata.X, adata.var, adata.obs["n_counts"].to_numpy(), block_cells=256)
        plan = make_plan(survey(source, stored).lengths, token_budget=2**12, shard_cells=256)
        analysis = GroupExpression(Strata.from_codes(adata.obs["type"].cat.codes, 2), N_GENES)
        run(source, stored, {"expression": analysis}, plan, lambda tokens: [], progress=False)
        assert analysis.sums["cells"].sum() == adata.n_obs
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["cells.h5ad", "cells.zarr"])
def test_a_cell_costs_few_bytes(name, tmp_path, monkeypatch):
    torch.set_num_threads(1)
    monkeypatch.setattr(runner, "AHEAD_TOKENS", 2**15)
    monkeypatch.setattr("scfast.run.stored.POINTERS_AT_ONCE", 1024)
    peaks = []
    for n_cells in (300, *SIZES):  # the first one imports what is needed
        path = tmp_path / str(n_cells) / name
        path.parent.mkdir()
        write(path, n_cells)
        peaks.append(peak(path))
    growth = (peaks[2] - peaks[1]) / (SIZES[1] - SIZES[0])
    assert growth <= ALLOWED, f"{growth:.1f} bytes a cell; peaks {peaks}"
