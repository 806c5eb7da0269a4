"""What it brings to share a run: processes with one thread each, by parts or by Dask, against one process.

Model: the shape of Geneformer V1-10M with random weights. Cells: the first of pbmc_facs_mini.h5ad. Processes are
started, and have imported and loaded what they need, before the clock starts; from there it runs until the results are
merged. Contenders take turns; every figure is a median over rounds. Those of one thread must agree to the bit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import anndata
import distributed
import numpy as np
import torch

import scfast
from end_to_end import write_checkpoint
from machine import RESULTS, cores, describe

#: Rows of a shard: many shards for each worker, each of several batches' worth of cells.
SHARD_CELLS = 8


def digest(adata: anndata.AnnData) -> str:
    """Of all scores."""
    scores = adata.layers["rollout"]
    parts = (scores.data, scores.indices.astype(np.int64), adata.varm["rollout"].to_numpy())
    return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()


def analyse(adata: anndata.AnnData, source: Any, folder: str, **options: Any) -> str:
    """The rollout of all cells, kept in a folder; its digest, or nothing where other parts are missing."""
    try:
        with scfast.run.resumable(folder, shard_cells=SHARD_CELLS, **options):
            scfast.tl.rollout(adata, source, null=None, progress=False)
    except scfast.run.PartDone:
        return ""
    return digest(adata)


def load(data: Path, checkpoint: Path, n_cells: int) -> tuple[anndata.AnnData, Any]:
    adata = anndata.read_h5ad(data / "cells" / "pbmc_facs_mini.h5ad")[:n_cells].copy()
    return adata, scfast.models.load("geneformer", checkpoint)


def serve(data: Path, checkpoint: Path, n_cells: int) -> None:
    """Run parts as they are asked for: THREADS INDEX COUNT FOLDER in each line."""
    adata, source = load(data, checkpoint, n_cells)
    print("ready", flush=True)
    for line in sys.stdin:
        threads, index, count, folder = line.split()
        torch.set_num_threads(int(threads))
        print(analyse(adata, source, folder, part=(int(index), int(count))) or "part", flush=True)


class Processes:
    """Processes that wait for parts."""

    def __init__(self, n: int, *arguments: str) -> None:
        command = [sys.executable, __file__, "--serve", *arguments]
        self.all = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(n)
        ]
        for process in self.all:
            assert self._answer(process) == "ready"

    @staticmethod
    def _answer(process: subprocess.Popen[str]) -> str:
        return process.stdout.readline().strip()  # type: ignore[union-attr]

    def _ask(self, process: subprocess.Popen[str], *words: object) -> None:
        print(*words, file=process.stdin, flush=True)

    def run(self, count: int, threads: int, folder: str) -> str:
        """All parts side by side, and then the merge."""
        for index, process in enumerate(self.all[:count]):
            self._ask(process, threads, index, count, folder)
        answers = [self._answer(process) for process in self.all[:count]]
        if count == 1:
            return answers[0]
        self._ask(self.all[0], threads, 0, 1, folder)
        return self._answer(self.all[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=os.environ.get("SCFAST_TEST_DATA"), help="Holds cells/.")
    parser.add_argument("--cells", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="Folder for the result.  [default: bench/results/MACHINE]")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.serve:
        serve(Path(options.serve[0]), Path(options.serve[1]), int(options.serve[2]))
        return
    if options.data is None:
        parser.error("give --data or set SCFAST_TEST_DATA: a folder that holds cells/ and geneformer/")
    all_cores = cores()
    with tempfile.TemporaryDirectory() as temporary:
        checkpoint = Path(temporary) / "model"
        checkpoint.mkdir()
        write_checkpoint(checkpoint, options.data)
        processes = Processes(4, str(options.data), str(checkpoint), str(options.cells))
        adata, source = load(options.data, checkpoint, options.cells)
        torch.set_num_threads(1)
        with (
            distributed.LocalCluster(
                n_workers=all_cores, threads_per_worker=1, memory_limit=0, dashboard_address=":0"
            ) as cluster,
            distributed.Client(cluster) as client,
        ):
            few = adata[:8].copy()
            analyse(few, source, f"{temporary}/warm", dask=client)  # the workers import what they need
            calls = {
                f"1 worker, {all_cores} threads": lambda folder: processes.run(1, all_cores, folder),
                "1 worker, 1 thread": lambda folder: processes.run(1, 1, folder),
                "2 workers, 1 thread each": lambda folder: processes.run(2, 1, folder),
                "4 workers, 1 thread each": lambda folder: processes.run(4, 1, folder),
                f"Dask LocalCluster, {all_cores} workers, 1 thread each": lambda folder: analyse(
                    adata, source, folder, dask=client
                ),
            }
            taken: dict[str, list[float]] = {name: [] for name in calls}
            digests: dict[str, set[str]] = {name: set() for name in calls}
            for number in range(options.rounds):
                for place, (name, call) in enumerate(calls.items()):
                    start = time.perf_counter()
                    digests[name].add(call(f"{temporary}/{number}-{place}"))
                    taken[name].append(time.perf_counter() - start)
                    print(f"{name:50s} {taken[name][-1]:6.2f} s", flush=True)
        for process in processes.all:
            process.stdin.close()  # type: ignore[union-attr]
            process.wait()
    one_thread = {bits for name, found in digests.items() if not name.endswith("threads") for bits in found}
    if len(one_thread) != 1:
        raise SystemExit("contenders of one thread differ")
    contenders = {
        name: {"seconds": statistics.median(seconds), "rounds": seconds} for name, seconds in taken.items()
    }
    here = describe()
    result = {
        "op": "workers", "machine": here, "model": "Geneformer V1-10M shape, random weights",
        "cells": options.cells, "shard_cells": SHARD_CELLS, "contenders": contenders,
    }  # fmt: skip
    out = options.out or RESULTS / here["name"]
    out.mkdir(parents=True, exist_ok=True)
    (out / "workers.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
