"""Precision and recall of networks beside what they must beat."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from scfast.pl._figure import (
    GREY,
    choose_panels,
    figure_of,
    finish,
    legend,
    make_panels,
    plain,
    say_left_out,
    title,
)

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

#: Score -> its name in the legend, and its colour.
SCORES = {
    "network": ("network", "#B3261E"),
    "coexpression": ("co-expression", "#2F6DA8"),
    "detection": ("detection rates", "#E0A030"),
}
PANEL_WIDTH, PANEL_HEIGHT = 3.4, 3.2
#: Precision of the first few edges may be anything: from here on it sets the scale.
LEAST_RECALL = 0.01


def grn_score(
    adata: AnnData,
    *,
    key: str = "grn_score",
    groups: Sequence[str] | str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes | list[Axes]:
    """Precision against recall, a panel per network: the network, its baselines, and chance.

    The broken line is the density of the reference, which chance has. Above each panel: early precision over chance
    with its 95 % interval, and that of the better baseline and of references of the same degrees.

    Parameters
    ----------
    adata
        After :func:`scfast.tl.grn_score`.
    key
        Name of its results.
    groups
        Which networks. Default: all.
    ax
        Draw into these axes; for one network.
    show
        Show the figure. Default: where ``ax`` and ``save`` are not given and the backend is interactive.
    save
        File to write, such as ``"curves.png"``.

    Returns
    -------
    matplotlib.axes.Axes or list of them
        One for one network, else a list in the order of the networks.

    Raises
    ------
    KeyError
        When there are no such results or networks.
    ValueError
        When several networks should go into one ``ax``.

    Examples
    --------
    >>> import scfast
    >>> adata, model = scfast.datasets.toy()
    >>> scfast.tl.grn(adata, model)
    >>> scfast.tl.grn_score(adata, {"STAT1": ["ISG15", "IFI6"], "LYZ": ["CD14", "CST3"]}, n_null=5)
    >>> axes = scfast.pl.grn_score(adata)
    """
    if "curves" not in adata.uns.get(key, {}):
        raise KeyError(
            f"adata.uns has no scores of networks named {key!r}: run scfast.tl.grn_score(..., key_added={key!r}) first"
        )
    results = adata.uns[key]
    curves, table = results["curves"], results["table"]
    known = list(dict.fromkeys(table["network"].astype(str)))
    chosen = choose_panels(known, groups)
    if ax is not None and len(chosen) > 1:
        raise ValueError(f"one ax takes one network, and there are {len(chosen)}: name one with groups=")
    density = float(results["params"]["density"])
    axes = [ax] if ax is not None else make_panels(len(chosen), PANEL_WIDTH, PANEL_HEIGHT)
    for panel, name in zip(axes, chosen, strict=True):
        part = curves[(curves["network"] == name).to_numpy()]
        for score, (label, colour) in reversed(SCORES.items()):
            line = part[(part["score"] == score).to_numpy()]
            panel.plot(
                line["recall"], line["precision"], color=colour, label=label, drawstyle="steps-pre",
                linewidth=1.8 if score == "network" else 1.2, zorder=3 if score == "network" else 2,
            )  # fmt: skip
        panel.axhline(density, color=GREY, linewidth=0.9, linestyle=(0, (4, 3)), label="chance", zorder=1)
        plain(panel)
        panel.set_xlim(0, 1)
        seen = part.loc[(part["recall"] >= LEAST_RECALL).to_numpy(), "precision"]
        panel.set_ylim(0, min(1.0, 1.15 * max(float(seen.max()), 2 * density)))
        panel.set_xlabel("recall", fontsize=8.5)
        panel.set_ylabel("precision", fontsize=8.5)
        rows = table[(table["network"] == name).to_numpy()].set_index("score")
        own = rows.loc["network"]
        best = max(("coexpression", "detection"), key=lambda score: rows.loc[score, "epr"])
        facts = (
            f"EPR {own['epr']:.2f} [{own['epr_low']:.2f}, {own['epr_high']:.2f}]  ·  AUPRC ratio"
            f" {own['auprc_ratio']:.2f}\nEPR of {SCORES[best][0]} {rows.loc[best, 'epr']:.2f}, of degrees alone"
            f" {own['null_epr']:.2f}"
        )
        title(panel, {"all": "all cells", "stratified": "mean of the groups"}.get(name, name), facts)
    if ax is None:
        legend(figure_of(axes[0]), axes, [*(label for label, _ in SCORES.values()), "chance"])
        say_left_out(figure_of(axes[0]), chosen, known, groups, largest=False)
    finish(axes[0], ax is None, show, save)
    return axes[0] if len(axes) == 1 else axes
