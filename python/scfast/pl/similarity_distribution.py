"""How alike the tokens of a cell are, layer by layer, as distributions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from scfast.pl._figure import COLOURS, GREY, GRID, choose, figure_of, finish, legend, plain, title

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

#: Inches of a panel, and of one ridge.
WIDTH, HEIGHT, RIDGE = 3.1, 2.7, 0.34
#: How far a ridge may rise into those above, in layers.
RISE = 1.55
#: Of the highest bin: where a ridge is lower on either side its curve ends.
FLAT = 0.002
#: Pairs outside these shares of all that are drawn are left out of the common axis.
TAILS = (0.0005, 0.9995)


def similarity_distribution(
    adata: AnnData,
    *,
    key: str | Sequence[str] = "similarity",
    groups: Sequence[str] | str | None = None,
    pairs: Sequence[str] | str | None = None,
    style: Literal["ridges", "lines"] = "ridges",
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes | list[Axes]:
    """Cosines between the tokens of a cell after each layer: a column per kind of pairs, a row per group.

    Models lie over each other, a colour each, on one scale.

    Parameters
    ----------
    adata
        After :func:`scfast.tl.similarity`.
    key
        Name of its results; several for several models.
    groups
        Which groups. Default: ``"all"``, all cells together.
    pairs
        ``"gene-gene"``, ``"gene-special"``, ``"special-special"``. Default: all that a model has.
    style
        ``"ridges"``: the histogram of each layer, the embeddings at the bottom, each as high as its highest bin; its
        median as a tick. ``"lines"``: the median by layer, and bands of the middle half and of 90 % of the pairs.
    ax
        Draw into these axes; for one kind of pairs and one group.
    show
        Show the figure. Default: where ``ax`` and ``save`` are not given and the backend is interactive.
    save
        File to write, such as ``"tokens.png"``.

    Returns
    -------
    matplotlib.axes.Axes or list of them
        One for one panel, else a list, group by group.

    Raises
    ------
    KeyError
        When there are no such results, groups or pairs.
    ValueError
        For a style that there is not, or several panels for one ``ax``.

    Examples
    --------
    >>> import scfast
    >>> adata, model = scfast.datasets.toy()
    >>> scfast.tl.similarity(adata, model)
    >>> scfast.tl.similarity(adata, model.untrained(), key_added="untrained")
    >>> axes = scfast.pl.similarity_distribution(adata, key=["similarity", "untrained"])
    """
    import matplotlib.pyplot as plt

    if style not in ("ridges", "lines"):
        raise ValueError(f"style={style!r} is unknown; use 'ridges' or 'lines'")
    keys = [key] if isinstance(key, str) else list(key)
    for name in keys:
        if "token_counts" not in adata.uns.get(name, {}):
            raise KeyError(
                f"adata.uns has no similarities of tokens named {name!r}: run scfast.tl.similarity("
                f"..., key_added={name!r}) first"
            )
    results = {name: adata.uns[name] for name in keys}
    known = list(dict.fromkeys(str(group) for name in keys for group in results[name]["token_groups"]))
    rows = choose(known, "all" if groups is None else groups)
    there = [str(pair) for name in keys for pair in results[name]["tokens"]["pair"].cat.categories]
    columns = _choose_pairs(list(dict.fromkeys(there)), pairs)
    panels = [(group, pair) for group in rows for pair in columns]
    if ax is not None and len(panels) > 1:
        raise ValueError(
            f"one ax takes one panel, and there are {len(panels)}: name one of pairs= and groups="
        )

    n_states = max(results[name]["token_counts"].shape[1] for name in keys)
    if ax is not None:
        axes = [ax]
    else:
        height = max(HEIGHT, RIDGE * (n_states + 1.2)) if style == "ridges" else HEIGHT
        size = (WIDTH * len(columns) + 0.3, height * len(rows) + 0.45)
        _, grid = plt.subplots(
            len(rows), len(columns), figsize=size, squeeze=False, layout="constrained", sharex=style == "ridges",
            sharey=True,
        )  # fmt: skip
        axes = list(grid.flat)
    draw = _ridges if style == "ridges" else _lines
    for panel, (group, pair) in zip(axes, panels, strict=True):
        plain(panel, "x" if style == "ridges" else "both")
        facts = []
        for number, name in enumerate(keys):
            part = _rows(results[name]["tokens"], group, pair)
            if not len(part):
                continue
            colour = COLOURS[number % len(COLOURS)]
            draw(panel, results[name], part, colour, name)
            cells, n_pairs = int(part["cells"].iloc[0]), int(part["pairs"].iloc[0])
            facts.append(f"{cells:,} cells  ·  {n_pairs:,} pairs")
        if not facts:
            panel.text(
                0.5, 0.5, "no such pairs", transform=panel.transAxes, ha="center", color=GREY, fontsize=8.5
            )
        title(panel, pair if len(rows) == 1 else f"{group}: {pair}", "\n".join(dict.fromkeys(facts)))
    span = _span(results.values(), panels)
    for number, panel in enumerate(axes):
        outer = number % len(columns) == 0, number >= len(axes) - len(columns)
        _finish_axis(panel, style, n_states, span, *outer)
    if ax is None and len(keys) > 1:
        legend(figure_of(axes[0]), axes, keys)
    finish(axes[0], ax is None, show, save)
    return axes[0] if len(axes) == 1 else axes


def _choose_pairs(known: list[str], pairs: Sequence[str] | str | None) -> list[str]:
    wanted = known if pairs is None else [pairs] if isinstance(pairs, str) else list(pairs)
    missing = [pair for pair in wanted if pair not in known]
    if missing or not wanted:
        raise KeyError(f"pairs {missing} are not in the results, which have {known}")
    return wanted


def _rows(table: pd.DataFrame, group: str, pair: str) -> pd.DataFrame:
    mine = (table["group"].astype(str) == group) & (table["pair"].astype(str) == pair)
    return table[mine.to_numpy()].sort_values("layer")


def _histogram(results: Mapping[str, Any], group: str, pair: str) -> np.ndarray:
    """int64 [K, bins]."""
    from scfast.observables.token_cosines import PAIRS

    place = [str(name) for name in results["token_groups"]].index(group)
    counts: np.ndarray = results["token_counts"][place, :, PAIRS.index(pair)]
    return counts


def _span(every: Any, panels: list[tuple[str, str]]) -> tuple[float, float]:
    """The cosines between which nearly all pairs lie that are drawn, for all panels alike."""
    low, high = 1.0, -1.0
    for results in every:
        edges, names = results["edges"], [str(name) for name in results["token_groups"]]
        for group, pair in panels:
            if group not in names:
                continue
            for counts in _histogram(results, group, pair):
                if not counts.sum():
                    continue
                share = counts.cumsum() / counts.sum()
                low = min(low, float(edges[np.searchsorted(share, TAILS[0])]))
                high = max(high, float(edges[np.searchsorted(share, TAILS[1]) + 1]))
    margin = 0.02 * (high - low)
    return (low - margin, high + margin) if low < high else (-1.0, 1.0)


def _ridges(panel: Axes, results: Mapping[str, Any], part: pd.DataFrame, colour: str, name: str) -> None:
    """One model: the histogram of each layer, from the top down, so that lower ones lie in front."""
    edges = np.asarray(results["edges"], dtype=np.float64)
    x = np.concatenate([edges[:1], (edges[1:] + edges[:-1]) / 2, edges[-1:]])
    counts = _histogram(results, str(part["group"].iloc[0]), str(part["pair"].iloc[0]))
    for layer, median in zip(part["layer"][::-1], part["median"][::-1], strict=True):
        if not counts[layer].sum():
            continue
        share = np.concatenate([[0.0], counts[layer] / counts[layer].max(), [0.0]])
        seen = np.flatnonzero(share > FLAT)
        shown = slice(max(0, seen[0] - 1), seen[-1] + 2)
        height = layer + RISE * share[shown]
        order = 3 + 0.1 * (len(counts) - layer)
        panel.axhline(layer, color=GRID, linewidth=0.7, zorder=1)
        panel.fill_between(x[shown], layer, height, color=colour, alpha=0.28, linewidth=0, zorder=order)
        panel.plot(x[shown], height, color=colour, linewidth=1.0, zorder=order, label=name)
        panel.plot([median, median], [layer, layer + 0.32], color=colour, linewidth=1.8, zorder=order + 0.05)


def _lines(panel: Axes, results: Mapping[str, Any], part: pd.DataFrame, colour: str, name: str) -> None:
    """One model: median, middle half and 90 % of the pairs, by layer."""
    layer = part["layer"].to_numpy()
    for low, high, alpha in (("q05", "q95", 0.12), ("q25", "q75", 0.22)):
        panel.fill_between(layer, part[low], part[high], color=colour, alpha=alpha, linewidth=0, zorder=2)
    panel.plot(
        layer, part["median"], color=colour, marker="o", markersize=3, linewidth=1.6, label=name, zorder=4
    )


def _finish_axis(
    panel: Axes, style: str, n_states: int, span: tuple[float, float], first: bool, last: bool
) -> None:
    """``first``: to the very left; ``last``: at the bottom."""
    from matplotlib.ticker import MaxNLocator

    layer, cosine = "layer (0: embeddings)", "cosine of two tokens of a cell"
    if style == "lines":
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.set_ylim(span)
        x, y = layer, cosine
    else:
        step = 1 if n_states <= 14 else 2 if n_states <= 28 else 4
        panel.set_xlim(span)
        panel.set_ylim(-0.15, n_states - 1 + RISE + 0.1)
        panel.set_yticks(range(0, n_states, step))
        panel.tick_params(axis="y", length=0)
        panel.spines["left"].set_visible(False)
        x, y = cosine, layer
    if last:
        panel.set_xlabel(x, fontsize=8.5)
    if first:
        panel.set_ylabel(y, fontsize=8.5)
