"""Time the attention ops on a GPU against torch's, and write OUT/<op>.json or results/<gpu>/<op>.json.

Batches of whole cells that fill the chip, head dim 64, bfloat16. Contenders take turns; a figure is the median of
CUDA events over the rounds. Errors are against float64, on a small batch. ``--dry-run`` runs every step on the CPU,
with torch's plain attention in the place of its GPU kernels, and compares answers without timing anything.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

import gpu_peers as peers
from machine import RESULTS, describe

OPS = ("attention_colsum", "attention_forward", "attention_backward", *peers.ALONE)
#: What the tables divide by.
YARDSTICKS = dict.fromkeys(OPS, "SDPA flash forward") | {"attention_backward": "SDPA flash backward"}
#: Tokens of a batch: 12 heads make 6144 tiles of 128 rows for the 132 multiprocessors of a Hopper chip.
BATCH_TOKENS = 65536
#: (heads, tokens of each cell): Geneformer's smallest and its larger models; and cells of several lengths.
SHAPES: tuple[tuple[int, tuple[int, ...]], ...] = (
    (4, (2048,)), (12, (1024,)), (12, (2048,)), (12, (4096,)), (12, (1024, 2048, 3072, 4096)),
)  # fmt: skip
SMALL = (64, 130, 64, 33)
TINY_SHAPES = ((2, (33, 64)),)
DTYPE = torch.bfloat16
ROUNDS = 20

#: Exponentials and matrix products per entry of a map that an op cannot do without (column sums need the
#: log-sum-exp first, so two passes); a backward pass has five products. A comparison has two maps.
WORK = {
    ("attention_colsum", peers.OURS): (2, 2),
    ("attention_colsum", peers.OURS_NORM): (2, 2),
    ("attention_colsum", peers.OURS_RELEVANCE): (2, 3),
    ("attention_forward", peers.OURS): (1, 2),
    ("attention_forward", peers.OURS_RECEIVED): (2, 3),
    ("attention_backward", peers.OURS): (1, 5),
    **dict.fromkeys(((op, peers.OURS) for op in peers.ALONE), (2, 2)),
}
#: Error of an answer that torch has nothing beside, relative to its largest entry.
MOST_ALONE = 1e-5
#: Hopper: 16 exponentials and 2048 bf16 multiply-adds (989 TFLOP/s) per clock and multiprocessor, at 1.83 GHz.
HOPPER, CLOCK, EXPS_PER_CLOCK, MULTIPLY_ADDS_PER_CLOCK = 9, 1.83e9, 16, 2048


def cells(lengths: tuple[int, ...]) -> list[int]:
    """Cells of these lengths in equal numbers, as many as a batch takes."""
    return list(lengths) * max(1, BATCH_TOKENS // sum(lengths))


def floor(op: str, name: str, elements: int) -> float | None:
    """Seconds below which no Hopper chip with this many multiprocessors can be."""
    if (op, name) not in WORK or not torch.cuda.is_available():
        return None
    chip = torch.cuda.get_device_properties(0)
    if chip.major != HOPPER:
        return None
    exps, products = WORK[op, name]
    clocks = max(exps / EXPS_PER_CLOCK, products * peers.HEAD_DIM / MULTIPLY_ADDS_PER_CLOCK)
    return elements * clocks / (chip.multi_processor_count * CLOCK)


def machine() -> dict[str, Any]:
    """What a reader needs to place the figures; the name is that of the GPU."""
    here = describe()
    if torch.cuda.is_available():
        chip = torch.cuda.get_device_properties(0)
        here |= {
            "name": re.sub(r"[^a-z0-9]+", "-", chip.name.lower()).strip("-"),
            "gpu": chip.name,
            "capability": f"{chip.major}.{chip.minor}",
            "multiprocessors": chip.multi_processor_count,
            "gpu_memory": chip.total_memory,
            "cuda": torch.version.cuda,
            "driver": driver(),
        }
    return here


def driver() -> str:
    """Version of the GPU's driver."""
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(asked, check=True, capture_output=True, text=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


def errors(op: str, device: str, dry: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """Contender -> largest and mean error per output on a small batch; and why some cannot run."""
    data = peers.inputs(SMALL, 2, device, DTYPE)
    truth = peers.exact(op, data)
    found: dict[str, Any] = {}
    refused: dict[str, str] = {}
    held = {peers.HELD: peers.held_maps} if op == "attention_colsum" else {}
    for name, run in (peers.contenders(op, dry) | held).items():
        try:
            answer = run(data)
        except Exception as error:
            refused[name] = first_line(error)
            continue
        found[name] = {}
        for output, value in answer.items():
            off = (value.cpu().double() - truth[output]).abs() / truth[output].abs().max()
            found[name][output] = {"max": off.max().item(), "mean": off.mean().item()}
    return found, refused


def check(op: str, found: dict[str, Any]) -> list[str]:
    """Outputs of ours that are further off than twice the worst of torch's and a floor of rounding, or MOST_ALONE."""
    wrong = []
    for name in peers.ALL_OURS:
        for output, error in found.get(name, {}).items():
            theirs = [x[output]["max"] for other, x in found.items() if "scfast" not in other and output in x]
            most = 2 * max(theirs) + 2e-6 if theirs else MOST_ALONE
            if not error["max"] <= most:
                wrong.append(
                    f"{op}, {name}: {output} is off by {error['max']:.1e}, at most {most:.1e} is rounding"
                )
    return wrong


def first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def peak_growth_on_gpu(call: Callable[[], object]) -> int:
    """Bytes by which the most that tensors take rises during ``call``."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def events(run: Callable[[], object]) -> Callable[[], float]:
    """Call ``run`` between two CUDA events; the seconds between them, once all is done."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    return lambda: start.elapsed_time(end) / 1e3


def measure(
    op: str, runs: dict[str, peers.Contender], data: peers.Inputs, rounds: int, dry: bool
) -> tuple[dict[str, Any], dict[str, str]]:
    """Contender -> times and memory, every contender once per round; and why some did not run."""
    found: dict[str, Any] = {}
    refused: dict[str, str] = {}
    for name, run in runs.items():
        try:
            run(data)
            run(data)  # compiled and warm from here on
            found[name] = {} if dry else {"peak_bytes": peak_growth_on_gpu(partial(run, data))}
        except Exception as error:
            refused[name] = first_line(error)
    runs = {name: run for name, run in runs.items() if name in found}
    if dry:
        return found, refused
    clocks: dict[str, list[Callable[[], float]]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            clocks[name].append(events(partial(run, data)))
    torch.cuda.synchronize()
    for name, waiting in clocks.items():
        seconds = [clock() for clock in waiting]
        low, median, high = statistics.quantiles(seconds, n=4) if rounds > 1 else seconds * 3
        found[name] |= {"seconds": median, "quartiles": [low, high]}
        if least := floor(op, name, data.elements):
            found[name] |= {"floor_seconds": least, "times_floor": median / least}
    return found, refused


def fastest(contenders: dict[str, Any], *words: str) -> float | None:
    """Least median among torch's contenders whose names hold all words."""
    times = [
        x["seconds"]
        for name, x in contenders.items()
        if "scfast" not in name and all(word in name for word in words)
    ]
    return min(times, default=None)


def show(op: str, row: dict[str, Any]) -> None:
    """One line per contender of ours: time, and ratios to the floor and to torch."""
    found = row["contenders"]
    last_word = "backward" if op == "attention_backward" else "trick"
    for name in peers.ALL_OURS:
        if name not in found:
            continue
        own = found[name]
        to = {
            "SDPA forward": fastest(found, "SDPA", "forward"),
            f"SDPA {last_word}": fastest(found, "SDPA", last_word),
            f"Flex {last_word}": fastest(found, peers.FLEX, last_word),
        }
        ratios = "  ".join(f"/ {peer} {own['seconds'] / t:5.2f}" for peer, t in to.items() if t)
        least = f"x floor {own['times_floor']:5.2f}  " if "times_floor" in own else ""
        case = f"{row['case']['heads']} x {row['case']['tokens']}"
        print(f"{op:20s} {case:16s} {name:22s} {own['seconds'] * 1e3:8.3f} ms  {least}{ratios}", flush=True)


def bench(op: str, options: argparse.Namespace, started: float) -> list[str]:
    """Time one op, and write its result after every batch; what went wrong."""
    dry, device = options.dry_run, "cpu" if options.dry_run else "cuda"
    small, refused = errors(op, device, dry)
    trouble = check(op, small)
    worst = {name: max(e["max"] for e in error.values()) for name, error in small.items() if error}
    print(f"{op}: errors " + ", ".join(f"{name} {e:.1e}" for name, e in worst.items()), flush=True)
    runs = {name: run for name, run in peers.contenders(op, dry).items() if name in small}
    result: dict[str, Any] = {"op": op, "machine": machine(), "yardstick": YARDSTICKS[op], "rows": []}
    for heads, lengths in TINY_SHAPES if dry else SHAPES:
        if time.perf_counter() - started > options.seconds:
            trouble.append(f"{op}: {heads} x {lengths} was not reached in {options.seconds:.0f} s")
            continue
        batch = lengths if dry else cells(lengths)
        found, failed = measure(op, runs, peers.inputs(batch, heads, device, DTYPE), options.rounds, dry)
        refused |= {f"{name}, {heads} x {lengths}": reason for name, reason in failed.items()}
        for name in found:
            found[name]["errors"] = small[name]
        case = {"heads": heads, "tokens": "-".join(map(str, sorted({min(lengths), max(lengths)})))}
        case |= {"cells": len(batch), "dtype": str(DTYPE).removeprefix("torch.")}
        row = {
            "case": case,
            "threads": torch.get_num_threads(),
            "rounds": options.rounds,
            "contenders": found,
        }
        result["rows"].append(row)
        if not dry:
            show(op, row)
            write(result | {"left_out": refused}, options.out)
    for name, reason in refused.items():
        print(f"{op}: {name} is left out: {reason}", flush=True)
    trouble += [f"{op}: {name} does not run" for name in refused if name.startswith(peers.OURS)]
    return trouble


def write(result: dict[str, Any], folder: Path | None) -> None:
    """One file per op; what was measured so far is not lost when time runs out."""
    folder = folder or Path(os.environ.get("OUT") or RESULTS / result["machine"]["name"])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{result['op']}.json").write_text(json.dumps(result, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ops", nargs="*", metavar="OP", help=f"default: {' '.join(OPS)}")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=1e9, help="start no further batch after so long")
    parser.add_argument("--out", type=Path, help="folder of the results, default $OUT or bench/results/<gpu>")
    parser.add_argument(
        "--dry-run", action="store_true", help="every step on the CPU, nothing timed or written"
    )
    options = parser.parse_args()
    if unknown := set(options.ops) - set(OPS):
        parser.error(f"no GPU bench for {', '.join(sorted(unknown))}; there are {', '.join(OPS)}")
    if not options.dry_run and not torch.cuda.is_available():
        raise SystemExit(
            f"torch {torch.__version__} sees no CUDA device, so there is nothing to time; --dry-run checks the"
            " bench itself on the CPU"
        )
    started, trouble = time.perf_counter(), []
    with torch.no_grad():
        for op in options.ops or OPS:
            trouble += bench(op, options, started)
    if trouble:
        raise SystemExit("\n".join(trouble))
    if options.dry_run:
        print("dry run: every step ran, and every answer is within its bounds")


if __name__ == "__main__":
    main()
