"""How figures are put into words and rows, in README.md and docs/benchmarks.md alike."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

SHAPE = ("heads", "tokens", "dtype")

Results = dict[str, dict[str, Any]]  # op -> result


def duration(seconds: float) -> str:
    """Three significant figures in s, ms or us."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


def size(n_bytes: float | None) -> str:
    if n_bytes is None:
        return "–"
    return f"{n_bytes / 1e9:.2f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.3g} MB"


def threads_of(result: dict[str, Any]) -> str:
    """How many, and whose clock: see bench/lengths.py."""
    return "1 thread, processor time" if result["threads"] == 1 else f"{result['threads']} threads"


def worst(contender: dict[str, Any]) -> str:
    """Largest error over the outputs; a dash where a contender computes nothing that can be compared."""
    errors = contender.get("errors") or ({"scores": contender["error"]} if contender.get("error") else {})
    return f"{max(e['max'] for e in errors.values()):.0e}" if errors else "–"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def label(case: dict[str, Any]) -> str:
    if not set(SHAPE) <= set(case):
        return ", ".join(f"{key} {value}" for key, value in case.items())
    further = [f"{key} {value}" for key, value in case.items() if key not in SHAPE]
    dtype = [] if case["dtype"] == "float32" else [case["dtype"]]
    return ", ".join([f"{case['heads']} × {case['tokens']}", *dtype, *further])


def by_case(result: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """The rows of one case together, one per thread count."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in result["rows"]:
        groups.setdefault(json.dumps(row["case"]), []).append(row)
    return [sorted(rows, key=lambda row: row["threads"]) for rows in groups.values()]


def plain_seconds(contenders: dict[str, Any]) -> float | None:
    return min(
        (x["seconds"] for name, x in contenders.items() if name.startswith("torch SDPA")), default=None
    )


def about(results: Results) -> str:
    """The machine, in one line, and from when to when its results come."""
    machines = sorted((result["machine"] for result in results.values()), key=lambda machine: machine["date"])
    first, here = machines[0], machines[-1]
    commits = {machine["commit"] for machine in machines}
    when = here["date"] if first["date"] == here["date"] else f"{first['date']} to {here['date']}"
    what = f"commit {here['commit']}" if len(commits) == 1 else "every result with its commit"
    return (
        f"{here.get('gpu') or here['cpu']}, {here['cores']} cores, {here['instruction_set']}, torch {here['torch']},"
        f" {when}, {what}."
    )
