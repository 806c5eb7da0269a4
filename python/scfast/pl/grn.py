"""The strongest edges of a network as a graph."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from scfast.pl._figure import INK, figure_of, finish, make_panels, symbols, title

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

#: Edges that grow, and that shrink; of a network without signs all have the first colour.
MORE, LESS = "#B3261E", "#2F6DA8"
SIDE = 5.6
#: Points of the circle of a gene, and of the widest and the thinnest edge.
CIRCLE, WIDEST, THINNEST = 9.0, 3.2, 0.5
#: Springs are as long as the steps between two genes, up to so many: a chain of hubs does not crowd each of them.
REACH = 3


def grn(
    adata: AnnData,
    *,
    key: str = "grn",
    network: str | None = None,
    n_edges: int = 40,
    gene_symbols: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes:
    """The strongest edges of a network, as wide as they are strong: arrows from the gene that is read.

    Of a change, edges that grow and edges that shrink have a colour each. Genes that only read are drawn light.

    Parameters
    ----------
    adata
        After :func:`scfast.tl.grn`, or with any matrix in ``varp``.
    key
        Name of the networks.
    network
        ``"all"``, a group, or ``"change"``. Default: the change where two groups were compared, else ``"all"``.
    n_edges
        How many, by size.
    gene_symbols
        Column of ``adata.var`` with names to show instead of the index.
    ax
        Draw into these axes.
    show
        Show the figure. Default: where ``ax`` and ``save`` are not given and the backend is interactive.
    save
        File to write, such as ``"network.png"``.

    Returns
    -------
    matplotlib.axes.Axes
        The axes.

    Raises
    ------
    KeyError
        When there is no such network, or no such column.
    ValueError
        When it has no edge, or ``n_edges`` is not positive.

    Examples
    --------
    >>> import scfast
    >>> adata, model = scfast.datasets.toy()
    >>> scfast.tl.grn(adata, model, groupby="condition", compare=("ctrl", "stim"))
    >>> axes = scfast.pl.grn(adata, network="change", n_edges=12)
    """
    import networkx as nx
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.patheffects import withStroke

    if n_edges < 1:
        raise ValueError(f"n_edges={n_edges} must be 1 or more")
    name, place = _place(adata, key, network)
    edges = _strongest(sparse.coo_matrix(adata.varp[place]), n_edges)
    if not len(edges):
        raise ValueError(f"the network {name!r} has no edge")
    names = symbols(adata, gene_symbols)
    index = adata.var_names.astype(str)
    graph = nx.DiGraph()
    graph.add_weighted_edges_from(edges.itertuples(index=False, name=None))
    layout = _layout(graph)
    panel = make_panels(1, SIDE, SIDE)[0] if ax is None else ax
    largest = float(edges["value"].abs().max())
    for edge in edges.iloc[::-1].itertuples():
        share = abs(edge.value) / largest
        both = graph.has_edge(edge.target, edge.source)
        panel.add_patch(
            FancyArrowPatch(
                layout[edge.source], layout[edge.target], arrowstyle="-|>", mutation_scale=7 + 4 * share,
                linewidth=THINNEST + (WIDEST - THINNEST) * share, color=MORE if edge.value > 0 else LESS,
                alpha=0.35 + 0.45 * share, shrinkA=CIRCLE / 2, shrinkB=CIRCLE / 2 + 1, zorder=2,
                connectionstyle=f"arc3,rad={0.18 if both else 0.06}",
            )
        )  # fmt: skip
    reads_only = {gene: graph.out_degree(gene) == 0 for gene in graph}
    for light, colour in ((True, "#C9D0D6"), (False, INK)):
        kept = [gene for gene in graph if reads_only[gene] == light]
        if kept:
            at = np.array([layout[gene] for gene in kept])
            panel.scatter(at[:, 0], at[:, 1], s=CIRCLE**2, color=colour, zorder=3, linewidths=0)
    for gene, (x, y) in layout.items():
        label = names.get(str(index[gene]), str(index[gene]))
        text = panel.annotate(
            label, (x, y), (0, 6), textcoords="offset points", ha="center", va="bottom", fontsize=7.5, color=INK,
            fontweight="normal" if reads_only[gene] else "bold", zorder=4,
        )  # fmt: skip
        text.set_path_effects([withStroke(linewidth=2, foreground="white")])
    panel.margins(0.12)
    panel.set_axis_off()
    change = name == "change"
    about = f"{len(edges)} strongest edges, from the gene that is read; the widest is {largest:.3g}"
    if change:
        compared = [str(x) for x in adata.uns[key]["params"]["compare"]]
        about += f"\nred: more in {compared[1]} than in {compared[0]}, blue: less"
        for colour, sign in ((MORE, "grows"), (LESS, "shrinks")):
            panel.plot([], [], color=colour, label=sign)
    title(panel, "change" if change else "all cells" if name == "all" else name, about)
    if ax is None:
        figure_of(panel).set_size_inches(SIDE, SIDE + 0.35)
    finish(panel, ax is None, show, save)
    return panel


def _place(adata: AnnData, key: str, network: str | None) -> tuple[str, str]:
    """Name of a network, and where it is in ``varp``."""
    if key not in adata.varp:
        raise KeyError(f"adata.varp has no network {key!r}, but {list(adata.varp)}: run scfast.tl.grn first")
    known = {"all": key}
    about = adata.uns.get(key, {})
    if "networks" in about:
        known |= dict(
            zip(about["networks"].index.astype(str), about["networks"]["varp"].astype(str), strict=True)
        )
    if "changes" in about:
        known["change"] = f"{key}_change"
    name = network or ("change" if "change" in known else "all")
    if name not in known:
        raise KeyError(f"network={network!r} is not in the results, which have {list(known)}")
    return name, known[name]


def _strongest(matrix: sparse.coo_matrix, n: int) -> pd.DataFrame:
    """``source``, ``target``, ``value``, the largest size first."""
    best = np.argsort(-np.abs(matrix.data), kind="stable")[:n]
    best = best[matrix.data[best] != 0]
    columns = {"source": matrix.row[best], "target": matrix.col[best], "value": matrix.data[best]}
    return pd.DataFrame(columns)


def _layout(graph: object) -> dict[int, tuple[float, float]]:
    """Places of genes: every connected part by springs (Kamada & Kawai 1989), parts side by side in a square frame."""
    import networkx as nx

    parts = sorted(nx.weakly_connected_components(graph), key=lambda part: (-len(part), min(part)))
    layout: dict[int, tuple[float, float]] = {}
    across = max(1, round(math.sqrt(sum(map(len, parts)))))
    x = y = height = 0.0
    for part in parts:
        size = math.sqrt(len(part))
        if x > 0 and x + size > across:
            x, y, height = 0.0, y - height - 0.6, 0.0
        sub = nx.Graph((a, b) for a, b in graph.subgraph(part).edges)  # type: ignore[attr-defined]
        distance = {
            one: {other: min(d, REACH) for other, d in row.items()}
            for one, row in nx.all_pairs_shortest_path_length(sub)
        }
        springs = nx.kamada_kawai_layout(sub, dist=distance, scale=size / 2)
        for gene, (px, py) in springs.items():
            layout[gene] = (x + size / 2 + px, y - size / 2 + py)
        x, height = x + size + 0.6, max(height, size)
    return layout
