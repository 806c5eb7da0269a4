"""Time the rollout of whole models on a GPU against the same packed forward pass without any analysis.

Geneformer's V2 shapes with random weights, bfloat16, cells of 4096 tokens. Each model runs in a process of its own
that may take 8 GB of the GPU and no more: the maps of one cell alone take 9.7 and 21.7 GB in float32. The batch is
what that memory holds. Contenders take turns; a figure is the median over the rounds. Writes OUT/gpu_models.json or
results/<gpu>/gpu_models.json. ``--dry-run`` takes every step on the CPU at toy size and times nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from run_gpu import events, machine, write
from scfast import Packing
from scfast.attention import Recorder
from scfast.models.base import Tokens
from scfast.models.bert import BertEncoder, BertShape
from scfast.models.dictionaries import Dictionaries
from scfast.models.geneformer import GeneformerSource
from scfast.observables import HiddenStates, Observable, Rollout
from scfast.run import granted_memory
from scfast.run.memory import fit
from scfast.run.plan import MAX_BATCH_TOKENS_GPU

#: Layers, heads, hidden, intermediate.
MODELS = {"V2-104M": (12, 12, 768, 3072), "V2-316M": (18, 18, 1152, 4608), "toy": (2, 2, 32, 64)}
TOKENS, TOY_TOKENS, VOCABULARY = 4096, 64, 20275
CAP = 8 * 10**9
ROUNDS = 10
PLAIN, ROLLOUT = "packed forward, no analysis", "scfast rollout of all layers"


def build(name: str, tokens: int, dtype: torch.dtype, device: str) -> GeneformerSource:
    """A model of this shape with random weights."""
    layers, heads, hidden, intermediate = MODELS[name]
    shape = BertShape(
        n_layers=layers, n_heads=heads, hidden=hidden, intermediate=intermediate, vocabulary=VOCABULARY,
        positions=tokens, token_types=2, eps=1e-12, activation="relu", initializer_range=0.02, pad=0,
    )  # fmt: skip
    tables = Dictionaries(tokens={"<pad>": 0, "<mask>": 1, "<cls>": 2, "<eos>": 3}, medians={})
    return GeneformerSource(name, BertEncoder.initialised(shape, dtype, 0).to(device), tables, {})


def batch(cells: int, tokens: int) -> Tokens:
    """Cells of random genes."""
    total = cells * tokens
    random = torch.Generator().manual_seed(0)
    return Tokens(
        ids=torch.randint(4, VOCABULARY, (total,), generator=random),
        positions=torch.arange(tokens).repeat(cells),
        packing=Packing.from_lengths([tokens] * cells),
        gene_index=torch.arange(total),
        kind=torch.zeros(total, dtype=torch.uint8),
        lost_vocabulary=torch.zeros(cells, dtype=torch.int64),
        lost_truncation=torch.zeros(cells, dtype=torch.int64),
    )


def forward(source: GeneformerSource, tokens: Tokens, observable: Observable) -> Recorder:
    recorder = Recorder([observable], keep=False, check=False)
    source.forward(tokens, recorder)
    return recorder


def measure(name: str, rounds: int, dry: bool) -> dict[str, Any]:
    """One row: what both contenders take, in time and memory; the scores of every cell sum to 1."""
    device, n = ("cpu", TOY_TOKENS) if dry else ("cuda", TOKENS)
    if not dry:
        torch.cuda.set_per_process_memory_fraction(CAP / torch.cuda.mem_get_info()[1])
    source = build(name, n, torch.bfloat16, device)
    granted = granted_memory(None, source.device)
    budget = fit(source, granted, n, layers_kept=source.n_layers)
    cells = 2 if dry else min(budget.token_budget, MAX_BATCH_TOKENS_GPU) // n
    tokens = batch(cells, n).to(device)
    # The last state of the cls tokens needs every layer, and keeps next to nothing.
    observables = {PLAIN: HiddenStates(-1, pool="cls"), ROLLOUT: Rollout("cls")}
    runs = {what: partial(forward, budget.source, tokens, wanted) for what, wanted in observables.items()}
    found: dict[str, Any] = {}
    for what, run in runs.items():
        recorder = run()  # compiled and warm from here on
        recorder.check(recorder.batch)
        if not dry:
            torch.cuda.reset_peak_memory_stats()
            run()
            torch.cuda.synchronize()
        found[what] = {"errors": {}} | ({} if dry else {"peak_bytes": torch.cuda.max_memory_allocated()})
    if not dry:
        clocks = {what: [] for what in runs}
        for _ in range(rounds):
            for what, run in runs.items():
                clocks[what].append(events(run))
        torch.cuda.synchronize()
        for what, waiting in clocks.items():
            low, median, high = statistics.quantiles([clock() for clock in waiting], n=4)
            found[what] |= {"seconds": median, "quartiles": [low, high]}
    case = {"model": name, "tokens": n, "cells": cells, "dtype": "bfloat16", "memory": CAP}
    return {"case": case, "threads": torch.get_num_threads(), "rounds": rounds, "contenders": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, help="folder of the result, default $OUT or bench/results/<gpu>")
    parser.add_argument(
        "--dry-run", action="store_true", help="every step on the CPU, nothing timed or written"
    )
    parser.add_argument("--model", choices=MODELS, help="this one alone, in this process: its row as JSON")
    options = parser.parse_args()
    if not options.dry_run and not torch.cuda.is_available():
        raise SystemExit(f"torch {torch.__version__} sees no CUDA device; --dry-run checks the bench itself")
    if options.model:
        with torch.inference_mode():
            print(json.dumps(measure(options.model, options.rounds, options.dry_run)))
        return
    rows, trouble = [], []
    for name in ["toy"] if options.dry_run else ["V2-104M", "V2-316M"]:
        command = [sys.executable, __file__, "--model", name, "--rounds", str(options.rounds)]
        command += ["--dry-run"] if options.dry_run else []
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
        if done.returncode:
            trouble.append(f"{name}: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
            continue
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        if not options.dry_run:
            show(rows[-1])
            write({"op": "gpu_models", "machine": machine(), "yardstick": PLAIN, "rows": rows}, options.out)
    if trouble:
        raise SystemExit("\n".join(trouble))
    if options.dry_run:
        print("dry run: every step ran, and the scores of every cell sum to 1")


def show(row: dict[str, Any]) -> None:
    case, found = row["case"], row["contenders"]
    ratio = found[ROLLOUT]["seconds"] / found[PLAIN]["seconds"]
    peak = found[ROLLOUT]["peak_bytes"] / 1e9
    print(
        f"{case['model']}, {case['cells']} cells of {case['tokens']}: rollout {found[ROLLOUT]['seconds']:.3f} s,"
        f" / forward {ratio:.2f}, peak {peak:.2f} GB of {CAP / 1e9:.0f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
