"""How well perturbations are predicted, beside what a model of them must beat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scfast.pl._figure import COLOURS, GREY, INK, figure_of, finish, make_panels, plain
from scfast.tl.train_perturbation import perturbation_summary
from scfast.train.perturbation_scores import METRICS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Inches: the whole width, of one method, and around them.
WIDTH, ROW, MARGIN = 5.2, 0.34, 0.9
#: Metric -> what the axis is called.
NAMES = dict(
    zip(
        METRICS,
        ("Pearson", "Pearson of change", "Pearson, 20 genes", "Pearson of change, 20 genes"),
        strict=True,
    )
)


def perturbation(
    logs: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    *,
    metric: str = "pearson_change",
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes:
    """A row per method: every perturbation, its mean over seeds, and the mean of all with its 95 % interval.

    Parameters
    ----------
    logs
        What :func:`scfast.tl.train_perturbation` returned, one or several seeds.
    metric
        ``"pearson_change"``, ``"pearson"``, ``"pearson_change_top"`` or ``"pearson_top"``.
    ax
        Draw into these axes.
    show
        Show the figure. Default: where ``ax`` and ``save`` are not given and the backend is interactive.
    save
        File to write, such as ``"perturbation.png"``.

    Returns
    -------
    matplotlib.axes.Axes
        Methods from top to bottom as they were scored, halves of the cells in grey; those without a defined score are
        left out.

    Raises
    ------
    ValueError
        When the metric is unknown, or there is no log with scores.

    Examples
    --------
    >>> import tempfile, scfast
    >>> adata, _ = scfast.datasets.toy()
    >>> adata.obs["gene"] = ["control", "STAT1", "ISG15", "STAT1+ISG15"] * 15
    >>> log = scfast.tl.train_perturbation(
    ...     adata, tempfile.mkdtemp(), perturbation="gene", genes="all", epochs=1, progress=False
    ... )
    >>> axes = scfast.pl.perturbation(log)
    """
    if metric not in NAMES:
        raise ValueError(f"metric={metric!r} is unknown; use one of {', '.join(map(repr, NAMES))}")
    summary = perturbation_summary(logs)
    of = summary[(summary["metric"] == metric) & (summary["perturbations"] > 0)].set_index("method")
    several = [logs] if isinstance(logs, Mapping) else list(logs)
    scores = pd.concat([pd.DataFrame(log["scores"]) for log in several])
    points = scores.groupby(["method", "perturbation", "context"], sort=False)[metric].mean()
    own = ax is None
    panel = make_panels(1, WIDTH, MARGIN + ROW * len(of))[0] if ax is None else ax
    for place, (method, row) in enumerate(of.iterrows()):
        colour = COLOURS[1] if method == "model" else GREY if str(method).startswith("half") else COLOURS[0]
        values = points[method].dropna().to_numpy(float)
        panel.plot(values, np.full(len(values), place), "o", color=colour, alpha=0.35, markersize=4, mew=0)
        if np.isfinite(row["low"]):
            panel.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=1.4)
        panel.plot([row["mean"]], [place], "|", color=INK, markersize=12, mew=1.8)
    panel.axvline(0, color=GREY, linewidth=0.7)
    panel.set_yticks(range(len(of)), list(of.index), fontsize=8.5)
    panel.set_ylim(len(of) - 0.5, -0.5)
    panel.set_xlabel(NAMES[metric], fontsize=8.5)
    plain(panel, "x")
    if own:
        figure_of(panel).get_layout_engine().set(h_pad=0.1, w_pad=0.1)  # type: ignore[call-arg, union-attr]
    finish(panel, own, show, save)
    return panel
