"""The genes that one regulator influences: a heatmap over networks, and its strongest edges."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scfast.pl._figure import (
    GREY,
    INK,
    choose_panels,
    colour_bar,
    finish,
    lean,
    plain,
    say_left_out,
    shorten,
    title,
)

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

#: Networks that have a column, and inches of each.
MAX_NETWORKS, COLUMN = 24, 0.3
#: The longest name of a network that is shown whole.
NAME_LENGTH = 24
#: Known targets, and other genes.
KNOWN, OTHER = "#D9641E", "#B8C0C8"
WIDTH, ROW = 7.2, 0.2


def regulator(
    adata: AnnData,
    *,
    key: str = "regulator",
    cmap: str = "viridis",
    show: bool | None = None,
    save: str | Path | None = None,
) -> list[Axes]:
    """Two panels: the most influenced genes in every network, and the strongest edges with known targets marked.

    Parameters
    ----------
    adata
        After :func:`scfast.tl.regulator`.
    key
        Name of its results.
    cmap
        Colour map of the heatmap.
    show
        Show the figure. Default: where ``save`` is not given and the backend is interactive.
    save
        File to write, such as ``"STAT1.png"``.

    Returns
    -------
    list of matplotlib.axes.Axes
        Heatmap and edges.

    Raises
    ------
    KeyError
        When there are no such results.

    Examples
    --------
    >>> import scfast
    >>> adata, model = scfast.datasets.toy()
    >>> scfast.tl.grn(adata, model)
    >>> scfast.tl.regulator(adata, "STAT1", reference={"STAT1": ["ISG15", "IFI6"]}, top=10)
    >>> axes = scfast.pl.regulator(adata)
    """
    import matplotlib.pyplot as plt

    if "influenced" not in adata.uns.get(key, {}):
        raise KeyError(
            f"adata.uns has no regulator named {key!r}: run scfast.tl.regulator(..., key_added={key!r}) first"
        )
    results = adata.uns[key]
    heat, edges, params = results["influenced"], results["edges"], results["params"]
    known = [name for name in heat.columns if name not in ("gene", "value")]
    networks = choose_panels(known, None, most=MAX_NETWORKS)
    rows = max(len(heat), len(edges))
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(WIDTH + COLUMN * len(networks), 1.9 + ROW * rows), layout="constrained",
        width_ratios=[2.2 + COLUMN * len(networks), 5],
    )  # fmt: skip
    say_left_out(figure, networks, known, None, what="networks", largest=False)

    image = left.imshow(heat[networks].to_numpy(dtype=float), cmap=cmap, aspect="auto")
    names = ["all cells" if name == "all" else shorten(name, NAME_LENGTH) for name in networks]
    left.set_xticks(range(len(networks)), names)
    left.set_yticks(range(len(heat)), heat["gene"].astype(str).tolist())
    left.tick_params(labelsize=8, length=0, colors=INK)
    lean(left)
    for spine in left.spines.values():
        spine.set_visible(False)
    colour_bar(image, left, "mean attention", shrink=0.6, pad=0.03)
    title(left, str(params["gene"]), "mean attention of the gene to it")

    place = np.arange(len(edges))
    colours = np.where(edges["known"].to_numpy(dtype=bool), KNOWN, OTHER)
    value = edges["value"].to_numpy(dtype=float)
    right.hlines(place, 0, value, color=colours, linewidth=1.6, zorder=2)
    error = edges["se"].to_numpy(dtype=float)
    if np.isfinite(error).any():
        right.errorbar(
            value,
            place,
            xerr=np.nan_to_num(error),
            fmt="none",
            ecolor=GREY,
            elinewidth=0.8,
            capsize=1.5,
            zorder=3,
        )
    right.scatter(value, place, s=24, color=colours, zorder=4, linewidths=0)
    right.set_yticks(place, edges["target"].astype(str).tolist())
    for label, known in zip(right.get_yticklabels(), edges["known"], strict=True):
        label.set_fontweight("bold" if known else "normal")
    right.invert_yaxis()
    plain(right, "x")
    right.axvline(0, color=GREY, linewidth=0.7, zorder=1)
    change = params["network"] == "change"
    right.set_xlabel("change of the edge" if change else "weight of the edge", fontsize=8.5)
    overlap = results["overlap"].iloc[0]
    about = "bars: standard error"
    if np.isfinite(overlap["p_value"]):
        about = (
            f"orange: known targets; {overlap['overlap']:.0f} of the {overlap['top']:.0f} strongest are, chance"
            f" {overlap['expected']:.1f}, p = {overlap['p_value']:.2g}"
        )
    shown = "largest changes" if change else "strongest edges"
    title(right, f"{len(edges)} {shown}", about)
    finish(right, True, show, save)
    return [left, right]
