"""Time every op against its peers in interleaved rounds, and write results/<machine>/<op>.json.

A row holds, for each contender, the median time and quartiles, the growth of peak memory in a process of its
own, and the error against float64. ``python bench/run.py --help`` lists the options; ``--tiny`` only
proves that all of it runs.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import peers
import scfast  # noqa: F401  # torch first, then the kernels: one OpenMP runtime
from machine import RESULTS, cores, describe, peak_growth

OPS = Path(__file__).resolve().parent / "ops"


def modules(wanted: list[str]) -> list[ModuleType]:
    """The op modules of bench/ops, those named or all."""
    found = {path.stem.removeprefix("bench_"): path.stem for path in sorted(OPS.glob("bench_*.py"))}
    if missing := [op for op in wanted if op not in found]:
        raise SystemExit(f"no bench for {', '.join(missing)}; there are {', '.join(found)}")
    return [importlib.import_module(f"ops.{found[op]}") for op in wanted or found]


def contenders(module: ModuleType, case: dict[str, Any]) -> dict[str, peers.Contender]:
    """A module may bring contenders of its own; the attention ops share those of peers.py."""
    return module.contenders(case) if hasattr(module, "contenders") else peers.contenders(module.OP, case)


def errors(answer: peers.Answer, exact: peers.Answer) -> dict[str, dict[str, float]]:
    """Largest and mean absolute error of each output, relative to the largest exact value."""
    found = {}
    for name, value in answer.items():
        truth = exact[name].double()
        off = (value.double() - truth).abs() / truth.abs().max()
        found[name] = {"max": off.max().item(), "mean": off.mean().item()}
    return found


@torch.no_grad()
def measure(module: ModuleType, case: dict[str, Any], threads: int, rounds: int) -> dict[str, Any]:
    """One row without memory: every contender once per round, so a slow moment hits them all."""
    torch.set_num_threads(threads)
    data = module.inputs(case)
    runs = contenders(module, case)
    exact = (module.exact if hasattr(module, "exact") else peers.EXACT[module.OP])(data)
    row = {name: {"errors": errors(run(data), exact)} for name, run in runs.items()}  # warms up as well
    del exact
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run(data)
            times[name].append(time.perf_counter() - start)
    for name, seconds in times.items():
        low, median, high = statistics.quantiles(seconds, n=4) if rounds > 1 else seconds * 3
        row[name] |= {"seconds": median, "quartiles": [low, high]}
    return {"case": case, "threads": threads, "rounds": rounds, "contenders": row}


def peak_elsewhere(module: ModuleType, index: int, contender: str, threads: int, tiny: bool) -> int:
    """Peak memory growth of one call, in bytes, from a fresh process: no other contender's memory counts."""
    command = [
        sys.executable,
        __file__,
        module.OP,
        "--peak",
        str(index),
        contender,
        "--threads",
        str(threads),
    ]
    done = subprocess.run(command + ["--tiny"] * tiny, check=True, stdout=subprocess.PIPE, text=True)
    return int(done.stdout)


@torch.no_grad()
def peak_here(module: ModuleType, case: dict[str, Any], contender: str, threads: int) -> int:
    torch.set_num_threads(threads)
    run = contenders(module, case)[contender]
    run(module.inputs(module.TINY_CASES[0]))  # thread pools and lazily loaded code are not the call's memory
    data = module.inputs(case)
    return peak_growth(lambda: run(data))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ops", nargs="*", metavar="OP", help="default: all of bench/ops")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, nargs="+", default=[n for n in (1, 2) if n <= cores()])
    parser.add_argument("--tiny", action="store_true", help="small shapes, to prove that it runs")
    parser.add_argument("--no-memory", action="store_true", help="leave peak memory out")
    parser.add_argument(
        "--only-memory", action="store_true", help="add peak memory to results that are there; needs no quiet"
    )
    parser.add_argument("--out", type=Path, help="folder of the results, default bench/results/<machine>")
    parser.add_argument("--peak", nargs=2, metavar=("CASE", "CONTENDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()

    if options.peak:
        (module,) = modules(options.ops)
        case = (module.TINY_CASES if options.tiny else module.CASES)[int(options.peak[0])]
        print(peak_here(module, case, options.peak[1], options.threads[-1]))
        return

    here = describe()
    out = options.out or RESULTS / here["name"]
    if options.only_memory:
        for module in modules(options.ops):
            add_memory(module, out / f"{module.OP}.json", options.threads[-1], options.tiny)
        return
    for module in modules(options.ops):
        rows = []
        for index, case in enumerate(module.TINY_CASES if options.tiny else module.CASES):
            memory = {}
            if not options.no_memory:
                for contender in contenders(module, case):
                    memory[contender] = peak_elsewhere(
                        module, index, contender, options.threads[-1], options.tiny
                    )
            for threads in options.threads:
                row = measure(module, case, threads, options.rounds)
                for contender, grown in memory.items():
                    row["contenders"][contender]["peak_bytes"] = grown
                rows.append(row)
                show(module.OP, row)
        out.mkdir(parents=True, exist_ok=True)
        yardstick = getattr(module, "YARDSTICK", peers.YARDSTICK)
        result = {"op": module.OP, "machine": here, "yardstick": yardstick, "rows": rows}
        (out / f"{module.OP}.json").write_text(json.dumps(result, indent=1) + "\n")
        print(f"wrote {out / module.OP}.json")


def add_memory(module: ModuleType, file: Path, threads: int, tiny: bool) -> None:
    """Measure peak memory for the rows of a result, and write them back."""
    result = json.loads(file.read_text())
    for index, case in enumerate(module.TINY_CASES if tiny else module.CASES):
        memory = {
            name: peak_elsewhere(module, index, name, threads, tiny) for name in contenders(module, case)
        }
        for row in result["rows"]:
            if row["case"] == case:
                for name, grown in memory.items():
                    row["contenders"][name]["peak_bytes"] = grown
    file.write_text(json.dumps(result, indent=1) + "\n")
    print(f"wrote {file}")


def show(op: str, row: dict[str, Any]) -> None:
    case = " ".join(f"{key}={value}" for key, value in row["case"].items())
    print(f"{op} {case} threads={row['threads']}")
    for name, found in row["contenders"].items():
        worst = max((e["max"] for e in found["errors"].values()), default=float("nan"))
        grown = f"{found['peak_bytes'] / 1e6:8.1f} MB" if "peak_bytes" in found else ""
        print(f"  {name:32s} {found['seconds'] * 1e3:10.2f} ms  error {worst:8.1e}  {grown}", flush=True)


if __name__ == "__main__":
    main()
