"""Confusion matrices side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scfast.pl._figure import colour_bar, figure_of, finish, ink_on, lean, make_panels, shorten, title

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Inches of one class, and around a matrix.
CELL, MARGIN = 0.72, 1.5
#: With more classes the numbers go, then the names; inches of a class without numbers, and of all without names.
NUMBERED, NAMED, SMALL, NAMELESS = 16, 60, 0.17, 7.0
#: The longest name of a class that is shown whole.
NAME_LENGTH = 30


def confusion(
    logs: Mapping[str, Any],
    *,
    part: str = "test",
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes | list[Axes]:
    """Which class was taken for which: shares of each true class, all models on one scale.

    Parameters
    ----------
    logs
        The log of one :func:`scfast.tl.finetune`, or name -> log, for panels side by side.
    part
        ``"test"`` or ``"validation"``.
    ax
        Draw into these axes; for one log.
    show
        Show the figure. Default: where ``ax`` and ``save`` are not given and the backend is interactive.
    save
        File to write, such as ``"confusion.png"``.

    Returns
    -------
    matplotlib.axes.Axes or list of them
        One for one log, else a list in the order of the logs.

    Raises
    ------
    KeyError
        When a log has no scores of that part.
    ValueError
        When the models tell different classes apart, there is none, or several should go into one ``ax``.

    Examples
    --------
    >>> import tempfile, scfast
    >>> adata, model = scfast.datasets.toy()
    >>> given = {"model": model, "label": "cell_type", "epochs": 1, "progress": False}
    >>> frozen = scfast.tl.finetune(adata, tempfile.mkdtemp(), freeze="all", **given)
    >>> tuned = scfast.tl.finetune(adata, tempfile.mkdtemp(), **given)
    >>> axes = scfast.pl.confusion({"frozen": frozen, "all trained": tuned})
    >>> len(axes)
    2
    """
    named: Mapping[str, Any] = {"": logs} if "settings" in logs else logs
    if not named:
        raise ValueError("there is no log to draw: give that of scfast.tl.finetune, or name -> log")
    if ax is not None and len(named) > 1:
        raise ValueError(f"one ax takes one log, and there are {len(named)}")
    missing = [name for name, log in named.items() if part not in log]
    if missing:
        raise KeyError(f"no scores of part={part!r} in the logs {missing}; there are validation and test")
    classes = [list(log["settings"]["classes"]) for log in named.values()]
    if any(other != classes[0] for other in classes[1:]):
        raise ValueError(
            f"the models tell different classes apart: {classes}; draw them in figures of their own"
        )
    n = len(classes[0])
    side = MARGIN + (CELL * n if n <= NUMBERED else SMALL * max(n, 24) if n <= NAMED else NAMELESS)
    axes = [ax] if ax is not None else make_panels(len(named), side, side)
    for panel, (name, log) in zip(axes, named.items(), strict=True):
        image = _panel(panel, name, log[part], classes[0], first=panel is axes[0])
    if ax is None:
        figure = figure_of(axes[0])
        figure.get_layout_engine().set(h_pad=0.15, w_pad=0.1)  # type: ignore[call-arg, union-attr]
        colour_bar(image, axes, "share of the true class", shrink=0.7, aspect=18)
    finish(axes[0], ax is None, show, save)
    return axes[0] if len(axes) == 1 else axes


def _panel(panel: Axes, name: str, scores: Mapping[str, Any], classes: list[str], *, first: bool) -> Any:
    counts = np.asarray(scores["confusion"])  # [true, predicted]
    cells = counts.sum(1, keepdims=True)
    shares = np.divide(counts, cells, out=np.full(counts.shape, np.nan), where=cells > 0)
    image = panel.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for i, j in np.ndindex(*counts.shape) if len(classes) <= NUMBERED else ():
        share = shares[i, j]
        text = f"{counts[i, j]:,}" + ("" if np.isnan(share) else f"\n{100 * share:.0f} %")
        panel.text(
            j,
            i,
            text,
            ha="center",
            va="center",
            fontsize=8,
            color=ink_on(image.cmap(0.0 if np.isnan(share) else share)),
        )
    named = len(classes) <= NAMED
    ticks, names = (
        (range(len(classes)), [shorten(name, NAME_LENGTH) for name in classes]) if named else ([], [])
    )
    size = 8.5 if len(classes) <= NUMBERED else 7
    panel.set_xticks(ticks, names, fontsize=size)
    panel.set_yticks(ticks, names if first else [""] * len(names), fontsize=size)
    panel.tick_params(length=0)
    if max(map(len, names), default=0) > 8 or len(names) > NUMBERED:
        lean(panel)
    panel.set_xlabel("predicted" if named else f"predicted, {len(classes):,} classes", fontsize=8.5)
    if first:
        panel.set_ylabel("true class", fontsize=8.5)
    for spine in panel.spines.values():
        spine.set_visible(False)
    facts = f"accuracy {scores['accuracy']:.3f}  ·  macro-F1 {scores['macro_f1']:.3f}"
    title(panel, name, facts)
    return image
