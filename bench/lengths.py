"""Time and peak memory of one cell's attention rollout by the length of the cell: ours, backward passes, maps.

Model: the shape of Geneformer V1-10M with random weights and positions for the longest cell. Every contender runs the
whole model and rolls the mean of the cell back to its tokens by one vector a layer. They take turns; peaks are measured
in a process for each contender. One thread is timed by the processor's clock, which other programs do not lengthen;
several by the wall's. Lengths that a result holds already are kept, unless they are named. Where maps would not fit the
memory that is free, their curve ends.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, BertConfig, BertModel
from transformers.utils import logging

import scfast
from machine import RESULTS, available_memory, describe, peak_growth, status
from scfast.observables import Rollout

OURS = "scfast"
MAPS = "attention maps, held"
BACKWARD = "backward passes of torch SDPA"
PLAIN = "torch SDPA forward, no analysis"
LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
LONGEST_EXACT = 2048  # longer float64 maps would need more memory than the machine may have
MAPS_HELD_AT_ONCE = 1.5  # peak over the maps of all layers: those being computed have copies
WARM_UP = 64
RESIDUAL = 0.5

Scores = torch.Tensor | None  # [n]


class Bench:
    """The model under three kinds of attention, and one method per contender."""

    def __init__(self, longest: int) -> None:
        config = BertConfig(
            vocab_size=25426, hidden_size=256, num_hidden_layers=6, num_attention_heads=4, intermediate_size=512,
            max_position_embeddings=longest, hidden_act="relu", pad_token_id=0,
        )  # fmt: skip
        torch.manual_seed(0)
        self.model = BertModel(config, add_pooling_layer=False).eval()
        self.kept: list[tuple[torch.Tensor, torch.Tensor]] = []
        AttentionInterface.register("sdpa_kept", self.keep)

    def contenders(self) -> dict[str, Callable[[torch.Tensor], Scores]]:
        """Name -> method, which takes ids [n]."""
        return {OURS: self.ours, BACKWARD: self.backward, MAPS: self.maps, PLAIN: self.plain}

    def map_bytes(self, n_tokens: int) -> float:
        """About the peak of holding the maps of all layers, in float32."""
        config = self.model.config
        maps = config.num_hidden_layers * config.num_attention_heads * n_tokens**2 * torch.float32.itemsize
        return MAPS_HELD_AT_ONCE * maps

    def ours(self, ids: torch.Tensor) -> Scores:
        with scfast.record(self.model, Rollout("mean", residual=RESIDUAL)) as recorded:
            self.model(input_ids=ids[None])
        return recorded["rollout"][0]

    def plain(self, ids: torch.Tensor) -> Scores:
        self.run(ids, "sdpa")
        return None

    def maps(self, ids: torch.Tensor) -> Scores:
        scores = uniform(ids)
        for layer in reversed(self.run(ids, "eager", output_attentions=True).attentions):  # [1, H, n, n]
            scores = step(scores, scores.to(layer.dtype) @ layer[0].mean(0))
        return scores

    def backward(self, ids: torch.Tensor) -> Scores:
        self.kept.clear()
        self.run(ids, "sdpa_kept")
        scores = uniform(ids)
        while self.kept:
            out, v = self.kept.pop()  # [1, H, n, D]
            d_out = torch.zeros_like(
                out
            )  # the fused kernel wants it as wide as v: one column holds the weights
            d_out[..., 0] = scores / out.shape[1]
            (d_v,) = torch.autograd.grad(out, v, d_out)
            scores = step(scores, d_v[0, :, :, 0].sum(0))
        return scores

    def keep(self, module: Any, q: Any, k: Any, v: Any, mask: Any, **_: Any) -> tuple[torch.Tensor, None]:
        """Attention whose graph is kept: r^T P is the gradient with respect to v, r being that of the output."""
        with torch.enable_grad():
            v = v.detach().requires_grad_()
            out = scaled_dot_product_attention(q, k, v)
        self.kept.append((out, v))
        return out.detach().transpose(1, 2), None

    def run(self, ids: torch.Tensor, attention: str, **options: Any) -> Any:
        self.model.set_attn_implementation(attention)
        return self.model(input_ids=ids[None], **options)

    def exact(self, ids: torch.Tensor) -> torch.Tensor:
        """The scores in float64."""
        self.model.double()
        scores = self.maps(ids)
        self.model.float()
        assert scores is not None
        return scores


def uniform(ids: torch.Tensor) -> torch.Tensor:
    return torch.full(ids.shape, 1 / ids.numel(), dtype=torch.float64)


def step(before: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
    return RESIDUAL * read + (1 - RESIDUAL) * before


def cell(n_tokens: int) -> torch.Tensor:
    return torch.randint(2, 25426, (n_tokens,), generator=torch.Generator().manual_seed(n_tokens))


def measure(bench: Bench, n_tokens: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Every contender once per round; the first call of each warms up, and is compared."""
    ids, runs = cell(n_tokens), bench.contenders()
    if (needed := bench.map_bytes(n_tokens)) > available_memory():
        del runs[MAPS]
        print(f"{n_tokens:6d}  {MAPS:34s} left out: it needs {needed / 1e9:.1f} GB", flush=True)
    exact = bench.exact(ids) if n_tokens <= LONGEST_EXACT else None
    row: dict[str, dict[str, Any]] = {name: {} for name in runs}
    for name, run in runs.items():
        scores = run(ids)
        if exact is not None and scores is not None:
            off = (scores.double() - exact).abs() / exact.max()
            row[name]["error"] = {"max": off.max().item(), "mean": off.mean().item()}
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = clock()
            run(ids)
            times[name].append(clock() - start)
    for name, seconds in times.items():
        low, median, high = statistics.quantiles(seconds, n=4) if rounds > 1 else seconds * 3
        row[name] |= {"seconds": median, "quartiles": [low, high], "rounds": rounds}
    return row


def add_memory(rows: dict[str, dict[str, dict[str, Any]]], lengths: list[int], threads: int) -> None:
    """Peak memory of each contender's calls, beyond what its process holds before the first of them."""
    for name in rows[str(lengths[0])]:
        held = [n for n in lengths if name in rows[str(n)]]
        command = [sys.executable, __file__, *map(str, held), "--threads", str(threads), "--peak", name]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        for n, peak in zip(held, done.stdout.split(), strict=True):
            rows[str(n)][name]["peak_bytes"] = int(peak)


def print_peaks(run: Callable[[torch.Tensor], Scores], lengths: list[int]) -> None:
    run(cell(WARM_UP))  # threads and lazy imports are not the call's memory
    first = status("VmRSS")
    for ids in map(cell, lengths):  # what a call leaves behind lies below the peak of a longer one
        before = status("VmRSS") - first
        print(before + peak_growth(lambda ids=ids: run(ids)))


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tokens", type=int, nargs="*", default=LENGTHS, help="lengths of cells")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--only-memory", action="store_true", help="add peak memory to a result that is there; needs no quiet"
    )
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    parser.add_argument("--out", type=Path, help="folder of the result, default bench/results/<machine>")
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.set_verbosity_error()
    bench = Bench(max(*LENGTHS, *options.tokens))
    if options.peak:
        print_peaks(bench.contenders()[options.peak], sorted(options.tokens))
        return

    here = describe()
    file = (options.out or RESULTS / here["name"]) / "lengths.json"
    rows = json.loads(file.read_text())["lengths"] if file.exists() else {}
    lengths = sorted(options.tokens)
    for n in lengths if not options.only_memory else ():
        before = rows.get(str(n), {})
        rows[str(n)] = row = measure(bench, n, options.rounds)
        for name, found in row.items():
            if peak := before.get(name, {}).get("peak_bytes"):  # stays until it is measured again
                found["peak_bytes"] = peak
            print(f"{n:6d}  {name:34s} {found['seconds']:8.3f} s", flush=True)
    if not options.no_memory:
        add_memory(rows, lengths, options.threads)
    result = {
        "op": "lengths", "machine": here, "model": "Geneformer V1-10M shape, random weights", "layers": 6, "heads": 4,
        "threads": options.threads, "lengths": {n: rows[n] for n in sorted(rows, key=int)},
    }  # fmt: skip
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {file}")


if __name__ == "__main__":
    main()
