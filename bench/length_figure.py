"""The figure of README.md: time and peak memory by the length of a cell, as an SVG of text and lines.

Its own ground comes with it, so it reads on a light and on a dark page, whatever the page is told. Lines differ in
colour (after Okabe & Ito, safe without colour vision), marker and dash, and carry their names.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from wording import threads_of

WIDTH, HEIGHT = 880, 400
TOP, BOTTOM = 84, 320  # of both panels
PANELS = ((64, 300), (484, 720))  # left and right of each; names of the lines stand to the right
#: contender of bench/lengths.py -> its name, class, marker
LINES = {
    "attention maps, held": (("attention maps,", "held"), "maps", "square"),
    "backward passes of torch SDPA": (("backward passes", "of torch SDPA"), "backward", "diamond"),
    "scfast": (("scfast",), "ours", "circle"),
    "torch SDPA forward, no analysis": (("the model alone,", "no analysis"), "plain", ""),
}
NAME_GAP = 15.0  # least distance of two lines of text
STYLE = """
  .ground { fill: #ffffff; stroke: #d8dee4; }
  text { fill: #24292f; font: 13px system-ui, "Segoe UI", "Liberation Sans", Helvetica, Arial, sans-serif; }
  .title { font-size: 15px; font-weight: 600; }
  .quiet { fill: #57606a; font-size: 12px; }
  .grid { stroke: #e4e8ec; stroke-width: 1; }
  .line { fill: none; stroke-width: 2.2; stroke-linejoin: round; }
  .ours { stroke: #0072b2; } .ours.mark, .ours.name { fill: #0072b2; stroke: none; }
  .line.ours { stroke-width: 3.4; } .ours.name { font-weight: 700; }
  .backward { stroke: #b35900; stroke-dasharray: 9 4; } .backward.mark, .backward.name { fill: #b35900; stroke: none; }
  .maps { stroke: #a8447f; stroke-dasharray: 2 4; } .maps.mark, .maps.name { fill: #a8447f; stroke: none; }
  .plain { stroke: #6e7781; stroke-width: 1.6; } .plain.name { fill: #57606a; stroke: none; }
  @media (prefers-color-scheme: dark) {
    .ground { fill: #0d1117; stroke: #30363d; } .grid { stroke: #262c34; }
    text { fill: #e6edf3; } .quiet { fill: #9198a1; }
    .ours { stroke: #56b4e9; } .ours.mark, .ours.name { fill: #56b4e9; }
    .backward { stroke: #e69f00; } .backward.mark, .backward.name { fill: #e69f00; }
    .maps { stroke: #dd8fbb; } .maps.mark, .maps.name { fill: #dd8fbb; }
    .plain { stroke: #9198a1; } .plain.name { fill: #9198a1; }
  }
"""


def figure(result: dict[str, Any]) -> str:
    """The SVG of a result of bench/lengths.py."""
    tokens = sorted(map(int, result["lengths"]))
    curves = {
        field: {
            name: [row[name][field] for n in tokens if name in (row := result["lengths"][str(n)])]
            for name in LINES
        }
        for field in ("seconds", "peak_bytes")
    }
    machine = result["machine"]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="t">',
        "<title id=\"t\">Time and peak memory of the attention rollout of one cell, by its length</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="ground" x="0.5" y="0.5" width="{WIDTH - 1}" height="{HEIGHT - 1}" rx="10"/>',
        text(24, 32, "Attention rollout of one cell, all layers and heads", "title"),
        text(WIDTH - 24, 32, "both axes logarithmic", "quiet", "end"),
        *panel(PANELS[0], "time", tokens, curves["seconds"], duration),
        *panel(PANELS[1], "peak memory beyond the model", tokens, curves["peak_bytes"], size),
        text(
            24, HEIGHT - 16,
            f"{result['model']}, float32; {machine['cpu'].replace('(R)', '')}, {threads_of(result)},"
            f" torch {machine['torch'].split('+')[0]}.",
            "quiet",
        ),
        "</svg>",
    ]  # fmt: skip
    return "\n".join(parts) + "\n"


def panel(
    span: tuple[int, int],
    title: str,
    tokens: list[int],
    curves: dict[str, list[float]],
    unit: Callable[[float], str],
) -> list[str]:
    """Axes, lines and their names; a line ends before the longest cell where memory did."""
    left, right = span
    values = [value for curve in curves.values() for value in curve]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))

    def x(n: float) -> float:
        return left + (right - left) * math.log(n / tokens[0]) / math.log(tokens[-1] / tokens[0])

    def y(value: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * (math.log10(value) - low) / (high - low)

    parts = [text(left - 40, TOP - 20, title, "")]
    for power in range(low, high + 1):
        parts.append(f'<path class="grid" d="M{left} {y(10.0**power):.1f}H{right}"/>')
        parts.append(text(left - 8, y(10.0**power) + 4, unit(10.0**power), "quiet", "end"))
    parts += [text(x(n), BOTTOM + 20, f"{n:,}", "quiet", "middle") for n in tokens]
    parts.append(text((left + right) / 2, BOTTOM + 40, "tokens of the cell (genes)", "quiet", "middle"))
    for name, (_, kind, marker) in LINES.items():
        points = [(x(n), y(value)) for n, value in zip(tokens, curves[name], strict=False)]
        path = "L".join(f"{a:.1f} {b:.1f}" for a, b in points)
        parts.append(f'<path class="line {kind}" d="M{path}"/>')
        parts += [mark(marker, a, b, kind) for a, b in points if marker]
        if len(points) < len(tokens):
            parts.append(text(points[-1][0], points[-1][1] - 10, "out of memory", f"{kind} name", "middle"))
    return parts + names(right + 12, {name: y(curve[-1]) for name, curve in curves.items()})


def names(left: float, ends: dict[str, float]) -> list[str]:
    """The name of each line at its end, moved apart where two would meet."""
    parts, floor = [], -math.inf
    order = sorted(ends, key=ends.__getitem__)
    for place, name in enumerate(order):
        words, kind, _ = LINES[name]
        below = sum(len(LINES[other][0]) for other in order[place:])
        top = max(ends[name] + 4 - NAME_GAP * (len(words) - 1) / 2, floor)
        top = max(min(top, BOTTOM + 8 - NAME_GAP * (below - 1) - 4 * (len(order) - place - 1)), floor)
        parts += [text(left, top + NAME_GAP * line, word, f"{kind} name") for line, word in enumerate(words)]
        floor = top + NAME_GAP * len(words) + 4
    return parts


def text(x: float, y: float, words: str, kind: str, anchor: str = "start") -> str:
    escaped = words.replace("&", "&amp;").replace("<", "&lt;")
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escaped}</text>'


def mark(shape: str, x: float, y: float, kind: str) -> str:
    if shape == "circle":
        return f'<circle class="{kind} mark" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>'
    if shape == "square":
        return f'<rect class="{kind} mark" x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8"/>'
    return f'<path class="{kind} mark" d="M{x:.1f} {y - 5.5:.1f}l5.5 5.5-5.5 5.5-5.5-5.5z"/>'


def duration(seconds: float) -> str:
    return f"{seconds:g} s" if seconds >= 1 else f"{seconds * 1e3:g} ms"


def size(n_bytes: float) -> str:
    return f"{n_bytes / 1e9:g} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:g} MB"
