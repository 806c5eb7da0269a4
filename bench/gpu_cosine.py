"""Time the cosine ops on a GPU against torch's full product, and write OUT/<op>.json or results/<gpu>/<op>.json.

100,000 rows of 512 columns with themselves, float32 and bfloat16. Torch multiplies rows of length 1 and keeps all
products, nothing more; in float32 as it comes and in tf32. Errors are against float64, on a small batch. ``--dry-run``
runs every step on the CPU without timing anything.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

import run_gpu
from scfast import ops, reference

OURS, PRODUCT, PRODUCT_TF32 = "scfast", "torch: the full product alone", "torch: the full product alone, tf32"
ROWS, COLUMNS, SMALL, ROUNDS = 100_000, 512, 1000, 10
#: Standard deviations of a similarity of normal rows: one pair of 4,000 reaches them.
DEVIATIONS = 3.5
DTYPES = (torch.float32, torch.bfloat16)


@dataclass
class Rows:
    """x [N, D], normal, and the same rows at length 1."""

    x: torch.Tensor
    unit: torch.Tensor
    elements: int = 0  # exponentials: none

    @classmethod
    def random(cls, n: int, dtype: torch.dtype, device: str) -> Rows:
        random = torch.Generator(device).manual_seed(0)
        x = torch.randn((n, COLUMNS), generator=random, device=device).to(dtype)
        return cls(x, torch.nn.functional.normalize(x))


Answer = Callable[..., torch.Tensor]


def histogram(of: Any, x: torch.Tensor) -> torch.Tensor:
    """Mean and second moment."""
    found = of(x)
    return torch.stack([found.mean, found.second_moment])


def threshold(of: Any, x: torch.Tensor) -> torch.Tensor:
    """Mean of what is found."""
    return of(x, DEVIATIONS * COLUMNS**-0.5).values.mean()


#: Op and case -> what is timed; its result is compared with float64's.
CASES: dict[tuple[str, str], Callable[[torch.Tensor], torch.Tensor]] = {
    ("cosine_histogram", "bins 200"): partial(histogram, ops.cosine_histogram),
    ("cosine_topk", "k 16"): lambda x: ops.cosine_topk(x, 16).values,
    ("cosine_topk", "k 128"): lambda x: ops.cosine_topk(x, 128).values,
    ("cosine_threshold", "1 in 4,000"): partial(threshold, ops.cosine_threshold),
}


def exact(case: tuple[str, str], x: torch.Tensor, s: torch.Tensor | None = None) -> torch.Tensor:
    """The same from similarities [N, N]; default: float64's."""
    s = reference.cosine_matrix(x.cpu()) if s is None else s.cpu().double()
    pairs = s[torch.ones_like(s, dtype=torch.bool).triu(1)]
    if case[0] == "cosine_histogram":
        return torch.stack([pairs.mean(), pairs.square().mean()])
    if case[0] == "cosine_threshold":
        return pairs[pairs >= DEVIATIONS * COLUMNS**-0.5].mean()
    return s.fill_diagonal_(-2).topk(int(case[1].split()[1])).values


def product(x: Rows, tf32: bool = False) -> None:
    """All similarities, held."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        _ = x.unit @ x.unit.T
    finally:
        torch.set_float32_matmul_precision(before)


def check(case: tuple[str, str], dtype: torch.dtype, device: str) -> tuple[float, list[str]]:
    """(largest error, what is wrong): further off than twice torch's error and a floor of rounding."""
    x = Rows.random(SMALL, dtype, device)
    truth = exact(case, x.x)
    ours = (CASES[case](x.x).cpu().double() - truth).abs().max().item()
    theirs = (exact(case, x.x, x.unit @ x.unit.T) - truth).abs().max().item()
    # One pair at the threshold moves the mean of the others: by less than the threshold over their number.
    most = 2 * theirs + (1e-3 if case[0] == "cosine_threshold" else 2e-6)
    wrong = [] if ours <= most else [f"{case}, {dtype}: off by {ours:.1e}, at most {most:.1e} is rounding"]
    return ours, wrong


def bench(op: str, options: argparse.Namespace, started: float) -> list[str]:
    """Time one op, and write its result after every case; what went wrong."""
    dry, device = options.dry_run, "cpu" if options.dry_run else "cuda"
    result: dict[str, Any] = {"op": op, "machine": run_gpu.machine(), "yardstick": PRODUCT, "rows": []}
    trouble, refused = [], {}
    for case in (case for case in CASES if case[0] == op):
        for dtype in DTYPES:
            if time.perf_counter() - started > options.seconds:
                trouble.append(f"{case}, {dtype} was not reached in {options.seconds:.0f} s")
                continue
            error, wrong = check(case, dtype, device)
            trouble += wrong
            data = Rows.random(300 if dry else ROWS, dtype, device)
            runs: dict[str, Any] = {OURS: lambda x, run=CASES[case]: run(x.x), PRODUCT: product}
            if dtype == torch.float32:
                runs[PRODUCT_TF32] = partial(product, tf32=True)
            found, failed = run_gpu.measure(op, runs, data, options.rounds, dry)
            refused |= {f"{name}, {case[1]}": reason for name, reason in failed.items()}
            name = str(dtype).removeprefix("torch.")
            print(f"{op} {case[1]} {name}: error {error:.1e}", flush=True)
            if OURS in found:
                found[OURS]["errors"] = {case[1]: {"max": error, "mean": error}}
            row = {"dtype": name, "rows": len(data.x), "columns": COLUMNS, "of": case[1]}
            result["rows"].append({"case": row, "threads": 1, "rounds": options.rounds, "contenders": found})
            if not dry:
                times = ", ".join(f"{who} {x['seconds'] * 1e3:.1f} ms" for who, x in found.items())
                print(f"{op} {case[1]} {name}: {times}", flush=True)
                run_gpu.write(result | {"left_out": refused}, options.out)
    for name, reason in refused.items():
        print(f"{op}: {name} is left out: {reason}", flush=True)
    return trouble + [f"{op}: {name} does not run" for name in refused if name.startswith(OURS)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=1e9, help="start no further case after so long")
    parser.add_argument("--out", type=Path, help="folder of the results, default $OUT or bench/results/<gpu>")
    parser.add_argument(
        "--dry-run", action="store_true", help="every step on the CPU, nothing timed or written"
    )
    options = parser.parse_args()
    if not options.dry_run and not torch.cuda.is_available():
        raise SystemExit(
            f"torch {torch.__version__} sees no CUDA device, so there is nothing to time; --dry-run checks the"
            " bench itself on the CPU"
        )
    started, trouble = time.perf_counter(), []
    for op in dict.fromkeys(op for op, _ in CASES):
        trouble += bench(op, options, started)
    if trouble:
        raise SystemExit("\n".join(trouble))
    if options.dry_run:
        print("dry run: every step ran, and every answer is within its bounds")


if __name__ == "__main__":
    main()
