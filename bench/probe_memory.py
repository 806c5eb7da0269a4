"""Peak memory of tl.probe by the number of cells: all states of a model of 12 layers, 512 wide, in one pass.

Model: random weights. Cells: those of pbmc_facs_mini.h5ad, drawn with replacement, their ten populations as labels;
they are cut to a few tokens, because what a probe keeps depends on cells, layers and width, not on tokens, and the
model takes its time by token. Every number of cells runs in a process of its own; inputs are not counted.
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
from pathlib import Path

import anndata
import numpy as np
import torch
from transformers import BertConfig, BertForMaskedLM
from transformers.utils import logging

import scfast
from machine import cores, peak_growth
from scfast.models.base import AttentionSource

LAYERS, HEADS, WIDTH, FEED_FORWARD = 12, 8, 512, 1024
VOCABULARY = 25_426
SETTLED = 200


def make_source(data: Path, tokens: int) -> AttentionSource:
    """The model, whose context is so many tokens."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=FEED_FORWARD, max_position_embeddings=tokens, hidden_act="relu", pad_token_id=0,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        BertForMaskedLM(config).save_pretrained(folder)
        shutil.copy(data / "geneformer" / "v1_gc30M_tokens.csv.gz", Path(folder) / "token_dictionary.csv.gz")
        return scfast.models.load("geneformer", folder)


def draw(data: Path, n: int) -> anndata.AnnData:
    """So many cells, some of them several times."""
    cells = anndata.read_h5ad(data / "cells" / "pbmc_facs_mini.h5ad")
    rows = np.random.default_rng(0).integers(0, cells.n_obs, n)
    obs = cells.obs.iloc[rows].set_axis([f"cell {i}" for i in range(n)])
    return anndata.AnnData(cells.X[rows], obs=obs, var=cells.var)


def measure(data: Path, n: int, tokens: int, memory: str) -> dict[str, float]:
    """Growth of the resident memory's high-water mark, and what the run was."""
    source = make_source(data, tokens)
    options = {"confirm": None, "memory": memory, "progress": False}
    scfast.tl.probe(draw(data, SETTLED), source, "celltype", **options)  # threads and lazy imports
    cells, found = draw(data, n), {}
    start = time.perf_counter()
    found["peak_mb"] = peak_growth(lambda: scfast.tl.probe(cells, source, "celltype", **options)) / 1e6
    found["seconds"] = time.perf_counter() - start
    results = cells.uns["probe"]
    found["probes"] = len(results["table"])
    found["train"] = int(results["table"]["train"].iloc[0])
    found["batches"] = int(results["params"]["plan"]["batches"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("SCFAST_TEST_DATA"), help="test data folder"
    )
    parser.add_argument("--cells", type=int, nargs="+", default=[2_000, 20_000])
    parser.add_argument("--tokens", type=int, default=8, help="tokens that cells are cut to")
    parser.add_argument("--memory", default="500MB", help="what the run may use")
    parser.add_argument("--threads", type=int, default=min(2, cores()))
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.data is None:
        parser.error("give --data or set SCFAST_TEST_DATA: a folder that holds cells/ and geneformer/")
    data = options.data / "data" if (options.data / "data").is_dir() else options.data
    torch.set_num_threads(options.threads)
    logging.disable_progress_bar()
    if options.one:
        print(json.dumps(measure(data, options.one, options.tokens, options.memory)))
        return
    for n in options.cells:
        command = [sys.executable, *sys.argv, "--one", str(n)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        row = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{n:>9,} cells   peak {row['peak_mb']:7.1f} MB   {row['seconds']:7.1f} s   {row['batches']} batches  "
            f" {row['probes']} probes, each of {row['train']:,} cells a fold",
            flush=True,
        )


if __name__ == "__main__":
    main()
