"""Attended genes against differentially expressed ones, group by group."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scfast.pl._figure import (
    GREY,
    INK,
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

#: Kind of gene -> colour: in both top lists, attended only, differential only, neither.
KINDS = {"both": "#B3261E", "attended": "#2F6DA8", "differential": "#E0A030", "neither": "#C9D0D6"}
PANEL_WIDTH, PANEL_HEIGHT = 3.8, 3.7
#: Where a name may stand beside its point, first choice first: offset in points, and how it is aligned.
SIDES = (
    ((4, 0), "left", "center"),
    ((-4, 0), "right", "center"),
    ((0, 4), "center", "bottom"),
    ((0, -4), "center", "top"),
)
SCORES = {
    "mean": "attention (mean over cells)",
    "mean_detecting": "attention (mean over cells with the gene)",
    "difference": "attention (difference to other groups)",
}


def compare_de(
    adata: AnnData,
    *,
    key: str = "compare_de",
    groups: Sequence[str] | str | None = None,
    k: int | None = None,
    n_labels: int = 10,
    gene_symbols: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes | list[Axes]:
    """Attention against the Wilcoxon score: a panel per group, the two top lists in colour.

    Above each panel: how many genes the lists share, how many by chance, and how many the best of the baselines (rank,
    expression, ...) shares with the test; below that the rank correlation of attention with the test.

    Parameters
    ----------
    adata
        After :func:`scfast.tl.compare_de`.
    key
        Name of its results.
    groups
        Which groups. Default: all.
    k
        Length of the top lists. Default: the middle one of those that were compared.
    n_labels
        Genes that are named in each panel: first those in both lists, then the most attended, then the most
        differential; a name that would lie on another is left out.
    gene_symbols
        Column of ``adata.var`` with names to show instead of the index.
    ax
        Draw into these axes; for one group.
    show
        Show the figure. Default: where ``ax`` and ``save`` are not given and the backend is interactive.
    save
        File to write, such as ``"de.png"``.

    Returns
    -------
    matplotlib.axes.Axes or list of them
        One for one group, else a list in the order of the groups.

    Raises
    ------
    KeyError
        When there are no such results, groups or symbols.
    ValueError
        When several groups should go into one ``ax``, or lists of ``k`` genes were not compared.

    Examples
    --------
    >>> import scfast
    >>> adata, model = scfast.datasets.toy()
    >>> scfast.tl.received(adata, model, groupby="cell_type")
    >>> scfast.tl.compare_de(adata, top=(5, 10))
    >>> axes = scfast.pl.compare_de(adata, groups=["B cell", "Monocyte"], k=10)
    """
    if key not in adata.uns or "overlap" not in adata.uns[key]:
        raise KeyError(
            f"adata.uns has no comparison named {key!r}: run scfast.tl.compare_de(..., key_added={key!r}) first"
        )
    results = adata.uns[key]
    known = list(results["groups"].index)
    chosen = choose_panels(known, groups, results["groups"].get("cells"))
    if ax is not None and len(chosen) > 1:
        raise ValueError(f"one ax takes one group, and there are {len(chosen)}: name one with groups=")
    sizes = sorted(set(results["overlap"]["k"]))
    size = sizes[len(sizes) // 2] if k is None else k
    if size not in sizes:
        raise ValueError(
            f"k={k}: lists of {', '.join(map(str, sizes))} genes were compared; name one of them, or run with top="
        )
    labels = symbols(adata, gene_symbols)

    axes = [ax] if ax is not None else make_panels(len(chosen), PANEL_WIDTH, PANEL_HEIGHT)
    for panel, name in zip(axes, chosen, strict=True):
        part = results["table"][(results["table"]["group"] == name).to_numpy()]
        overlap = results["overlap"]
        overlap = overlap[((overlap["group"] == name) & (overlap["k"] == size)).to_numpy()]
        _panel(panel, part, size)
        title(panel, name, _facts(overlap, results["groups"].loc[name]))
        panel.set_ylabel(SCORES[results["params"]["score"]], fontsize=8.5)
    if ax is None:
        legend(figure_of(axes[0]), axes, [_label(kind, size) for kind in list(KINDS)[:3]])
        say_left_out(figure_of(axes[0]), chosen, known, groups, largest="cells" in results["groups"])
    figure_of(axes[0]).draw_without_rendering()  # names go where there is room: the layout must be final
    for panel, name in zip(axes, chosen, strict=True):
        part = results["table"][(results["table"]["group"] == name).to_numpy()]
        _names(panel, part, size, n_labels, labels)
    finish(axes[0], ax is None, show, save)
    return axes[0] if len(axes) == 1 else axes


def _kinds(part: pd.DataFrame, size: int) -> np.ndarray:
    """Which of :data:`KINDS` each gene is."""
    attended, differential = (part[name].to_numpy() <= size for name in ("attention_place", "de_place"))
    return np.select(
        [attended & differential, attended, differential], ["both", "attended", "differential"], "neither"
    )


def _label(kind: str, size: int) -> str:
    return {"both": f"top {size} of both", "attended": "by attention", "differential": "by the test"}.get(
        kind, ""
    )


def _panel(panel: Axes, part: pd.DataFrame, size: int) -> None:
    kinds = _kinds(part, size)
    for kind in reversed(KINDS):
        rows = part[kinds == kind]
        panel.scatter(
            rows["de_score"], rows["attention"], s=22 if kind == "both" else 13, color=KINDS[kind],
            alpha=0.75 if kind == "neither" else 0.9, linewidths=0.4, edgecolors="white", zorder=2 + (kind == "both"),
            label=_label(kind, size) or None,
        )  # fmt: skip
    plain(panel)
    panel.axvline(0, color=GREY, linewidth=0.7, linestyle=(0, (4, 3)), zorder=1)
    panel.margins(x=0.08, y=0.1)
    panel.set_xlabel("Wilcoxon score (z, against all other cells)", fontsize=8.5)


def _names(panel: Axes, part: pd.DataFrame, size: int, n_labels: int, labels: dict[str, str]) -> None:
    """Names beside their points, as long as they fit into the panel and onto none before them."""
    kinds = _kinds(part, size)
    together = part["attention_place"] + part["de_place"]
    order = pd.concat(
        [together[kinds == "both"].sort_values(), part["attention_place"], part["de_place"].sort_values()]
    )
    frame, seen = panel.get_window_extent(), set()
    written: list[Any] = []
    points = panel.transData.transform(part[["de_score", "attention"]].to_numpy()[kinds != "neither"])
    for index in order.index:
        if len(written) >= n_labels:
            break
        row = part.loc[index]
        if index in seen or (row["attention_place"] > size and row["de_place"] > size):
            continue
        seen.add(index)
        for (x, y), across, along in SIDES:
            text = panel.annotate(
                labels.get(str(row["gene"]), str(row["gene"])), (row["de_score"], row["attention"]), (x, y),
                textcoords="offset points", ha=across, va=along, fontsize=7.5, color=INK, zorder=5,
            )  # fmt: skip
            box = text.get_window_extent()
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            hidden = np.all((points >= box.padded(1.5).min) & (points <= box.padded(1.5).max), axis=1).any()
            if inside and not hidden and not any(box.padded(3.0).overlaps(other) for other in written):
                written.append(box)
                break
            text.remove()


def _facts(overlap: pd.DataFrame, about: pd.Series) -> str:
    parts = []
    if len(overlap):
        row = overlap.iloc[0]
        best = max((name for name in row.index if name.startswith("overlap_")), key=lambda name: row[name])
        name = best.removeprefix("overlap_").replace("_", " ")
        parts.append(
            f"{row['overlap']} of {row['k']} shared  ·  chance {row['expected']:.1f}  ·  {name} {row[best]}"
        )
    parts.append(
        f"ρ {about['spearman_de']:.2f}  ·  rank and detection held constant {about['partial_de']:.2f}"
    )
    return "\n".join(parts)
