"""Exactness and memory of gene networks: attention_scatter over all cells beside maps that are held in float64.

Cells: pbmc_facs.h5ad, its training split, the 2,000 most variable genes, every expressed one a token. Queries and keys
are random, a vector for each gene, head and place. The sum over cells is compared element by element with softmax maps
of the same float32 inputs in float64, and so is the peak of scfast.tl.grn with what it was granted and what it returns.
Sums are made in processes of their own. Those of the maps are kept after every block of cells: a run that was stopped
goes on from there.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import torch

import scfast
from machine import RESULTS, ROOT, commit, describe, name, peak_growth
from scfast.models.bioformers import create
from scfast.run import parse_memory

HEADS, WIDTH = 4, 16
#: Cells whose maps are added before the sum is kept.
BLOCK = 200
#: Of scfast.tl.grn: cells, each with a token for every gene, and what it may use.
TOOL_CELLS, TOOL_MEMORY = 16, "500MB"


def read(options: argparse.Namespace) -> anndata.AnnData:
    """Counts of the most variable genes."""
    adata = anndata.read_h5ad(options.data)
    adata = adata[(adata.obs["split"] == "train").to_numpy()][: options.cells]
    levels = adata.X.log1p()
    variance = np.asarray(levels.power(2).mean(0) - np.square(levels.mean(0))).ravel()
    return adata[:, np.argsort(-variance, kind="stable")[: options.genes]].copy()


def cells_of(adata: anndata.AnnData) -> list[np.ndarray]:
    """Genes of every cell, by falling count."""
    counts = adata.X.tocsr()
    counts.sort_indices()
    rows = [slice(*counts.indptr[i : i + 2]) for i in range(counts.shape[0])]
    return [counts.indices[at][np.argsort(-counts.data[at], kind="stable")] for at in rows]


def vectors(n_genes: int) -> torch.Tensor:
    """float32 [2, G, H, D]: query and key of every gene."""
    return torch.randn(2, n_genes, HEADS, WIDTH, generator=torch.Generator().manual_seed(0))


def states(genes: np.ndarray, table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Queries and keys [n, H, D] of a cell: those of the genes, turned a little at every place."""
    place = torch.arange(len(genes))[:, None, None] / 100
    q, k = table[:, torch.from_numpy(genes).long()]
    return q * torch.cos(place), k * torch.cos(place)


def op(options: argparse.Namespace) -> dict[str, Any]:
    """attention_scatter, batch after batch; its sum goes into a file."""
    cells, table = cells_of(read(options)), vectors(options.genes)
    tokens = np.cumsum([len(genes) for genes in cells])
    cuts = np.searchsorted(tokens, np.arange(0, tokens[-1], options.tokens))
    largest = 0

    def add(sums: torch.Tensor, batches: list[np.ndarray]) -> None:
        nonlocal largest
        for rows in batches:
            parts = zip(*(states(cells[row], table) for row in rows), strict=True)
            q, k = (torch.cat(part) for part in parts)
            ids = torch.from_numpy(np.concatenate([cells[row] for row in rows])).long()
            packing = scfast.Packing.from_lengths([len(cells[row]) for row in rows])
            scfast.ops.attention_scatter(q, k, packing, ids, sums, rows=(0, len(sums)))
            largest = max(largest, 2 * q.nbytes)

    made: list[torch.Tensor] = []

    def measured() -> None:
        made.append(torch.zeros(options.genes, options.genes, dtype=torch.float64))
        add(made[0], list(filter(len, np.split(np.arange(len(cells)), cuts))))

    add(torch.zeros(1, options.genes, dtype=torch.float64), [np.arange(1)])  # code and threads are there
    growth = peak_growth(measured)
    np.save(options.kept / "sums.npy", made[0].numpy())
    return {
        "cells": len(cells), "tokens": int(tokens[-1]), "result_bytes": made[0].nbytes, "largest_batch_bytes": largest,
        "peak_growth_bytes": growth,
    }  # fmt: skip


def tool(options: argparse.Namespace) -> dict[str, Any]:
    """scfast.tl.grn over some cells of all genes."""
    adata = read(options)[:TOOL_CELLS].copy()
    few, given = adata[:4, :50].copy(), {"min_cells": 1, "n_blocks": 2, "progress": False}
    scfast.tl.grn(few, create(list(few.var_names), preset="small"), **given)  # code and threads are there
    model = create(list(adata.var_names), preset="small")
    growth = peak_growth(lambda: scfast.tl.grn(adata, model, memory=TOOL_MEMORY, **given))
    parts = [adata.varp[key] for key in ("grn", "grn_se")]
    return {
        "cells": adata.n_obs, "tokens_of_a_cell": adata.n_vars + 1, "memory_bytes": parse_memory(TOOL_MEMORY),
        "result_bytes": sum(x.data.nbytes + x.indices.nbytes + x.indptr.nbytes for x in parts),
        "peak_growth_bytes": growth, "passes": adata.uns["grn"]["params"]["passes"],
    }  # fmt: skip


def held(options: argparse.Namespace) -> np.ndarray:
    """The sum of maps in float64 [G, G], sources in rows, from where the last run stopped."""
    cells, table = cells_of(read(options)), vectors(options.genes)
    file = options.kept / "held.npz"
    exact, first = np.zeros((options.genes, options.genes)), 0
    if file.exists():
        with np.load(file) as kept:
            exact, first = kept["sum"], int(kept["cells"])
    start = time.perf_counter()
    for block in range(first, len(cells), BLOCK):
        for genes in cells[block : block + BLOCK]:
            q, k = (x.double().transpose(0, 1) for x in states(genes, table))  # [H, n, D]
            p = torch.softmax(k.new_tensor(WIDTH**-0.5) * q @ k.transpose(1, 2), -1).mean(0)
            exact[np.ix_(genes, genes)] += p.T.numpy()
        done = min(block + BLOCK, len(cells))
        np.savez(options.kept / "next.npz", sum=exact, cells=done)
        (options.kept / "next.npz").replace(file)
        print(f"{done:,} of {len(cells):,} cells, {time.perf_counter() - start:.0f} s", flush=True)
    return exact


def in_its_process(part: str, options: argparse.Namespace) -> dict[str, Any]:
    """What a part found, from its file where it was made before."""
    file = options.kept / f"{part}.json"
    if not file.exists():
        command = [sys.executable, __file__, *sys.argv[1:], "--part", part]
        answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        file.write_text(answer)
    return dict(json.loads(file.read_text()))


def main() -> None:
    """Sum, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="pbmc_facs.h5ad")
    parser.add_argument("--cells", type=int, help="default: all")
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--tokens", type=int, default=8192, help="of a batch")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--kept", type=Path, default=ROOT / "build" / "networks", help="folder of what is made so far"
    )
    parser.add_argument("--out", type=Path, help="folder of the result, default bench/results/<machine>")
    parser.add_argument("--part", choices=["op", "tool"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.kept /= f"{options.cells or 'all'}-{options.genes}"
    options.kept.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any]
    if options.part:
        found = op(options) if options.part == "op" else tool(options)
        print(json.dumps({"commit": commit(), **found}))
        return
    found = {"threads": options.threads, "genes": options.genes}
    found |= {"attention_scatter": in_its_process("op", options), "tl.grn": in_its_process("tool", options)}
    exact, sums = held(options), np.load(options.kept / "sums.npy")
    there, error = exact > 0, np.abs(sums - exact)
    found |= {
        "pairs": int(there.sum()), "sum": float(exact.sum()), "largest_error": float(error.max()),
        "largest_relative_error": float((error[there] / exact[there]).max()),
        "relative_error_of_norm": float(np.linalg.norm(sums - exact) / np.linalg.norm(exact)),
    }  # fmt: skip
    print(json.dumps(found, indent=1))
    folder = options.out or RESULTS / name()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "networks.json").write_text(
        json.dumps({"op": "networks", "machine": describe(), **found}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
