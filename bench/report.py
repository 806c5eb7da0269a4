"""Rewrite the claim and the table of README.md, and docs/benchmarks.md, from bench/results.

README.md shows the machine measured last, or the one given by ``--machine``; docs/benchmarks.md shows all of
them. No figure is typed by hand: what was not measured is said to be missing.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
OURS, MATERIALISED, BACKWARD = "scfast", "materialised", "SDPA backward"
SHAPE = ("heads", "tokens", "dtype")

Results = dict[str, dict[str, Any]]  # op -> result


def read(results: Path) -> dict[str, Results]:
    """Machine -> op -> result, the machine measured last first."""
    found: dict[str, Results] = {}
    for path in sorted(results.glob("*/*.json")):
        result = json.loads(path.read_text())
        found.setdefault(path.parent.name, {})[result["op"]] = result
    return dict(sorted(found.items(), key=lambda item: date(item[1]), reverse=True))


def date(results: Results) -> str:
    return max(result["machine"]["date"] for result in results.values())


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


def op_table(results: Results) -> str:
    """One line per op and case; where a figure differs by threads, one figure for each."""
    head = ["op", "heads × tokens", "scfast", "÷ SDPA forward", "÷ materialised", "÷ SDPA backward"]
    head += ["peak memory: scfast", "materialised", "error: scfast", "materialised"]
    lines = []
    for op, result in results.items():
        for rows in by_case(result):
            entries = [row["contenders"] for row in rows]

            def ratio(to: str, entries: list[dict[str, Any]] = entries) -> str:
                if to not in entries[0]:
                    return "–"
                return " / ".join(f"{e[OURS]['seconds'] / e[to]['seconds']:.2f}" for e in entries)

            last = entries[-1]
            lines.append(
                [
                    f"`{op}`",
                    label(rows[0]["case"]),
                    " / ".join(duration(e[OURS]["seconds"]) for e in entries),
                    ratio(result["yardstick"]),
                    ratio(MATERIALISED),
                    ratio(BACKWARD),
                    size(last[OURS].get("peak_bytes")),
                    size(last.get(MATERIALISED, {}).get("peak_bytes")),
                    worst(last[OURS]),
                    worst(last[MATERIALISED]) if MATERIALISED in last else "–",
                ]
            )
    return table(head, lines)


def full_table(result: dict[str, Any]) -> str:
    """Every contender of every row."""
    head = ["case", "threads", "contender", "median", "quartiles", "peak memory", "error", "mean error"]
    lines = []
    for row in result["rows"]:
        for name, found in row["contenders"].items():
            mean = max((e["mean"] for e in found["errors"].values()), default=None)
            lines.append(
                [
                    label(row["case"]),
                    str(row["threads"]),
                    name,
                    duration(found["seconds"]),
                    " – ".join(map(duration, found["quartiles"])),
                    size(found.get("peak_bytes")),
                    worst(found),
                    "–" if mean is None else f"{mean:.0e}",
                ]
            )
    return table(head, lines)


def end_to_end_table(result: dict[str, Any]) -> str:
    """One line per contender, against the faster of the plain forward passes."""
    contenders = result["contenders"]
    plain = plain_seconds(contenders)
    head = ["contender", "all cells", "÷ plain forward", "peak memory", "error"]
    lines = []
    for name, found in contenders.items():
        note = "" if found["scale"] == 1 else f" (from {found['cells']} cells, × {found['scale']:.3g})"
        if found.get("ours"):
            note += f" (another run, in which scfast took {duration(found['ours'])})"
        share = "–" if plain is None or found.get("ours") else f"{found['seconds'] / plain:.2f}"
        lines.append(
            [name + note, duration(found["seconds"]), share, size(found.get("peak_bytes")), worst(found)]
        )
    lengths = result["tokens"]
    about = (
        f"{result['model']}; {result['data']}, {result['cells']} cells of {lengths['min']:.0f} to"
        f" {lengths['max']:.0f} tokens (median {lengths['median']:.0f}); {result['threads']} threads."
    )
    return f"{about}\n\n{table(head, lines)}"


def pretraining_table(result: dict[str, Any]) -> str:
    """One line per contender; the losses of all agree, or the time means nothing."""
    contenders = result["contenders"]
    head = ["contender", "a step", "÷ scfast, step by step", "losses apart, at most"]
    lines = [
        [
            name,
            duration(found["seconds"]),
            f"{found['times_slower']:.2f}" if "times_slower" in found else "1",
            f"{found['loss_apart']:.0e}",
        ]
        for name, found in contenders.items()
    ]
    about = (
        f"{result['model']}; {result['data']}, {result['tokens_per_step']} tokens a step, {result['steps']} steps;"
        f" {result['threads']} threads."
    )
    return f"{about}\n\n{table(head, lines)}"


def published_table(result: dict[str, Any]) -> str:
    """One line per model: whole cells, all layers, read at cls."""
    head = ["model, random weights", "cells of so many tokens", "rollout", "plain forward", "÷ plain forward"]
    lines = [
        [
            name,
            ", ".join(f"{n:,}" for n in found["tokens"]),
            duration(found["rollout"]),
            duration(found["plain"]),
            f"{found['ratio']:.2f}",
        ]
        for name, found in result["cases"].items()
    ]
    threads = next(iter(result["cases"].values()))["threads"]
    about = (
        f"Published shapes, against torch's own encoder layers, cell by cell without pads; {threads} threads."
    )
    return f"{about}\n\n{table(head, lines)}"


def atlas_table(result: dict[str, Any]) -> str:
    """One line per file: cells a second of all that is not a model, and the memory it took."""
    phases = {"read": "read", "tokenised": "read and tokenised", "analysed": "with sums over groups"}
    head = ["file", "cells", *phases.values()]
    lines, grown = [], []
    for kind, sizes in result["sizes"].items():
        medians = {  # cells -> phase -> seconds and bytes
            int(n): {
                phase: {key: median(values) for key, values in found.items()} for phase, found in of.items()
            }
            for n, of in sizes.items()
        }
        for n_cells, of in medians.items():
            cells = [kind, f"{n_cells:,}"]
            for found in (of.get(phase, {}) for phase in phases):
                memory = f", {size(found['peak_bytes'])}" if "peak_bytes" in found else ""
                cells.append(f"{n_cells / found['seconds']:,.0f} / s{memory}" if found else "–")
            lines.append(cells)
        grown += [
            f"- {kind}, {name}: {told}"
            for phase, name in phases.items()
            if (told := cost_of_a_cell({n: of[phase] for n, of in medians.items() if phase in of}))
        ]
    about = (
        f"pbmc_facs.h5ad drawn again and again, CSR in chunks, no model; {result['threads']} threads. Every figure"
        " comes from a process of its own (median, of several); memory: its peak, with Python, torch and the"
        " tokeniser, and what the file adds. With sums over groups cells are tokenised twice, as a tool does; the time"
        " is that of the second pass."
    )
    what = (
        "What a cell more takes: bytes from the smallest to the largest file, and the difference of times between"
        " neighbouring sizes, in which the start falls out:"
    )
    return "\n\n".join([about, table(head, lines), *([what, "\n".join(grown)] if grown else [])])


def cost_of_a_cell(found: dict[int, dict[str, float]]) -> str:
    """Bytes and microseconds of one more cell, of seconds and peaks by number of cells; empty: of one size alone."""
    sizes = sorted(n for n, of in found.items() if "peak_bytes" in of)
    if len(sizes) < 2:
        return ""
    low, high = sizes[0], sizes[-1]
    n_bytes = (found[high]["peak_bytes"] - found[low]["peak_bytes"]) / (high - low)
    times = [
        f"{1e6 * (found[more]['seconds'] - found[fewer]['seconds']) / (more - fewer):.1f} us ({fewer:,} to {more:,})"
        for fewer, more in pairwise(sizes)
    ]
    return f"{n_bytes:.1f} bytes; {', '.join(times)}"


def workers_table(result: dict[str, Any]) -> str:
    """One line per way to share a run; the first one, a process with all cores, is what they are held against."""
    contenders = result["contenders"]
    alone = next(iter(contenders.values()))["seconds"]
    lines = [
        [
            name,
            duration(found["seconds"]),
            f"{result['cells'] / found['seconds']:,.1f} / s",
            f"{alone / found['seconds']:.2f}",
        ]
        for name, found in contenders.items()
    ]
    about = (
        f"{result['model']}, rollout of {result['cells']} cells of pbmc_facs_mini.h5ad in shards of"
        f" {result['shard_cells']}, until all are merged; processes that are started already. All with one thread each"
        " gave the same bits."
    )
    return f"{about}\n\n{table(['processes', 'seconds', 'cells', 'speed against the first'], lines)}"


def plain_seconds(contenders: dict[str, Any]) -> float | None:
    return min(
        (x["seconds"] for name, x in contenders.items() if name.startswith("torch SDPA")), default=None
    )


#: Benchmarks of whole tasks rather than ops, and their tables.
WHOLE = {
    "end_to_end": end_to_end_table,
    "published_shapes": published_table,
    "pretraining": pretraining_table,
    "bioformers_training": pretraining_table,
    "atlas": atlas_table,
    "workers": workers_table,
}


def claim(results: Results) -> str:
    """The one sentence, with its figures."""
    missing = "_Not measured yet: `make bench DATA=FOLDER`._"
    if "end_to_end" not in results:
        return missing
    result = results["end_to_end"]
    contenders = result["contenders"]
    ours = contenders.get("scfast.tl.rollout")
    maps = {name: found for name, found in contenders.items() if name.startswith("eager maps")}
    plain = plain_seconds(contenders)
    if ours is None or plain is None or not maps:
        return missing
    slowest = max(maps.values(), key=lambda found: found["seconds"])
    fastest = min(maps.values(), key=lambda found: found["seconds"])
    ratios = {
        f"{found['seconds'] / (found.get('ours') or ours['seconds']):.1f}" for found in (fastest, slowest)
    }
    times = sorted(ratios, key=float)
    memory = ""
    if "peak_bytes" in ours and "peak_bytes" in slowest:
        memory = f", in {size(ours['peak_bytes'])} instead of {size(slowest['peak_bytes'])}"
    return (
        f"**Attention rollout of {result['cells']} blood cells, uncut, in {duration(ours['seconds'])}:"
        f" {ours['seconds'] / plain:.2f} times the plain forward pass of the model, and"
        f" {' to '.join(times)} times faster than from its attention maps{memory}** (Geneformer V1-10M"
        f" shape, {result['threads']} threads, {result['machine']['cpu']}; [how](docs/benchmarks.md))."
    )


def about(results: Results) -> str:
    """The machine, in one line, and from when to when its results come."""
    machines = sorted((result["machine"] for result in results.values()), key=lambda machine: machine["date"])
    first, here = machines[0], machines[-1]
    commits = {machine["commit"] for machine in machines}
    when = here["date"] if first["date"] == here["date"] else f"{first['date']} to {here['date']}"
    what = (
        f"commit {here['commit']}"
        if len(commits) == 1
        else f"{len(commits)} commits, in the files of results"
    )
    return (
        f"{here.get('gpu') or here['cpu']}, {here['cores']} cores, {here['instruction_set']}, torch {here['torch']},"
        f" {when}, {what}."
    )


def readme_table(results: Results) -> str:
    ops = {op: result for op, result in results.items() if op not in WHOLE}
    threads = sorted({row["threads"] for result in ops.values() for row in result["rows"]})
    note = (
        "Head dim 64, float32 unless said otherwise. ÷ X is our time divided by that of X: below 1 we are"
        f" faster. Two figures: {' and '.join(map(str, threads))} threads. Errors are relative to float64."
    )
    parts = [about(results)]
    parts += [whole_table(results[op]) for op, whole_table in WHOLE.items() if op in results]
    if attention := {op: result for op, result in ops.items() if op.startswith("attention_")}:
        parts += [note, op_table(attention)]
    for op, result in ops.items():
        if op not in attention and not op.startswith("cosine_"):  # those fill a page: docs/benchmarks.md
            parts += [f"`{op}`", full_table(result)]
    return "\n\n".join(parts)


def replace(text: str, marker: str, content: str) -> str:
    """Put ``content`` between the marker's comments."""
    pattern = rf"(<!-- bench:{marker} -->\n).*?(<!-- bench:end -->)"
    found, count = re.subn(pattern, lambda match: f"{match[1]}{content}\n{match[2]}", text, flags=re.DOTALL)
    if count != 1:
        markers = f"<!-- bench:{marker} --> ... <!-- bench:end -->"
        raise SystemExit(f"README.md must hold {markers} once, not {count} times")
    return found


def benchmarks_page(machines: dict[str, Results]) -> str:
    """All results of all machines."""
    parts = ["# Benchmarks", (ROOT / "bench" / "METHOD.md").read_text().strip()]
    for name, results in machines.items():
        parts += [f"## {name}", about(results)]
        for op, result in results.items():
            parts += [f"### {op}", WHOLE.get(op, full_table)(result)]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--machine", help="folder of bench/results that README.md shows")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "benchmarks.md")
    options = parser.parse_args()
    machines = read(options.results)
    if not machines:
        raise SystemExit(f"no results in {options.results}: run make bench")
    chosen = machines[options.machine or next(iter(machines))]
    readme = options.readme.read_text()
    readme = replace(readme, "claim", claim(chosen))
    readme = replace(readme, "table", readme_table(chosen))
    options.readme.write_text(readme)
    options.page.parent.mkdir(exist_ok=True)
    options.page.write_text(benchmarks_page(machines))
    print(f"rewrote {options.readme} and {options.page}")


if __name__ == "__main__":
    main()
