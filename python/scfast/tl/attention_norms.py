"""Attention weighted by what it carries: norm-based analysis of every cell of an AnnData."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from scfast.analyses import CellMeans
from scfast.analyses.cell_means import CellMeansResult
from scfast.models.base import AttentionSource, Tokens
from scfast.observables import AttentionNorms, GlobEnc, HeadNorms, MixingRatio, Observable
from scfast.observables.vectors import KINDS
from scfast.run import survey
from scfast.tl._batches import Conditions, given
from scfast.tl._gene_scores import GeneScoring, Parts, Tabled, score_genes
from scfast.tl._inputs import check_options, get_counts, get_groups, get_rows, get_source
from scfast.tl._readout import resolve_readout
from scfast.tl._tables import numbers_table

if TYPE_CHECKING:
    import torch
    from anndata import AnnData

#: Vectors as wide as the model that a token takes while a layer is measured: its values, states and output, and the
#: terms of the mixing ratio. Measured with 18 heads of 64 in 18 layers: 307 KB per token, of which q and k take 166 KB.
WIDE_COPIES = 16


def attention_norms(
    adata: AnnData,
    model: AttentionSource | str,
    *,
    score: Literal["globenc", "attn-n", "attnres-n", "attnresln-n", "enc-n"] = "globenc",
    convention: Literal["globenc", "row-normalised"] = "row-normalised",
    readout: str | None = None,
    mixing: Sequence[str] = ("attn-n", "attnres-n", "attnresln-n"),
    heads: Sequence[str] = ("weighted", "prob"),
    groupby: str | None = None,
    replicate_key: str | None = None,
    by: Literal["layer"] | None = None,
    key_added: str = "attention_norms",
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
    """What attention carries, rather than how it is spread: norm-based analysis of whole cells.

    A query may look at a token whose vector is short, and take in little. F_ij = sum_h P^h_ij f_h(x_j) is the vector
    that token i reads from token j. Its norm |F_ij| (AttnN; Kobayashi et al. 2020), that with the residual (AttnRes-N)
    and with the layer norm (AttnResLn-N; Kobayashi et al. 2021), and with the second layer norm too, rolled out over
    the layers (GlobEnc; Modarressi et al. 2022), are computed through inner products of f_h, H x H numbers per token:
    neither a map nor any F_ij is ever held.

    Parameters
    ----------
    adata
        Raw counts, cells x genes. ``adata.obs["n_counts"]`` is used where present, else row sums.
    model
        From :func:`scfast.models.load`, or ``"geneformer:FOLDER"``.
    score
        What genes are scored by. ``"globenc"``: rollout over the norms toward the readout. Or the norms that queries
        take in from the gene, summed over queries and layers: ``"attn-n"``, ``"attnres-n"``, ``"attnresln-n"``,
        ``"enc-n"``; these have no readout.
    convention
        Of GlobEnc: ``"row-normalised"``, each row of a layer's norms divided by its sum: the scores of a cell sum to 1
        over its tokens. ``"globenc"``: norms as they are, as the authors' code multiplies them.
    readout
        Of GlobEnc: ``"cls"``, ``"mean"`` (over gene tokens), or ``"gene:NAME"`` with a name from ``adata.var_names``
        (only cells that have that gene are run). Default: what the model's authors use.
    mixing
        Measures whose mixing ratio is taken; empty for none.
    heads
        Numbers per layer and head, empty for none: ``"weighted"``, sum_ij P^h_ij |f_h(x_j)| / n; ``"prob"``, |P^h|_F;
        ``"mixed"``, |P^h x|_F, which costs hidden size / head width times an attention.
    groupby
        Column of ``adata.obs``: statistics per group. Default: one group, ``"all"``. Cells whose group is
        empty get scores, but count in no group.
    replicate_key
        Column of ``adata.obs`` (donor, batch): standard errors are then between replicates, else between
        cells.
    by
        ``"layer"``: with the norms as the score, also what each layer gives.
    key_added
        Name of the results; what is there under that name is replaced.
    device
        ``"cuda"``, ``"cuda:N"`` or ``"cpu"``. Default: where ``model`` is; one that is named by its folder runs on
        the GPU where there is one.
    memory
        What the run may use beyond what is loaded, such as ``"2GB"``; on a GPU, of its memory. Default: 2 GB, on
        a GPU all that is free there. A batch that does not fit after all is run in halves.
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
        ``layers[key_added]``, ``varm[key_added]``, ``varm[key_added + "_null"]``, ``uns[key_added]["table"]``,
        ``["groups"]`` and ``["params"]``: as :func:`scfast.tl.rollout` writes them, with ``score`` as the score.

        ``uns[key_added]["heads"]``: DataFrame, one row per group, layer and head; for each of ``heads`` its mean over
        cells and standard error (``weighted``, ``weighted_se``, ...).

        ``uns[key_added]["layers"]``: DataFrame, one row per group and layer; for each of ``mixing`` the mixing ratio
        (``mixing_attn-n``, ``mixing_attn-n_se``, ...), as a mean over tokens and then over cells.

        ``uns[key_added]["norms"]``: with the norms as the score, DataFrame, one row per group and layer: ``norm``, what
        a query takes in altogether, sum_ij |F_ij| / n as a mean over cells, and ``norm_se``.

        ``uns[key_added]["by_layer"]`` (``by="layer"``): float64 [layers, genes, groups], mean over all cells.

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
    >>> scfast.tl.attention_norms(adata, model, groupby="cell_type")
    >>> sorted(adata.uns["attention_norms"])
    ['groups', 'heads', 'layers', 'params', 'table']
    """
    check_options(key_added, null)
    rolled = score == "globenc"
    if not rolled and score not in KINDS:
        raise ValueError(f"score={score!r} is unknown; use 'globenc', {', '.join(map(repr, KINDS))}")
    if not rolled and readout is not None:
        raise ValueError(
            f"readout={readout!r} belongs to score='globenc': {score} is summed over all queries"
        )
    if by not in (None, "layer") or (by and rolled):
        raise ValueError(f"by={by!r}: use 'layer' with one of the norms as the score, or None")
    measures: list[Observable] = []
    if heads:
        measures.append(HeadNorms(heads))
    if mixing:
        measures.append(MixingRatio(mixing))
    how = Conditions(memory, backend, progress, seed)
    counts = get_counts(adata, counts_layer)
    groups = get_groups(adata, groupby, replicate_key)
    source = get_source(model, device)
    read = resolve_readout(readout, source, adata.var_names) if rolled else None
    found = survey(source, counts, gene=None if read is None else read.gene)
    rows = get_rows(found, source, adata.var)
    n_layers, n_heads = source.n_layers, source.n_heads

    def observe(tokens: Tokens) -> Sequence[Observable]:
        if read is None:
            return [AttentionNorms([score], total=True), *measures]
        return [GlobEnc(read.weights(tokens), convention=convention), *measures]

    def table(columns: Sequence[str], **levels: int) -> Any:
        return lambda result: _present(result, groups.names, levels, columns)

    tables = {}
    if heads:
        of_heads = CellMeans(groups.strata, n_layers * n_heads * len(heads), "head_norms")
        tables["heads"] = Tabled(of_heads, table(heads, layer=n_layers, head=n_heads))
    if mixing:
        ratios = CellMeans(groups.strata, n_layers * len(mixing), "mixing_ratio", per_token=1)
        tables["layers"] = Tabled(ratios, table([f"mixing_{kind}" for kind in mixing], layer=n_layers))
    if not rolled:
        norms = CellMeans(groups.strata, n_layers, "attention_norms", per_token=1)
        tables["norms"] = Tabled(norms, table(["norm"], layer=n_layers))
    gram = 4 * n_heads * (n_heads + 1)
    scoring = GeneScoring(
        source, counts, found, rows if read is None else read.keep(rows, found), observe,
        "globenc" if rolled else "attention_norms",
        parts=Parts("attention_norms", "by_layer", (n_layers,)) if by else None,
        layers_kept=n_layers if rolled else 1,
        observed=gram * (n_layers if rolled else 1) + 4 * WIDE_COPIES * source.hidden_size,
        tables=tables,
    )  # fmt: skip
    params = {
        **given(groupby=groupby, replicate_key=replicate_key, counts_layer=counts_layer),
        **({} if read is None else {"readout": read.name, "convention": convention}),
        "score": score,
        "mixing": np.array(list(mixing), dtype=str),
        "heads": np.array(list(heads), dtype=str),
    }
    return score_genes(
        adata, scoring, groups, how, key_added=key_added, null=null, store_cells=store_cells, params=params,
        copy=copy,
    )  # fmt: skip


def _present(
    result: CellMeansResult, groups: list[str], levels: dict[str, int], columns: Sequence[str]
) -> pd.DataFrame:
    return numbers_table(groups, levels, columns, result.mean, result.se)
