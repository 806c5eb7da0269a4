"""Exactness and memory of a gene network: attention_scatter over all cells beside maps that are held in float64.

Cells: pbmc_facs.h5ad, its training split, the 2,000 most variable genes, every expressed one a token. Queries and keys
are random, a vector for each gene, head and place. The sum over cells is compared element by element with softmax maps
of the same float32 inputs in float64; the peak of the process's memory with the G x G sums and the batch.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path

import anndata
import numpy as np
import torch

import scfast
from machine import RESULTS, describe, name


def cells_of(file: Path, n_cells: int | None, n_genes: int) -> list[np.ndarray]:
    """Genes of every cell, by falling count."""
    adata = anndata.read_h5ad(file)
    adata = adata[(adata.obs["split"] == "train").to_numpy()][:n_cells]
    levels = adata.X.log1p()
    variance = np.asarray(levels.power(2).mean(0) - np.square(levels.mean(0))).ravel()
    counts = adata.X.tocsr()[:, np.argsort(-variance, kind="stable")[:n_genes]]
    counts.sort_indices()
    rows = [slice(*counts.indptr[i : i + 2]) for i in range(counts.shape[0])]
    return [counts.indices[at][np.argsort(-counts.data[at], kind="stable")] for at in rows]


def states(genes: np.ndarray, table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys [n, H, D] of a cell: those of the genes, turned a little at every place."""
    place = torch.arange(len(genes))[:, None, None] / 100
    q, k = table[:, torch.from_numpy(genes).long()]
    return q * torch.cos(place), k * torch.cos(place)


def peak() -> int:
    """Bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Sum, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="pbmc_facs.h5ad")
    parser.add_argument("--cells", type=int, help="default: all")
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--tokens", type=int, default=8192, help="of a batch")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cells = cells_of(options.data, options.cells, options.genes)
    table = torch.randn(2, options.genes, 4, 16, generator=torch.Generator().manual_seed(0))
    sums = torch.zeros(options.genes, options.genes, dtype=torch.float64)
    tokens = np.cumsum([len(genes) for genes in cells])
    batches = [
        x
        for x in np.split(
            np.arange(len(cells)), np.searchsorted(tokens, np.arange(0, tokens[-1], options.tokens))
        )
        if len(x)
    ]
    before, largest, seconds = peak(), 0, 0.0
    for rows in batches:
        q, k = (torch.cat(parts) for parts in zip(*(states(cells[row], table) for row in rows), strict=True))
        ids = torch.from_numpy(np.concatenate([cells[row] for row in rows])).long()
        packing = scfast.Packing.from_lengths([len(cells[row]) for row in rows])
        largest = max(largest, 2 * q.numel() * 4)
        start = time.perf_counter()
        scfast.ops.attention_scatter(q, k, packing, ids, sums)
        seconds += time.perf_counter() - start
    more = peak() - before
    exact = torch.zeros_like(sums)
    for genes in cells:
        q, k = (x.double() for x in states(genes, table))
        p = torch.softmax(torch.einsum("ihd,jhd->hij", q, k) / 4, -1).mean(0)
        ids = torch.from_numpy(genes).long()
        exact[ids[:, None], ids] += p.T
    held = exact > 0
    found = {
        "cells": len(cells), "genes": options.genes, "tokens": int(tokens[-1]), "threads": options.threads,
        "seconds": seconds, "pairs": int(held.sum()), "sum": float(exact.sum()),
        "largest_error": float((sums - exact).abs().max()),
        "largest_relative_error": float(((sums - exact).abs() / exact)[held].max()),
        "relative_error_of_norm": float((sums - exact).norm() / exact.norm()),
        "result_bytes": sums.numel() * 8, "largest_batch_bytes": largest, "peak_beyond_start_bytes": more,
    }  # fmt: skip
    print(json.dumps(found, indent=1))
    folder = RESULTS / name()
    folder.mkdir(exist_ok=True)
    (folder / "networks.json").write_text(json.dumps({"machine": describe(), **found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
