"""Losses over the steps of training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scfast.pl._figure import COLOURS, GREY, figure_of, finish, make_panels, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT = 4.6, 3.2


def training(
    logs: Mapping[str, Any],
    *,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Held-out and training loss at every evaluation, beside what is reached without looking at the cell.

    Parameters
    ----------
    logs
        The log of one :func:`scfast.tl.train_bioformers` or :func:`scfast.tl.pretrain`, or name -> log.
    ax
        Draw into these axes.
    show
        Show the figure. Default: where ``ax`` and ``save`` are not given and the backend is interactive.
    save
        File to write, such as ``"training.png"``.

    Returns
    -------
    matplotlib.axes.Axes
        Lines: the held-out loss of a log (solid), its training loss (thin), its baseline (dashed).

    Raises
    ------
    ValueError
        When there is no log, or one without evaluations of held-out cells.

    Examples
    --------
    >>> import tempfile, scfast
    >>> adata, _ = scfast.datasets.toy()
    >>> log = scfast.tl.train_bioformers(
    ...     adata, tempfile.mkdtemp(), preset="tiny", genes="all", steps=4, batch_tokens=400, progress=False
    ... )
    >>> axes = scfast.pl.training(log)
    """
    named: Mapping[str, Any] = {"": logs} if "settings" in logs else logs
    if not named:
        raise ValueError("there is no log to draw: give that of scfast.tl.train_bioformers, or name -> log")
    for name, log in named.items():
        if not log.get("history") or "held_out_loss" not in log["history"][-1]:
            raise ValueError(
                f"the log {name!r} has no losses of held-out cells: give one of scfast.tl.train_bioformers or pretrain"
            )
    own = ax is None
    panel = make_panels(1, WIDTH, HEIGHT)[0] if ax is None else ax
    for number, (name, log) in enumerate(named.items()):
        _lines(panel, name, log, COLOURS[number % len(COLOURS)])
    panel.set_xlabel("step", fontsize=8.5)
    panel.set_ylabel("loss (nats per hidden gene)", fontsize=8.5)
    plain(panel, "y")
    _legend(panel, list(named))
    if own:
        figure_of(panel).get_layout_engine().set(h_pad=0.1, w_pad=0.1)  # type: ignore[call-arg, union-attr]
    finish(panel, own, show, save)
    return panel


def _legend(panel: Axes, names: list[str]) -> None:
    """Above the lines, which fall everywhere: the logs by colour, then the kinds of line that each of them has."""
    handles, labels = panel.get_legend_handles_labels()
    kept = {name: handle for handle, name in reversed(list(zip(handles, labels, strict=True)))}
    shown = [name or "held out" for name in names] + ["training", "without the cell"]
    columns = 3 if max(map(len, shown)) < 20 else 2 if max(map(len, shown)) < 34 else 1
    panel.legend(
        [kept[name] for name in shown], shown,
        loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=columns, frameon=False, fontsize=8, borderaxespad=0.2,
    )  # fmt: skip


def _lines(panel: Axes, name: str, log: Mapping[str, Any], colour: str) -> None:
    steps = [entry["step"] for entry in log["history"]]
    panel.plot(
        steps, [entry["held_out_loss"] for entry in log["history"]], color=colour, label=name or "held out"
    )
    train_losses = [entry["train_loss"] for entry in log["history"]]
    panel.plot(steps, train_losses, color=colour, linewidth=0.7, alpha=0.7, label="training")
    baseline = log["unigram_loss"] if "unigram_loss" in log else log["baseline"]["loss"]
    panel.axhline(
        baseline,
        color=colour if name else GREY,
        linewidth=0.9,
        linestyle=(0, (4, 3)),
        label="without the cell",
    )
