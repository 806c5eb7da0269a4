"""Bars of the genes with the largest scores, group by group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scfast.pl._figure import (
    INK,
    MAX_PANELS,
    choose_panels,
    figure_of,
    finish,
    legend,
    make_panels,
    plain,
    say_left_out,
    symbols,
    title,
)

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

#: A light bar under a dark error line, and an orange mark: distinct to colour-blind eyes, and in print.
BAR, NULL = "#8DB4D9", "#D9641E"
PANEL_WIDTH, ROW_HEIGHT = 3.7, 0.235


@dataclass(frozen=True)
class Score:
    """A tool whose scores are drawn: its name, the factor they are shown with, and what stands below the axis."""

    tool: str
    factor: float
    label: str


def top_genes(
    adata: AnnData,
    score: Score,
    keys: str | Sequence[str],
    groups: Sequence[str] | str | None,
    n_genes: int,
    gene_symbols: str | None,
    ax: Axes | None,
    show: bool | None,
    save: str | Path | None,
) -> Axes | list[Axes]:
    """Draw; see :func:`scfast.pl.rollout`. With several ``keys`` all panels have one scale."""
    names = [keys] if isinstance(keys, str) else list(keys)
    for key in names:
        if key not in adata.uns or "table" not in adata.uns[key]:
            raise KeyError(
                f"adata.uns has no {score.tool} named {key!r}: run scfast.tl.{score.tool}(..., key_added={key!r})"
                " first"
            )
    known = {key: adata.uns[key]["groups"] for key in names}
    most = max(1, MAX_PANELS // max(1, len(names)))
    if groups is None:  # a group without any cell has nothing to draw
        known = {
            key: about[about["cells"] > 0] if about["cells"].any() else about for key, about in known.items()
        }
    chosen = {
        key: choose_panels(list(about.index), groups, about["cells"], most=most)
        for key, about in known.items()
    }
    panels = [(key, name) for key in names for name in chosen[key]]
    if ax is not None and len(panels) > 1:
        raise ValueError(f"one ax takes one group, and there are {len(panels)}: name one with groups=")
    labels = symbols(adata, gene_symbols)

    height = ROW_HEIGHT * n_genes + 1.0
    axes = [ax] if ax is not None else make_panels(len(panels), PANEL_WIDTH, height)
    for panel, (key, name) in zip(axes, panels, strict=True):
        table, about = adata.uns[key]["table"], adata.uns[key]["groups"].loc[name]
        _panel(panel, table[(table["group"] == name).to_numpy()].head(n_genes), labels, score)
        title(panel, f"{key}: {name}" if len(names) > 1 else name, _facts(about))
    if len(names) > 1:
        furthest = max(panel.get_xlim()[1] for panel in axes)
        for panel in axes:
            panel.set_xlim(0, furthest)
    if ax is None:
        legend(figure_of(axes[0]), axes[:1], ("mean score", "standard error", "untrained model"))
        say_left_out(figure_of(axes[0]), chosen[names[0]], list(known[names[0]].index), groups)
    finish(axes[0], ax is None, show, save)
    return axes[0] if len(axes) == 1 else axes


def _panel(panel: Axes, rows: pd.DataFrame, labels: dict[str, str], score: Score) -> None:
    place = np.arange(len(rows))
    values, error = score.factor * rows["mean"].to_numpy(), score.factor * rows["se"].to_numpy()
    panel.barh(place, values, height=0.72, color=BAR, label="mean score", zorder=2)
    known = np.isfinite(error)
    if known.any():
        panel.errorbar(
            values[known], place[known], xerr=error[known],
            fmt="none", ecolor=INK, elinewidth=1.0, capsize=2, zorder=3, label="standard error",
        )  # fmt: skip
    if "null" in rows:
        panel.scatter(
            score.factor * rows["null"], place,
            marker="|", s=70, linewidths=2.0, color=NULL, zorder=4, label="untrained model",
        )  # fmt: skip
    plain(panel, "x")
    panel.spines["left"].set_visible(False)
    panel.set_yticks(place, [labels.get(gene, gene) for gene in rows["gene"].astype(str)])
    panel.set_ylim(max(len(rows), 1) - 0.4, -0.6)
    panel.set_xlim(left=0)
    panel.locator_params(axis="x", nbins=4, steps=[1, 2, 5, 10])
    panel.tick_params(axis="y", length=0, labelsize=8.5, colors="black")
    panel.set_xlabel(score.label, fontsize=8.5)


def _facts(about: pd.Series) -> str:
    """What stands under a group's name: its size, and how far the ranking only restates expression."""
    cells = int(about["cells"])
    parts = [f"{cells:,} cell{'s' * (cells != 1)}"]
    for column, text in (("spearman_expression", "expression"), ("spearman_null", "untrained")):
        if column in about and np.isfinite(about[column]):
            parts.append(f"ρ {text} {about[column]:.2f}")
    return "  ·  ".join(parts)
