"""Gene sets over-represented among attended genes, group by group."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scfast.pl._figure import (
    GREY,
    INK,
    choose_panels,
    columns_for,
    figure_of,
    finish,
    legend,
    make_panels,
    plain,
    say_left_out,
    shorten,
    title,
)

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

#: Bars of sets below and above the threshold: dark and light, in print too.
SIGNIFICANT, OTHER = "#2F6DA8", "#C9D7E6"
PANEL_WIDTH, ROW_HEIGHT = 4.6, 0.235
#: The longest name of a set that is shown whole.
NAME_LENGTH = 34


def enrich(
    adata: AnnData,
    *,
    key: str = "enrich",
    groups: Sequence[str] | str | None = None,
    n_sets: int = 8,
    threshold: float = 0.05,
    prefix: str = "HALLMARK_",
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes | list[Axes]:
    """The gene sets with the smallest p of each group: bars of -log10 p, with genes in the top and in the set.

    Sets whose q is below the threshold are dark. All panels have one scale.

    Parameters
    ----------
    adata
        After :func:`scfast.tl.enrich`.
    key
        Name of its results.
    groups
        Which groups. Default: all.
    n_sets
        Sets per group.
    threshold
        Of q.
    prefix
        Left out of the sets' names.
    ax
        Draw into these axes; for one group.
    show
        Show the figure. Default: where ``ax`` and ``save`` are not given and the backend is interactive.
    save
        File to write, such as ``"enrich.png"``.

    Returns
    -------
    matplotlib.axes.Axes or list of them
        One for one group, else a list in the order of the groups.

    Raises
    ------
    KeyError
        When there are no such results or groups.
    ValueError
        When several groups should go into one ``ax``.

    Examples
    --------
    >>> import scfast
    >>> adata, model = scfast.datasets.toy()
    >>> scfast.tl.rollout(adata, model, groupby="cell_type")
    >>> sets = {"T_CELL": ["CD3D", "CD3E", "IL7R"], "MYELOID": ["LYZ", "CD14", "S100A8"]}
    >>> scfast.tl.enrich(adata, sets, top=8)
    >>> axes = scfast.pl.enrich(adata, groups=["B cell", "Monocyte"])
    """
    if key not in adata.uns or "top_genes" not in adata.uns[key]:
        raise KeyError(
            f"adata.uns has no enrichment named {key!r}: run scfast.tl.enrich(..., key_added={key!r}) first"
        )
    results = adata.uns[key]
    known = list(results["groups"].index)
    chosen = choose_panels(known, groups, results["groups"].get("cells"))
    if ax is not None and len(chosen) > 1:
        raise ValueError(f"one ax takes one group, and there are {len(chosen)}: name one with groups=")
    axes = [ax] if ax is not None else make_panels(len(chosen), PANEL_WIDTH, ROW_HEIGHT * n_sets + 1.0)
    table = results["table"]
    for place, (panel, name) in enumerate(zip(axes, chosen, strict=True)):
        rows = table[(table["group"] == name).to_numpy()].head(n_sets)
        _panel(panel, rows, threshold, prefix)
        if place + columns_for(len(chosen), PANEL_WIDTH) >= len(chosen):
            panel.set_xlabel("−log10 p", fontsize=8.5)
        about = results["groups"].loc[name]
        title(
            panel, name,
            f"top {results['params']['top']} of {int(about['universe']):,} genes  ·  {int(about['sets'])} sets",
        )  # fmt: skip
    furthest = max(panel.get_xlim()[1] for panel in axes)
    for panel in axes:
        panel.set_xlim(0, furthest)
    if ax is None:
        legend(figure_of(axes[0]), axes, (f"q < {threshold:g}", f"q ≥ {threshold:g}"))
        say_left_out(figure_of(axes[0]), chosen, known, groups, largest="cells" in results["groups"])
    finish(axes[0], ax is None, show, save)
    return axes[0] if len(axes) == 1 else axes


def _panel(panel: Axes, rows: pd.DataFrame, threshold: float, prefix: str) -> None:
    place = np.arange(len(rows))
    height = -rows["log10_p"].to_numpy()
    below = (rows["q_value"] < threshold).to_numpy()
    for kind, colour, label in (
        (below, SIGNIFICANT, f"q < {threshold:g}"),
        (~below, OTHER, f"q ≥ {threshold:g}"),
    ):
        if kind.any():
            panel.barh(place[kind], height[kind], height=0.72, color=colour, label=label, zorder=2)
    for at, length, overlap, size in zip(place, height, rows["overlap"], rows["set_size"], strict=True):
        panel.annotate(
            f"{overlap}/{size}",
            (length, at),
            (3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
            color=GREY,
        )
    plain(panel, "x")
    panel.spines["left"].set_visible(False)
    panel.set_yticks(place, [_shown(name, prefix) for name in rows["gene_set"].astype(str)])
    panel.set_ylim(max(len(rows), 1) - 0.4, -0.6)
    panel.set_xlim(0, max(float(height.max(initial=0.0)) * 1.15, 2.0))
    panel.locator_params(axis="x", nbins=5)
    panel.tick_params(axis="y", length=0, labelsize=8, colors=INK)


def _shown(name: str, prefix: str) -> str:
    """A set's name without prefix and underscores, cut where it is long.

    Examples
    --------
    >>> _shown("HALLMARK_TNFA_SIGNALING_VIA_NFKB", "HALLMARK_")
    'TNFA SIGNALING VIA NFKB'
    """
    return shorten(name.removeprefix(prefix).replace("_", " "), NAME_LENGTH)
