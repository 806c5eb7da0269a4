"""How alike the layers of a model are: cosines of the readout vector, blocks, and where it stops changing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from scfast.analyses import LayerCosines
from scfast.analyses.layer_cosines import LayerCosinesResult
from scfast.models.base import AttentionSource, Tokens
from scfast.observables import HiddenStates
from scfast.run import survey
from scfast.tl._batches import Conditions, given, make_batches
from scfast.tl._blocks import find_blocks
from scfast.tl._inputs import Groups, check_options, commit, get_counts, get_groups, get_rows, get_source
from scfast.tl._tables import categorical

if TYPE_CHECKING:
    import torch
    from anndata import AnnData


def similarity(
    adata: AnnData,
    model: AttentionSource | str,
    *,
    readout: Literal["cls", "mean"] | None = None,
    groupby: str | None = None,
    replicate_key: str | None = None,
    max_blocks: int | None = None,
    key_added: str = "similarity",
    device: str | torch.device | None = None,
    memory: str | int | None = None,
    counts_layer: str | None = None,
    progress: bool | None = None,
    backend: str = "auto",
    copy: bool = False,
) -> AnnData | None:
    """How alike the layers of a model are: the readout vector of each cell, layer against layer.

    Cosines between all layers are averaged over the cells of a group, in one pass; layers form contiguous blocks of the
    clearest silhouette. A small change from one layer to the next says that the layer adds little to this vector.

    Parameters
    ----------
    adata
        Raw counts, cells x genes. ``adata.obs["n_counts"]`` is used where present, else row sums.
    model
        From :func:`scfast.models.load`, or ``"geneformer:FOLDER"``.
    readout
        ``"cls"`` or ``"mean"`` (over gene tokens). Default: what the model's authors use.
    groupby
        Column of ``adata.obs``: a map per group. Default: one group, ``"all"``.
    replicate_key
        Column of ``adata.obs`` (donor, batch): standard errors are then between replicates, else between cells.
    max_blocks
        Most blocks of layers. Default: one less than there are states.
    key_added
        Name of the results; what is there under that name is replaced.
    device
        ``"cuda"``, ``"cuda:N"`` or ``"cpu"``. Default: where ``model`` is; one that is named by its folder runs on
        the GPU where there is one.
    memory
        What the run may use beyond what is loaded, such as ``"2GB"``; on a GPU, of its memory. Default: 2 GB, on
        a GPU all that is free there. Cells that do not fit as a whole are run in blocks of tokens, which takes about
        half the memory; a batch that does not fit after all is run in halves.
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
        ``uns[key_added]``, with states 0 (the output of the embeddings) to N:

        ``"map"``
            float64 [groups, N + 1, N + 1]: mean cosine of the readout vector between layers; ``"map_se"`` its standard
            error. A vector of zeros is like no other: its cosine is 0.
        ``"table"``
            DataFrame, one row per group and layer: ``block`` (from 0), ``change`` (1 - cosine to the layer before; nan
            for the embeddings), ``to_last`` (cosine to the last layer) and ``zeros`` (cells whose vector is 0).
        ``"groups"``
            DataFrame, one row per group: ``cells``, ``blocks``, and the ``silhouette`` of the partition (1: clear
            blocks, 0: none).
        ``"params"``
            The arguments, the model, and the plan of the run.

    Raises
    ------
    ValueError, KeyError, TypeError
        For input that does not fit, states that are nan among it; the message names it and the remedy. ``adata`` is
        unchanged after any error.
    MemoryError
        When one cell does not fit by itself; the message says what it needs.

    Examples
    --------
    >>> import scfast
    >>> scfast.tl.similarity(adata, "geneformer:models/v2", groupby="cell_type")  # doctest: +SKIP
    >>> adata.uns["similarity"]["table"].query("change < 0.01")  # doctest: +SKIP
    """
    check_options(key_added)
    if readout not in (None, "cls", "mean"):
        raise ValueError(f"readout={readout!r} is unknown; use 'cls' or 'mean'")
    if max_blocks is not None and (not isinstance(max_blocks, int) or max_blocks < 1):
        raise ValueError(f"max_blocks={max_blocks!r} must be a whole number, 1 or more")
    how = Conditions(memory, backend, progress)
    counts = get_counts(adata, counts_layer)
    groups = get_groups(adata, groupby, replicate_key)
    source = get_source(model, device)
    pool = source.default_readout if readout is None else readout
    if pool == "cls" and source.cls_position is None:
        raise ValueError(f"readout='cls': {source.name} has no cls token; use readout='mean'")
    found = survey(source, counts)
    rows = get_rows(found, source, adata.var)

    n_states = source.n_layers + 1
    cosines = LayerCosines(groups.strata, n_states)
    # float32 from the model, float64 twice on the host, of cells of average length
    observed = 20 * n_states * source.hidden_size // max(1, int(np.mean(found.lengths[rows])))
    batches = make_batches(
        source,
        counts,
        found,
        rows,
        how,
        results_bytes=cosines.nbytes,
        hidden_kept=1,
        observed=observed,
        in_blocks=True,
    )

    def observe(tokens: Tokens) -> Sequence[HiddenStates]:
        return [HiddenStates(pool=pool)]

    results = batches.run({"cosines": cosines}, observe, "similarity")
    uns: dict[str, Any] = {
        **_tables(groups, results["cosines"], max_blocks),
        "map": results["cosines"].mean,
        "map_se": results["cosines"].se,
        "params": {
            "readout": pool,
            **given(
                groupby=groupby, replicate_key=replicate_key, counts_layer=counts_layer, max_blocks=max_blocks
            ),
            **batches.params(results.plan),
        },
    }
    target = adata.copy() if copy else adata
    commit(target, uns={key_added: uns})
    return target if copy else None


def _tables(groups: Groups, found: LayerCosinesResult, max_blocks: int | None) -> dict[str, pd.DataFrame]:
    """A row per group and layer, and a row per group."""
    parts, abouts = [], []
    for number, name in enumerate(groups.names):
        alike, cells = found.mean[number], int(found.cells[number])
        n = len(alike)
        of_layer, clear = np.full(n, -1, dtype=np.int64), np.nan
        if cells:
            of_layer, clear = find_blocks(alike, max_blocks)
        parts.append(
            pd.DataFrame(
                {
                    "group": name,
                    "layer": np.arange(n),
                    "block": of_layer,
                    "change": np.concatenate([[np.nan], 1.0 - np.diag(alike, 1)]),
                    "to_last": alike[:, -1],
                    "zeros": found.zeros[number],
                }
            )
        )
        abouts.append((cells, int(of_layer.max()) + 1, clear))
    return {
        "table": categorical(pd.concat(parts, ignore_index=True), "group"),
        "groups": pd.DataFrame(
            abouts, columns=["cells", "blocks", "silhouette"], index=pd.Index(groups.names, name="group")
        ),
    }
