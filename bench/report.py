"""Rewrite claim, figure and ratios of README.md, and docs/benchmarks.md, from bench/results.

README.md shows the machine measured last, or the one given by ``--machine``; docs/benchmarks.md shows all of
them. No figure is typed by hand: what was not measured is said to be missing.
"""

from __future__ import annotations

import argparse
import json
import re
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from length_figure import figure
from summary import BACKWARD, FIGURE, MATERIALISED, OURS, claim, figure_lines, readme_table
from wording import Results, about, by_case, duration, label, plain_seconds, size, table, threads_of, worst

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"


def read(results: Path) -> dict[str, Results]:
    """Machine -> op -> result, the machine measured last first."""
    found: dict[str, Results] = {}
    for path in sorted(results.glob("*/*.json")):
        result = json.loads(path.read_text())
        found.setdefault(path.parent.name, {})[result["op"]] = result
    return dict(sorted(found.items(), key=lambda item: date(item[1]), reverse=True))


def date(results: Results) -> str:
    return max(result["machine"]["date"] for result in results.values())


OPS_NOTE = (
    "Head dim 64, float32 unless said otherwise. ÷ X is our time divided by that of X: below 1 we are faster. Of two"
    " figures the first is of one thread. Errors are relative to float64."
)


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
        for n_cells, of in sorted(medians.items()):
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


def lengths_table(result: dict[str, Any]) -> str:
    """Time and peak memory of each contender, by the tokens of the cell."""
    names = list(next(iter(result["lengths"].values())))
    head = ["tokens", *names, *(f"{name}: peak memory" for name in names), "largest error"]
    lines = []
    for n, row in result["lengths"].items():
        errors = [found["error"]["max"] for found in row.values() if "error" in found]
        lines.append(
            [
                f"{int(n):,}",
                *(duration(row[name]["seconds"]) if name in row else "no memory" for name in names),
                *(size(row.get(name, {}).get("peak_bytes")) for name in names),
                f"{max(errors):.0e}" if errors else "–",
            ]
        )
    about = (
        f"{result['model']}, positions for the longest cell; rollout of one cell through {result['layers']} layers of"
        f" {result['heads']} heads, by one vector a layer; {threads_of(result)}."
    )
    return f"{about}\n\n{table(head, lines)}"


#: Benchmarks of whole tasks rather than ops, and their tables.
def networks_table(result: dict[str, Any]) -> str:
    """How far sums by gene are from the maps added in float64, and the memory they take."""
    op, tool = result["attention_scatter"], result["tl.grn"]
    room = op["result_bytes"] + op["largest_batch_bytes"]
    lines = [
        ["cells, tokens, genes", f"{op['cells']:,}, {op['tokens']:,}, {result['genes']:,}"],
        ["pairs of genes that some cell has", f"{result['pairs']:,}"],
        ["largest relative error of a sum", f"{result['largest_relative_error']:.1e}"],
        ["relative error of the norm", f"{result['relative_error_of_norm']:.1e}"],
        [
            "`attention_scatter`: peak growth; sums and largest batch",
            f"{size(op['peak_growth_bytes'])}; {size(room)}",
        ],
        [
            f"`tl.grn`, {tool['cells']} cells of {tool['tokens_of_a_cell']:,} tokens: peak growth; result, memory="
            f"{size(tool['memory_bytes'])}",
            f"{size(tool['peak_growth_bytes'])}; {size(tool['result_bytes'])}",
        ],
    ]
    about = (
        "Sums of attention by pairs of genes, against maps that are held and added in float64, cell by cell."
    )
    return about + "\n\n" + table(["", f"{result['threads']} thread"], lines)


WHOLE = {
    "networks": networks_table,
    "lengths": lengths_table,
    "end_to_end": end_to_end_table,
    "published_shapes": published_table,
    "pretraining": pretraining_table,
    "bioformers_training": pretraining_table,
    "atlas": atlas_table,
    "workers": workers_table,
}


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
        if attention := {op: result for op, result in results.items() if op.startswith("attention_")}:
            parts += ["### Attention at a glance", OPS_NOTE, op_table(attention)]
        for op, result in results.items():
            parts += [f"### {op}", WHOLE.get(op, full_table)(result)]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--machine", help="folder of bench/results that README.md shows")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "benchmarks.md")
    parser.add_argument("--figure", type=Path, default=ROOT / FIGURE)
    options = parser.parse_args()
    machines = read(options.results)
    if not machines:
        raise SystemExit(f"no results in {options.results}: run make bench")
    chosen = machines[options.machine or next(iter(machines))]
    readme = options.readme.read_text()
    readme = replace(readme, "claim", claim(chosen))
    readme = replace(readme, "figure", figure_lines(chosen))
    if "lengths" in chosen:
        options.figure.write_text(figure(chosen["lengths"]))
    readme = replace(readme, "table", readme_table(chosen))
    options.readme.write_text(readme)
    options.page.parent.mkdir(exist_ok=True)
    options.page.write_text(benchmarks_page(machines))
    print(f"rewrote {options.readme} and {options.page}")


if __name__ == "__main__":
    main()
