"""What can be read from each layer of a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scfast.pl._figure import (
    COLOURS,
    GREY,
    RULE,
    choose,
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

PANEL_WIDTH, PANEL_HEIGHT = 3.9, 3.1
#: Dashes of one model after another.
LINES = ("-", "--", ":", "-.")


def probe(
    adata: AnnData,
    *,
    key: str | Sequence[str] = "probe",
    labels: Sequence[str] | str | None = None,
    readouts: Sequence[str] | str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes | list[Axes]:
    """Macro-F1 of the probes by layer: a panel per label, a colour per readout, a dash per model.

    Several models with one readout have a colour each. The band around a line is the standard error between folds;
    diamonds are the confirming logistic regressions. Below lie the probes of shuffled labels and the line of chance.
    Where there are probes of single tokens, their mean stands beside in grey.

    Parameters
    ----------
    adata
        After :func:`scfast.tl.probe`.
    key
        Name of its results; several for several models.
    labels
        Which labels. Default: all.
    readouts
        Which readouts, each as a line of its own. Default: cls and mean; those of the first model if it has neither.
    ax
        Draw into these axes; for one label.
    show
        Show the figure. Default: where ``ax`` and ``save`` are not given and the backend is interactive.
    save
        File to write, such as ``"probe.png"``.

    Returns
    -------
    matplotlib.axes.Axes or list of them
        One for one label, else a list in their order.

    Raises
    ------
    KeyError
        When there are no such results, labels or readouts.
    ValueError
        When several labels should go into one ``ax``.

    Examples
    --------
    >>> import scfast
    >>> adata, model = scfast.datasets.toy()
    >>> scfast.tl.probe(adata, model, ["cell_type", "condition"])
    >>> axes = scfast.pl.probe(adata, labels="cell_type")
    """
    keys = [key] if isinstance(key, str) else list(key)
    for name in keys:
        if name not in adata.uns or "transfer" not in adata.uns[name]:
            raise KeyError(
                f"adata.uns has no probes named {name!r}: run scfast.tl.probe(..., key_added={name!r}) first"
            )
    tables = {name: adata.uns[name]["table"].astype({"label": str, "readout": str}) for name in keys}
    every = pd.concat(tables.values())
    known = list(dict.fromkeys(every["label"]))
    chosen = choose_panels(known, labels)
    there = list(dict.fromkeys(every["readout"]))
    pooled = [name for name in there if name in ("cls", "mean")]
    lines = choose(there, (pooled or there[:1]) if readouts is None else readouts)
    if ax is not None and len(chosen) > 1:
        raise ValueError(f"one ax takes one label, and there are {len(chosen)}: name one with labels=")

    axes = [ax] if ax is not None else make_panels(len(chosen), PANEL_WIDTH, PANEL_HEIGHT)
    for panel, label in zip(axes, chosen, strict=True):
        for number, (name, table) in enumerate(tables.items()):
            _lines(
                panel,
                table[(table["label"] == label).to_numpy()],
                lines,
                number,
                name if len(keys) > 1 else "",
            )
            _tokens(panel, adata.uns[name].get("tokens"), label, number, readouts is None)
        chance = every.loc[(every["label"] == label).to_numpy(), "chance"].iloc[0]
        panel.axhline(chance, color=GREY, linewidth=0.9, linestyle=(0, (1, 2)), label="chance", zorder=2)
        _axis(panel)
        about = next(x.loc[label] for x in (adata.uns[name]["labels"] for name in keys) if label in x.index)
        title(panel, label, f"{int(about['classes'])} classes  ·  {int(about['cells']):,} cells")
    if ax is None:
        named = [_name(readout, name if len(keys) > 1 else "") for name in keys for readout in lines]
        others = ["single tokens, mean", "logistic regression", "shuffled labels", "chance"]
        legend(figure_of(axes[0]), axes, [*named, *others])
        say_left_out(figure_of(axes[0]), chosen, known, labels, what="labels", largest=False)
    finish(axes[0], ax is None, show, save)
    return axes[0] if len(axes) == 1 else axes


def _name(readout: str, model: str) -> str:
    return f"{readout}, {model}" if model else readout


def _lines(panel: Axes, table: pd.DataFrame, readouts: Sequence[str], number: int, model: str) -> None:
    """One model: its probes, their controls, and what confirms them."""
    dashes = LINES[number % len(LINES)]
    for place, readout in enumerate(readouts):
        part = table[(table["readout"] == readout).to_numpy()].sort_values("layer")
        if not len(part):
            continue
        colour = COLOURS[(place if len(readouts) > 1 else number) % len(COLOURS)]
        layer, f1, error = (part[name].to_numpy(dtype=np.float64) for name in ("layer", "f1", "f1_se"))
        panel.plot(
            layer, f1, dashes,
            color=colour, marker="o", markersize=3, linewidth=1.5, label=_name(readout, model), zorder=4,
        )  # fmt: skip
        panel.fill_between(layer, f1 - error, f1 + error, color=colour, alpha=0.15, linewidth=0, zorder=3)
        panel.plot(
            layer, part["control"], dashes, color=RULE, linewidth=1.2, label="shuffled labels", zorder=2
        )
        known = np.isfinite(part["logistic"].to_numpy(dtype=np.float64))
        panel.scatter(
            layer[known], part["logistic"].to_numpy()[known],
            marker="D", s=26, facecolor="white", edgecolor=colour, linewidths=1.2, zorder=5,
            label="logistic regression" if known.any() else None,
        )  # fmt: skip


def _tokens(panel: Axes, tokens: pd.DataFrame | None, label: str, number: int, wanted: bool) -> None:
    """The mean of the probes of single tokens."""
    if tokens is None or not wanted:
        return
    part = tokens[(tokens["label"].astype(str) == label).to_numpy()].sort_values("layer")
    panel.plot(
        part["layer"], part["tokens"], LINES[number % len(LINES)],
        color=GREY, marker="s", markersize=2.5, linewidth=1.2, label="single tokens, mean", zorder=3,
    )  # fmt: skip


def _axis(panel: Axes) -> None:
    from matplotlib.ticker import MaxNLocator

    plain(panel)
    panel.set_ylim(0, 1)
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.set_xlabel("layer (0: embeddings)", fontsize=8.5)
    panel.set_ylabel("macro-F1, held-out cells", fontsize=8.5)
