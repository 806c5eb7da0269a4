"""Cells a second, and memory, of all that is not a model: reading from disk, tokens, batches, sums over groups.

Cells: rows of pbmc_facs.h5ad drawn again and again, as CSR in h5ad and in sharded zarr, uncompressed and compressed.
Model: the tokeniser and context of Geneformer V1, with a forward pass that does nothing.

Each size and phase runs in a process of its own, so that its memory holds nothing that an earlier one left: a process
that makes files, or runs a phase before, has its own peak. Between two sizes, peaks differ by what a cell costs; so do
seconds, from which the start falls out. Memory is handed out as in a user's process: with a fixed threshold for what
the heap does not take, every batch touched new pages, which was a third of the time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

import scfast
from atlas_files import KINDS, file
from end_to_end import write_checkpoint
from machine import RESULTS, cores, describe, status
from scfast.analyses import GroupExpression, Strata
from scfast.models.geneformer import GeneformerSource
from scfast.run import Counts, StoredCounts, make_plan, run, survey

PHASES = ("read", "tokenised", "analysed")


class NoModel(GeneformerSource):
    """The tokeniser alone."""

    def forward(self, tokens: Any, recorder: Any) -> None:
        return None


def measure(path: Path, checkpoint: Path, phase: str) -> dict[str, float]:
    """Seconds of a phase, and the most memory of the process from the opening of the file to its end.

    ``read``: all blocks; ``tokenised``: these, and tokens of every cell; ``analysed``: both again once the plan is made
    from the lengths, and sums over ten groups.
    """
    warnings.simplefilter("ignore")
    loaded = scfast.models.load("geneformer", checkpoint)
    loaded.__class__ = NoModel
    first = scfast.io.open(path, obs=["n_counts"])[:100].to_memory()
    survey(loaded, Counts(first.X, first.var, first.obs["n_counts"].to_numpy()))  # threads and lazy imports
    del first
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    adata = scfast.io.open(path, obs=["n_counts"])  # names of cells would take a hundred bytes each
    n_counts = adata.obs["n_counts"].to_numpy()

    def counts() -> StoredCounts:
        return StoredCounts(adata.X, adata.var, n_counts)

    started = time.perf_counter()
    if phase == "read":
        stored = counts()
        for block in range(0, adata.n_obs, stored.block_cells):
            stored.take(np.arange(block, min(block + stored.block_cells, adata.n_obs)))
    else:
        stored = counts()
        lengths = survey(loaded, stored).lengths
    if phase == "analysed":
        plan = make_plan(lengths, token_budget=2**17, shard_cells=stored.shard_cells)
        del lengths, stored
        strata = Strata.from_codes(np.arange(adata.n_obs) % 10, 10)
        analysis = GroupExpression(strata, adata.n_vars)
        started = time.perf_counter()
        run(loaded, counts(), {"expression": analysis}, plan, lambda tokens: [], progress=False)
        cells = analysis.sums["cells"].sum()
        assert cells == adata.n_obs, f"{cells} of {adata.n_obs} cells"
    return {"seconds": time.perf_counter() - started, "peak_bytes": status("VmHWM")}


def measured(path: Path, checkpoint: Path, phase: str, threads: int) -> dict[str, float]:
    """:func:`measure` in a process of its own."""
    command = [
        sys.executable,
        __file__,
        "--one",
        str(path),
        str(checkpoint),
        phase,
        "--threads",
        str(threads),
    ]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(answer.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("SCFAST_TEST_DATA"), help="Holds cells/, geneformer/."
    )
    parser.add_argument("--cells", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--phases", nargs="*", default=list(PHASES), choices=list(PHASES))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--files", type=Path, help="Folder where files are kept for the next time.")
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--out", type=Path, help="Folder for the result.  [default: bench/results/MACHINE]")
    parser.add_argument(
        "--add", action="store_true", help="To the result that is there, made in several parts."
    )
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        torch.set_num_threads(options.threads)
        path, checkpoint, phase = options.one
        print(json.dumps(measure(Path(path), Path(checkpoint), phase)))
        return
    if options.data is None:
        parser.error("give --data or set SCFAST_TEST_DATA: a folder that holds cells/ and geneformer/")
    here = describe()
    written = (options.out or RESULTS / here["name"]) / "atlas.json"
    written.parent.mkdir(parents=True, exist_ok=True)
    result = {"op": "atlas", "machine": here, "threads": options.threads, "sizes": {}}
    if options.add and written.exists():
        before = json.loads(written.read_text())
        if before["threads"] != options.threads:
            parser.error(f"{written} was measured with {before['threads']} threads, not {options.threads}")
        result["sizes"] = before["sizes"]
    with tempfile.TemporaryDirectory() as made:
        checkpoint, folder = Path(made) / "model", options.files or Path(made)
        checkpoint.mkdir()
        write_checkpoint(checkpoint, options.data)
        for kind in options.kinds:
            sizes = result["sizes"].setdefault(kind, {})
            for n_cells in options.cells:
                path = file(folder, kind, n_cells, options.data)
                for _ in range(options.rounds):
                    for phase in options.phases:
                        found = measured(path, checkpoint, phase, options.threads)
                        kept = sizes.setdefault(str(n_cells), {}).setdefault(phase, {})
                        for name, value in found.items():
                            kept.setdefault(name, []).append(value)
                        rate, peak = n_cells / found["seconds"], found["peak_bytes"]
                        print(
                            f"{kind:10s} {n_cells:9,d} {phase:9s} {rate:9,.0f}/s {peak / 1e6:7.1f} MB",
                            flush=True,
                        )
                        written.write_text(json.dumps(result, indent=1) + "\n")
                if options.files is None:
                    shutil.rmtree(path.parent)


if __name__ == "__main__":
    main()
