"""The strongest edges of every cell of an AnnData: which gene reads from which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from scfast.analyses import CellEdges
from scfast.models.base import AttentionSource, Tokens
from scfast.observables import StrongestEdges
from scfast.run import survey
from scfast.tl._batches import Conditions, given, make_batches
from scfast.tl._inputs import check_options, commit, get_counts, get_rows, get_source

if TYPE_CHECKING:
    import torch
    from anndata import AnnData

HEADS = ("mean", "sum", "max", "min")


def strongest_edges(
    adata: AnnData,
    model: AttentionSource | str,
    n_edges: int = 100,
    *,
    layer: int = -1,
    heads: Literal["mean", "sum", "max", "min"] = "mean",
    key_added: str = "strongest_edges",
    device: str | torch.device | None = None,
    memory: str | int | None = None,
    counts_layer: str | None = None,
    progress: bool | None = None,
    backend: str = "auto",
    copy: bool = False,
) -> AnnData | None:
    """The largest entries of each cell's attention map between its genes, in one layer; no map is held.

    An edge goes from the gene that is read from (key j) to the gene that reads (query i), with weight A_ij of the
    fused map A.

    Parameters
    ----------
    adata
        Raw counts, cells x genes. ``adata.obs["n_counts"]`` is used where present, else row sums.
    model
        From :func:`scfast.models.load`, or ``"geneformer:FOLDER"``.
    n_edges
        Edges of a cell.
    layer
        Which layer, from 0; negative numbers count from the end.
    heads
        Fusion of its heads.
    key_added
        Name of the results; what is there under that name is replaced.
    device
        ``"cuda"``, ``"cuda:N"`` or ``"cpu"``. Default: where ``model`` is; one that is named by its folder runs on
        the GPU where there is one.
    memory
        What the run may use beyond what is loaded, such as ``"2GB"``; on a GPU, of its memory. Default: 2 GB, on
        a GPU all that is free there. A batch that does not fit after all is run in halves.
    counts_layer
        Layer that holds the counts. Default: ``adata.X``.
    progress
        Show a progress bar. Default: on a terminal.
    backend
        Of the attention ops.
    copy
        Return a copy with the results instead of writing them into ``adata``.

    Returns
    -------
    AnnData or None
        ``uns[key_added]["edges"]``: DataFrame, a row per cell and edge, cells in order, the strongest edge of each
        first: ``cell`` (row number in ``adata``, int64), ``source`` and ``target`` (categorical, names of the genes
        that are read from and that read) and ``weight`` (float32). Cells with fewer pairs of genes have fewer rows.
        ``uns[key_added]["params"]``: the arguments, the model, and the plan of the run.

    Raises
    ------
    ValueError, KeyError, TypeError
        For input that does not fit; the message names it and the remedy. ``adata`` is unchanged after any
        error.
    MemoryError
        When one cell does not fit by itself; the message says what it needs.

    Examples
    --------
    >>> import scfast
    >>> adata, model = scfast.datasets.toy()
    >>> scfast.tl.strongest_edges(adata, model, 5)
    >>> edges = adata.uns["strongest_edges"]["edges"]
    >>> len(edges), edges.columns.tolist()
    (300, ['cell', 'source', 'target', 'weight'])
    """
    if not isinstance(n_edges, int) or isinstance(n_edges, bool) or n_edges < 1:
        raise ValueError(f"n_edges={n_edges!r} must be a whole number, 1 or more")
    if heads not in HEADS:
        raise ValueError(f"heads={heads!r} is not a fusion of one map; use one of {', '.join(HEADS)}")
    check_options(key_added)
    how = Conditions(memory, backend, progress)
    counts = get_counts(adata, counts_layer)
    source = get_source(model, device)
    if not -source.n_layers <= layer < source.n_layers:
        raise ValueError(f"layer={layer} does not exist: {source.name} has layers 0 to {source.n_layers - 1}")
    found = survey(source, counts)
    rows = get_rows(found, source, adata.var)
    edges = CellEdges(n_edges)
    batches = make_batches(
        source, counts, found, rows, how,
        # the table beside the blocks it is made from
        results_bytes=2 * 4 * edges.n_columns * adata.n_obs,
        # n values and keys of every query: as many bytes as that many readouts and more
        readouts=n_edges,
    )  # fmt: skip

    def observe(tokens: Tokens) -> Sequence[StrongestEdges]:
        return [StrongestEdges(n_edges, layer=layer, heads=heads)]

    results = batches.run({"edges": edges}, observe, "strongest edges")
    uns = {
        "edges": _table(results["edges"], adata.var_names),
        "params": {
            "n_edges": n_edges,
            "layer": layer % source.n_layers,
            "heads": heads,
            **given(counts_layer=counts_layer),
            **batches.params(results.plan),
        },
    }
    target = adata.copy() if copy else adata
    commit(target, uns={key_added: uns})
    return target if copy else None


def _table(edges: np.ndarray, names: pd.Index) -> pd.DataFrame:
    """A row per edge, from rows [weights, sources, targets]."""
    weight, source, target = np.split(edges, 3, axis=1)
    cell, place = np.nonzero(np.isfinite(weight))
    return pd.DataFrame(
        {
            "cell": cell,
            "source": _names(source[cell, place], names),
            "target": _names(target[cell, place], names),
            "weight": weight[cell, place],
        }
    )


def _names(columns: np.ndarray, names: pd.Index) -> pd.Categorical:
    used, codes = np.unique(columns.astype(np.int64), return_inverse=True)
    return pd.Categorical.from_codes(codes, categories=names[used].astype(str))
