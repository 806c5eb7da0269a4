"""What README.md says of the results: the claim, the words beside the figure, and ratios."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from wording import Results, about, by_case, duration, plain_seconds, size, table

OURS, MATERIALISED, BACKWARD = "scfast", "materialised", "SDPA backward"
FIGURE = "docs/_static/lengths.svg"


def claim(results: Results) -> str:
    """The one sentence, with its figures."""
    missing = "_Not measured yet: `make bench DATA=FOLDER`._"
    if "end_to_end" not in results:
        return missing
    result = results["end_to_end"]
    ours, plain, maps = whole_cells(result)
    if ours is None or plain is None or not maps:
        return missing
    slowest = max(maps, key=lambda found: found["seconds"])
    memory = ""
    if "peak_bytes" in ours and "peak_bytes" in slowest:
        memory = f", in {size(ours['peak_bytes'])} instead of {size(slowest['peak_bytes'])}"
    times = span(times_slower(found, ours) for found in maps).replace("–", " to ")
    return (
        f"**Attention rollout of {result['cells']} blood cells, uncut, in {duration(ours['seconds'])}:"
        f" {ours['seconds'] / plain:.2f} times the plain forward pass of the model, and {times} times faster than from"
        f" its attention maps{memory}** (Geneformer V1-10M shape, {result['threads']} threads,"
        f" {result['machine']['cpu']}; [how](docs/benchmarks.md))."
    )


def figure_lines(results: Results) -> str:
    """The figure, and what it shows at the longest cell; nothing where lengths were not measured."""
    if "lengths" not in results:
        return "_Not measured yet: `python bench/lengths.py`._"
    rows = {int(n): row for n, row in results["lengths"]["lengths"].items()}
    n = max(rows)

    def cost(name: str) -> str:
        """Time and peak at the longest cell, or where the contender ends."""
        found = rows[last := max(length for length, row in rows.items() if name in row)][name]
        ends = "" if last == n else f" for {last:,} genes, and no memory for {n:,}"
        return f"{duration(found['seconds'])} and {size(found['peak_bytes'])}{ends}"

    compared = [(n, x["error"]["max"]) for n, row in rows.items() for x in row.values() if "error" in x]
    longest, apart = (max(values) for values in zip(*compared, strict=True))
    return (
        f"![Time and peak memory of the attention rollout of one cell, by its length]({FIGURE})\n\n"
        f"A cell of {n:,} genes takes {cost(OURS)} beyond the model; through backward passes"
        f" {cost('backward passes of torch SDPA')}; from its maps {cost('attention maps, held')}. Up to"
        f" {longest:,} genes all scores were compared with float64: they agree to {apart:.0e}."
    )


def readme_table(results: Results) -> str:
    """Ratios of whole tasks, then those of the ops."""
    parts = [about(results)]
    if tasks := list(task_ratios(results)):
        parts.append(table(["task", "measured against", "times as fast"], tasks))
    if ops := op_ratios(results):
        parts.append(ops)
    return "\n\n".join(parts)


def task_ratios(results: Results) -> Iterable[list[str]]:
    """Peer's time divided by ours, of whole cells and training steps."""
    if result := results.get("end_to_end"):
        ours, plain, maps = whole_cells(result)
        task = f"rollout, Geneformer V1-10M, {result['cells']} cells"
        if ours and plain:
            yield [task, "the plain forward pass, with no analysis", f"{plain / ours['seconds']:.2f}"]
        if ours and maps:
            yield [task, "its attention maps, in padded batches", span(times_slower(m, ours) for m in maps)]
    if result := results.get("published_shapes"):
        for model, found in result["cases"].items():
            peer = "torch's encoder layers, forward, with no analysis"
            yield [f"rollout, {model}", peer, f"{1 / found['ratio']:.2f}"]
    for op, model in (("pretraining", "Geneformer V1-10M"), ("bioformers_training", "BioFormers, small")):
        for peer, found in results.get(op, {}).get("contenders", {}).items():
            if "times_slower" in found and peer != OURS:
                yield [f"a training step, {model}", peer, f"{found['times_slower']:.2f}"]


def op_ratios(results: Results) -> str:
    """Our time divided by that of each peer, from the least to the largest over float32 cases and threads."""
    lines = []
    for op, result in results.items():
        cases = by_case(result) if op.startswith("attention_") else []
        entries = [
            row["contenders"] for case in cases if case[0]["case"].get("dtype") == "float32" for row in case
        ]
        if not entries:
            continue
        ratios = [
            span(e[OURS]["seconds"] / e[peer]["seconds"] for e in entries if peer in e)
            for peer in (result["yardstick"], MATERIALISED, BACKWARD)
        ]
        worst = max(error["max"] for e in entries for error in e[OURS]["errors"].values())
        lines.append([f"`{op}`", *ratios, f"{worst:.0e}"])
    if not lines:
        return ""
    note = (
        "Our time divided by that of a peer, float32, head dim 64, 1,024 to 4,096 tokens: below 1 we are faster. The"
        " forward pass of SDPA gives no statistic of the map; *maps held* computes the same from softmax(QKᵀ), *SDPA"
        " backward* by autograd. Errors are relative to float64."
    )
    head = ["op", "÷ SDPA forward", "÷ maps held", "÷ SDPA backward", "largest error"]
    return f"{note}\n\n{table(head, lines)}"


def whole_cells(result: dict[str, Any]) -> tuple[dict[str, Any] | None, float | None, list[dict[str, Any]]]:
    """Our rollout, seconds of the faster plain forward pass, and the contenders that hold maps."""
    contenders = result["contenders"]
    maps = [found for name, found in contenders.items() if name.startswith("eager maps")]
    return contenders.get("scfast.tl.rollout"), plain_seconds(contenders), maps


def times_slower(found: dict[str, Any], ours: dict[str, Any]) -> float:
    """Against our time in the same run."""
    return float(found["seconds"] / (found.get("ours") or ours["seconds"]))


def span(ratios: Iterable[float]) -> str:
    """From the least to the largest, two or three figures."""
    found = sorted(ratios)
    if not found:
        return "–"
    ends = [f"{ratio:.1f}" if ratio >= 3 else f"{ratio:.2f}" for ratio in (found[0], found[-1])]
    return "–".join(dict.fromkeys(ends))
