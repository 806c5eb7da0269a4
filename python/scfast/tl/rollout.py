"""Attention rollout of every cell of an AnnData."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from scfast.models.base import AttentionSource, Tokens
from scfast.observables import Rollout
from scfast.run import survey
from scfast.tl._batches import Conditions, given
from scfast.tl._gene_scores import GeneScoring, Parts, score_genes
from scfast.tl._inputs import check_options, get_counts, get_groups, get_rows, get_source
from scfast.tl._readout import check_rollout, resolve_layers, resolve_readout

if TYPE_CHECKING:
    import torch
    from anndata import AnnData


def rollout(
    adata: AnnData,
    model: AttentionSource | str,
    *,
    readout: str | None = None,
    groupby: str | None = None,
    replicate_key: str | None = None,
    layers: tuple[int, int] | Literal["prefix", "suffix"] | None = None,
    heads: Literal["mean", "max", "min"] = "mean",
    residual: float = 0.5,
    key_added: str = "rollout",
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
    """Which genes a model's output reads from: attention rollout (Abnar & Zuidema 2020) of whole cells.

    The readout is rolled back through all layers, one weighted column sum of the attention map per layer; no
    map is ever held. The scores of a cell sum to 1 over its tokens.

    Parameters
    ----------
    adata
        Raw counts, cells x genes. ``adata.obs["n_counts"]`` is used where present, else row sums.
    model
        From :func:`scfast.models.load`, or ``"geneformer:FOLDER"``.
    readout
        What is rolled back: ``"cls"``, ``"mean"`` (over gene tokens), or ``"gene:NAME"`` with a name from
        ``adata.var_names`` (only cells that have that gene are run). Default: what the model's authors use.
    groupby
        Column of ``adata.obs``: statistics per group. Default: one group, ``"all"``. Cells whose group is
        empty get scores, but count in no group.
    replicate_key
        Column of ``adata.obs`` (donor, batch): standard errors are then between replicates, else between
        cells.
    layers
        ``(first, last)``, counted from 0 (negative: from the end) and inclusive: a part of the model.
        ``"prefix"``: the readout at every layer rolled back to the input. ``"suffix"``: from the last layer
        back to every layer; scores of later layers belong to positions that have already taken up their
        context, not to input genes.
    heads
        Fusion of the heads of a layer.
    residual
        ``a`` of the step a A + (1 - a) I: the share of attention against the residual connection.
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
        Keep the scores of every cell in ``adata.layers``.
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
        ``layers[key_added]``: float32 CSR, score of each gene in each cell, summed over the gene's tokens
        (with ``"prefix"`` or ``"suffix"``: of the complete rollout). Where a cell has several tokens of one gene,
        ``layers[key_added + "_tokens"]``: how many, which :func:`scfast.tl.prevalence` counts.

        ``varm[key_added]``: DataFrame genes x groups, mean score over all cells of the group, float64 (a
        slash in a group's name becomes a bar, because HDF5 takes it for a folder). ``varm[key_added +
        "_null"]``: the same from the untrained model.

        ``uns[key_added]``:

        ``"table"``
            DataFrame, one row per group and gene with a token in it, best first: ``gene``, ``group``,
            ``mean`` and ``se`` (over all cells), ``mean_detecting`` and ``se_detecting`` (over cells with a
            token of the gene), ``cells`` (how many those are), and what the ranking must beat: ``rank`` and
            ``rank_sd`` (mean and standard deviation of the place in the encoding, from 1), ``expression``
            (mean log1p of counts per ten thousand), ``detection`` (share of cells with a count),
            ``null`` and ``null_se``.
        ``"groups"``
            DataFrame, one row per group: ``cells``, ``replicates``, the mean score on each kind of token
            (``mass_gene``, ``mass_special``, ``mass_chromosome``, ``mass_pad``), genes per cell that the
            vocabulary lacks or the context cut off (``lost_vocabulary``, ``lost_truncation``), and Spearman
            correlations of the mean score with the baselines over the group's genes (``spearman_expression``,
            ...).
        ``"by_layer"``
            With ``"prefix"`` or ``"suffix"``: float64 [layers, genes, groups], mean over all cells.
        ``"params"``
            The arguments, the model, and the plan of the run.

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
    >>> scfast.tl.rollout(adata, model, groupby="cell_type", null="untrained")
    >>> table = adata.uns["rollout"]["table"]
    >>> table.groupby("group", observed=True).head(1)[["group", "cells", "expression", "null"]].shape
    (3, 4)
    >>> bool(abs(adata.uns["rollout"]["groups"]["mass_gene"] - 1).max() < 1e-6)  # scores of a cell sum to 1
    True
    """
    check_rollout(heads, residual)
    check_options(key_added, null)
    how = Conditions(memory, backend, progress, seed)
    counts = get_counts(adata, counts_layer)
    groups = get_groups(adata, groupby, replicate_key)
    source = get_source(model, device)
    first, last = resolve_layers(layers, source)
    read = resolve_readout(readout, source, adata.var_names)
    found = survey(source, counts, gene=read.gene)
    rows = read.keep(get_rows(found, source, adata.var), found)

    def observe(tokens: Tokens) -> Sequence[Rollout]:
        span = layers if isinstance(layers, str) else (first, last)
        return [Rollout(read.weights(tokens), layers=span, residual=residual, heads=heads)]

    scoring = GeneScoring(
        source, counts, found, rows, observe, "rollout",
        row=0 if layers == "suffix" else -1,
        parts=Parts("rollout", "by_layer", (source.n_layers,)) if isinstance(layers, str) else None,
        layers_kept=last + 1 - first, in_blocks=True,
    )  # fmt: skip
    params = {
        **given(groupby=groupby, replicate_key=replicate_key, counts_layer=counts_layer),
        "readout": read.name,
        "heads": heads,
        "residual": residual,
        "layers": layers if isinstance(layers, str) else np.array([first, last]),
    }
    return score_genes(
        adata, scoring, groups, how, key_added=key_added, null=null, store_cells=store_cells, params=params,
        copy=copy,
    )  # fmt: skip
