"""Attention that each gene receives, in every cell of an AnnData."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from scfast.models.base import AttentionSource, Tokens
from scfast.observables import Received
from scfast.run import survey
from scfast.tl._batches import Conditions, given
from scfast.tl._gene_scores import GeneScoring, Parts, score_genes
from scfast.tl._inputs import check_options, get_counts, get_groups, get_rows, get_source

if TYPE_CHECKING:
    import torch
    from anndata import AnnData


def received(
    adata: AnnData,
    model: AttentionSource | str,
    *,
    groupby: str | None = None,
    replicate_key: str | None = None,
    by: Literal["layer", "head"] | None = None,
    key_added: str = "received",
    device: str | torch.device | None = None,
    memory: str | int | None = None,
    null: Literal["untrained"] | None = None,
    store_cells: bool = True,
    counts_layer: str | None = None,
    seed: int = 0,
    progress: bool | None = None,
    backend: str = "auto",
    copy: bool = False,
) -> AnnData | None:
    """Which genes a model attends to: attention received (Falkenstein 2024), of whole cells.

    received_j is the sum of P_ij over queries i, heads and layers: column sums of the attention maps, taken while
    the model runs, so that no map is ever held. Over the tokens of a cell they sum to layers x heads x n: what a
    gene receives may grow with the number n of tokens that can attend to it, and the average token of any cell receives
    layers x heads.

    Parameters
    ----------
    adata
        Raw counts, cells x genes. ``adata.obs["n_counts"]`` is used where present, else row sums.
    model
        From :func:`scfast.models.load`, or ``"geneformer:FOLDER"``.
    groupby
        Column of ``adata.obs``: statistics per group. Default: one group, ``"all"``. Cells whose group is
        empty get scores, but count in no group.
    replicate_key
        Column of ``adata.obs`` (donor, batch): standard errors are then between replicates, else between
        cells.
    by
        ``"layer"`` or ``"head"``: also what each layer, or each head of each layer, gives.
    key_added
        Name of the results; what is there under that name is replaced.
    device
        ``"cuda"``, ``"cuda:N"`` or ``"cpu"``. Default: where ``model`` is; one that is named by its folder runs on
        the GPU where there is one.
    memory
        What the run may use beyond what is loaded, such as ``"2GB"``; on a GPU, of its memory. Default: 2 GB, on
        a GPU all that is free there. Cells that do not fit as a whole are run in blocks of tokens, which takes about
        half the memory; a batch that does not fit after all is run in halves, a cell in smaller blocks.
    null
        ``"untrained"``: run the same architecture with fresh weights too, and put its scores beside.
    store_cells
        Keep what each gene receives in every cell in ``adata.layers``.
    counts_layer
        Layer that holds the counts. Default: ``adata.X``.
    seed
        Of the untrained model.
    progress
        Show a progress bar. Default: on a terminal.
    backend
        Of the attention ops.
    copy
        Return a copy with the results instead of writing them into ``adata``.

    Returns
    -------
    AnnData or None
        ``layers[key_added]``: float32 CSR, attention received by each gene in each cell, summed over the gene's
        tokens.

        ``varm[key_added]``, ``varm[key_added + "_null"]``, ``uns[key_added]["table"]``, ``["groups"]`` and
        ``["params"]``: as :func:`scfast.tl.rollout` writes them, with attention received as the score.

        ``uns[key_added]["by_layer"]`` (``by="layer"``): float64 [layers, genes, groups], mean over all cells;
        ``uns[key_added]["by_head"]`` (``by="head"``): float64 [layers, heads, genes, groups].

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
    >>> scfast.tl.received(adata, model, groupby="cell_type", by="layer")
    >>> adata.uns["received"]["by_layer"].shape
    (2, 40, 3)
    >>> adata.uns["received"]["table"].columns.tolist()[:4]
    ['gene', 'group', 'mean', 'se']
    """
    if by not in (None, "layer", "head"):
        raise ValueError(f"by={by!r} is unknown; use 'layer', 'head' or None")
    check_options(key_added, null)
    how = Conditions(memory, backend, progress, seed)
    counts = get_counts(adata, counts_layer)
    groups = get_groups(adata, groupby, replicate_key)
    source = get_source(model, device)
    found = survey(source, counts)
    rows = get_rows(found, source, adata.var)
    shape = (source.n_layers,) if by == "layer" else (source.n_layers, source.n_heads)

    def observe(tokens: Tokens) -> Sequence[Received]:
        each = Received(per_layer=True, heads="sum" if by == "layer" else "none", name="each")
        return [Received(), *([each] if by else [])]

    parts = Parts("each", f"by_{by}", shape) if by else None
    scoring = GeneScoring(source, counts, found, rows, observe, "received", parts=parts, in_blocks=True)
    params = given(groupby=groupby, replicate_key=replicate_key, counts_layer=counts_layer)
    return score_genes(
        adata, scoring, groups, how, key_added=key_added, null=null, store_cells=store_cells, params=params,
        copy=copy,
    )  # fmt: skip
