"""Plots as pictures that lie inside a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from scfast.report.chapters import Picture
from scfast.report.content import Figure

if TYPE_CHECKING:
    from anndata import AnnData

#: Groups of a figure at most; every group has its section.
MAX_GROUPS = 12
#: Bytes of a drawing beyond which a picture of dots is smaller.
MAX_SVG = 250_000
#: Of a page to an inch: text of a figure has the size that it was drawn with.
PIXELS = 96


def draw(adata: AnnData, key: str, picture: Picture, groups: list[str], alt: str) -> Figure:
    """Draw one plot of :mod:`scfast.pl` without a display.

    Parameters
    ----------
    adata
        With the results.
    key
        Their name in ``uns``.
    picture
        Which plot.
    groups
        The groups of the results, the largest first.
    alt
        What it shows, for those who do not see it.
    """
    from scfast import pl

    if picture.of is not None:
        key = adata.uns[key]["params"][picture.of]
    arguments: dict[str, Any] = {"keys" if picture.plot == "attention_shift" else "key": key}
    caption = picture.caption
    if picture.by_group and len(groups) > MAX_GROUPS:
        arguments["groups"] = groups[:MAX_GROUPS]
        caption += f" The {MAX_GROUPS} largest of {len(groups)} groups."
    return figure_from(lambda: getattr(pl, picture.plot)(adata, show=False, **arguments), key, alt, caption)


def figure_from(plot: Callable[[], Any], salt: str, alt: str, caption: str) -> Figure:
    """What ``plot`` draws, its axes or a list of them, as a picture; ``salt`` makes names within it its own."""
    import matplotlib.pyplot as plt

    with plt.rc_context({"svg.hashsalt": salt, "svg.fonttype": "path", "interactive": False}):
        axes = plot()
        figure = (axes[0] if isinstance(axes, list) else axes).get_figure(root=True)
        try:
            return Figure(_uri(figure), alt, caption, round(PIXELS * _inches(figure)))
        finally:
            plt.close(figure)


def _inches(figure: Any) -> float:
    """Width of what is drawn."""
    figure.canvas.draw()
    return float(figure.get_tightbbox().width)


def _uri(figure: Any) -> str:
    """The smaller of a drawing and a picture, as a ``data:`` address."""
    options: dict[str, Any] = {"bbox_inches": "tight", "facecolor": "white"}
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None}, **options)
    kind = "svg+xml"
    if buffer.tell() > MAX_SVG:
        dots = io.BytesIO()
        figure.savefig(dots, format="png", dpi=150, **options)
        if dots.tell() < buffer.tell():
            buffer, kind = dots, "png"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
