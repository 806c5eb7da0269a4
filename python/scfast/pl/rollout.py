"""The genes that a model's output reads from, group by group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: A light bar under a dark error line, and an orange mark: distinct to colour-blind eyes, and in print.
BAR, LINE, NULL = "#8DB4D9", "#22303C", "#D9641E"
PANEL_WIDTH, ROW_HEIGHT, MAX_COLUMNS = 3.7, 0.235, 4


def rollout(
    adata: AnnData,
    *,
    key: str = "rollout",
    groups: Sequence[str] | str | None = None,
    n_genes: int = 10,
    gene_symbols: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes | list[Axes]:
    """Top genes of each group by mean rollout score, with standard errors.

    Parameters
    ----------
    adata
        After :func:`scfast.tl.rollout`.
    key
        Name of its results.
    groups
        Which groups. Default: all.
    n_genes
        Genes per group.
    gene_symbols
        Column of ``adata.var`` with names to show instead of the index.
    ax
        Draw into these axes; for one group.
    show
        Show the figure. Default: where ``ax`` and ``save`` are not given and the backend is interactive.
    save
        File to write, such as ``"rollout.png"``.

    Returns
    -------
    matplotlib.axes.Axes or list of them
        One for one group, else a list in the order of the groups.

    Raises
    ------
    KeyError
        When there are no such results, groups or symbols.
    ValueError
        When several groups should go into one ``ax``.

    Examples
    --------
    >>> import scfast
    >>> scfast.pl.rollout(adata, groups=["B cell", "Monocyte"])  # doctest: +SKIP
    """
    import matplotlib.pyplot as plt

    if key not in adata.uns or "table" not in adata.uns[key]:
        raise KeyError(
            f"adata.uns has no rollout named {key!r}: run scfast.tl.rollout(..., key_added={key!r}) first"
        )
    table: pd.DataFrame = adata.uns[key]["table"]
    about: pd.DataFrame = adata.uns[key]["groups"]
    chosen = list(about.index) if groups is None else [groups] if isinstance(groups, str) else list(groups)
    missing = [name for name in chosen if name not in about.index]
    if missing or not chosen:
        raise KeyError(f"groups {missing} are not in the results, which have {list(about.index)}")
    if ax is not None and len(chosen) > 1:
        raise ValueError(f"one ax takes one group, and there are {len(chosen)}: name one with groups=")
    labels = _labels(adata, gene_symbols)

    if ax is not None:
        axes = [ax]
    else:
        n_columns = min(MAX_COLUMNS, len(chosen)) if len(chosen) != 5 else 3
        n_rows = math.ceil(len(chosen) / n_columns)
        size = (PANEL_WIDTH * n_columns, (ROW_HEIGHT * n_genes + 1.0) * n_rows + 0.35)
        figure, grid = plt.subplots(n_rows, n_columns, figsize=size, squeeze=False, layout="constrained")
        axes = list(grid.flat[: len(chosen)])
        for spare in grid.flat[len(chosen) :]:
            spare.remove()
    for panel, name in zip(axes, chosen, strict=True):
        rows = table[(table["group"] == name).to_numpy()].head(n_genes)
        _panel(panel, rows, labels, name, about.loc[name])
    if ax is None:
        _legend(figure, axes[0])
    if save is not None:
        drawn = axes[0].get_figure(root=True)
        assert drawn is not None
        drawn.savefig(save, dpi=200, bbox_inches="tight")
    if show or (show is None and ax is None and save is None and plt.isinteractive()):
        plt.show()
    return axes[0] if len(axes) == 1 else axes


def _labels(adata: AnnData, gene_symbols: str | None) -> dict[str, str]:
    if gene_symbols is None:
        return {}
    if gene_symbols not in adata.var:
        raise KeyError(
            f"gene_symbols={gene_symbols!r} is not in adata.var, which has {list(adata.var.columns)}"
        )
    return dict(zip(adata.var_names.astype(str), adata.var[gene_symbols].astype(str), strict=True))


def _panel(panel: Axes, rows: pd.DataFrame, labels: dict[str, str], name: str, about: pd.Series) -> None:
    place = np.arange(len(rows))
    percent, error = 100 * rows["mean"].to_numpy(), 100 * rows["se"].to_numpy()
    panel.barh(place, percent, height=0.72, color=BAR, label="mean score", zorder=2)
    known = np.isfinite(error)
    if known.any():
        panel.errorbar(
            percent[known], place[known], xerr=error[known],
            fmt="none", ecolor=LINE, elinewidth=1.0, capsize=2, zorder=3, label="standard error",
        )  # fmt: skip
    if "null" in rows:
        panel.scatter(
            100 * rows["null"],
            place,
            marker="|",
            s=70,
            linewidths=2.0,
            color=NULL,
            zorder=4,
            label="untrained model",
        )
    panel.set_yticks(place, [labels.get(gene, gene) for gene in rows["gene"].astype(str)], fontsize=8.5)
    panel.invert_yaxis()
    panel.set_ylim(max(len(rows), 1) - 0.4, -0.6)
    panel.set_xlim(left=0)
    panel.locator_params(axis="x", nbins=5)
    panel.tick_params(axis="y", length=0)
    panel.tick_params(axis="x", labelsize=8, colors="#555555")
    panel.grid(axis="x", color="#E4E7EB", linewidth=0.7, zorder=0)
    panel.set_axisbelow(True)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)
    panel.spines["bottom"].set_color("#B8C0C8")
    panel.set_xlabel("share of the readout (%)", fontsize=8.5)
    panel.set_title(name, fontsize=10.5, loc="left", pad=16, fontweight="bold")
    panel.text(0, 1.015, _facts(about), transform=panel.transAxes, fontsize=7.5, color="#66717C", va="bottom")


def _facts(about: pd.Series) -> str:
    """What stands under a group's name: its size, and how far the ranking only restates expression."""
    cells = int(about["cells"])
    parts = [f"{cells:,} cell{'s' * (cells != 1)}"]
    for column, text in (("spearman_expression", "expression"), ("spearman_null", "untrained")):
        if column in about and np.isfinite(about[column]):
            parts.append(f"ρ {text} {about[column]:.2f}")
    return "  ·  ".join(parts)


def _legend(figure: Figure, panel: Axes) -> None:
    found = dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    names = [name for name in ("mean score", "standard error", "untrained model") if name in found]
    handles = [found[name] for name in names]
    figure.legend(handles, names, loc="outside upper right", ncols=len(names), frameon=False, fontsize=8)
