"""Rows of the rollout matrix: what chosen genes read from all genes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from scfast.models.base import AttentionSource, Tokens
from scfast.observables import Rollout
from scfast.run import survey
from scfast.tl._batches import Conditions, given
from scfast.tl._gene_pairs import PairScoring, row_weights, score_pairs
from scfast.tl._inputs import check_options, get_counts, get_groups, get_rows, get_source
from scfast.tl._readout import check_rollout, resolve_layers
from scfast.tl._several import get_genes

if TYPE_CHECKING:
    import torch
    from anndata import AnnData


def rollout_matrix(
    adata: AnnData,
    model: AttentionSource | str,
    genes: Sequence[str],
    *,
    sources: Sequence[str] | None = None,
    gene_symbols: str | None = None,
    groupby: str | None = None,
    layers: tuple[int, int] | Literal["prefix", "suffix"] | None = None,
    heads: Literal["mean", "max", "min"] = "mean",
    residual: float = 0.5,
    n_top: int = 50,
    key_added: str = "rollout_matrix",
    device: str | torch.device | None = None,
    memory: str | int | None = None,
    null: Literal["untrained"] | None = None,
    counts_layer: str | None = None,
    seed: int = 0,
    progress: bool | None = None,
    backend: str = "auto",
    copy: bool = False,
) -> AnnData | None:
    """Which genes other genes read from: rows of the rollout matrix (Abnar & Zuidema 2020), gene by gene.

    The rollout matrix R = A~_N ... A~_1 of a cell says how much each token, after the last layer, holds of each token
    of the input. Its rows at the tokens of the chosen genes, the targets, are computed from the last layer down,
    exactly and all together, and added up over the cells of a group; neither a map nor the matrix is ever held. A row
    sums to 1 over the tokens of its cell.

    Parameters
    ----------
    adata
        Raw counts, cells x genes. ``adata.obs["n_counts"]`` is used where present, else row sums.
    model
        From :func:`scfast.models.load`, or ``"geneformer:FOLDER"``.
    genes
        The targets: genes that read. Cells without any of them are not run. Where a gene has several tokens in a
        cell, their rows are averaged.
    sources
        Genes that are read from. Default: all that have a token in any cell. A list makes a small matrix of a
        large one.
    gene_symbols
        Column of ``adata.var`` in which ``genes`` and ``sources`` are looked up. Default: ``adata.var_names``.
    groupby
        Column of ``adata.obs``: a matrix per group. Default: one group, ``"all"``. Cells whose group is empty count
        in none.
    layers
        ``(first, last)``, counted from 0 (negative: from the end) and inclusive: a part of the model.
        ``"prefix"``: the targets after every layer rolled back to the input. ``"suffix"``: from the last layer
        back to every layer; scores of later layers belong to positions that have already taken up their
        context, not to input genes.
    heads
        Fusion of the heads of a layer.
    residual
        ``a`` of the step a A + (1 - a) I: the share of attention against the residual connection.
    n_top
        Sources of each target in the table.
    key_added
        Name of the results; what is there under that name is replaced.
    device
        ``"cuda"``, ``"cuda:N"`` or ``"cpu"``. Default: where ``model`` is; one that is named by its folder runs on
        the GPU where there is one.
    memory
        What the run may use beyond what is loaded, such as ``"2GB"``; on a GPU, of its memory. Default: 2 GB, on
        a GPU all that is free there. It holds one row of scores per target, layer (of ``"prefix"`` and ``"suffix"``)
        and token of a batch; targets that do not fit together are taken one block after another, the model run anew
        for each. Cells that do not fit as a whole are run in blocks of tokens.
    null
        ``"untrained"``: run the same architecture with fresh weights too, and put its means beside.
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
        ``varm[key_added]``: DataFrame genes x targets, float64: what each target reads from each gene, mean over the
        cells of all groups that have both; nan where none has (a slash in a name becomes a bar, because HDF5 takes it
        for a folder).

        ``uns[key_added]``:

        ``"mean"``
            float64 [groups, targets, sources]: the same per group; with ``"prefix"`` or ``"suffix"`` of the
            complete rollout.
        ``"cells"``
            int64 [groups, targets, sources]: the cells that have both.
        ``"null"``
            Like ``"mean"``, of the untrained model.
        ``"by_layer"``
            With ``"prefix"`` or ``"suffix"``: float64 [layers, groups, targets, sources].
        ``"target_names"``, ``"source_names"``, ``"group_names"``
            What the dimensions stand for.
        ``"table"``
            DataFrame, one row per group, target and source, the ``n_top`` largest means first, among the sources in at
            least a tenth of the target's cells, and without the target itself: ``group``, ``target``, ``source``,
            ``mean``, ``cells``, and what the ranking must beat: the source's ``rank`` (mean place in the
            encoding, from 1), ``expression`` (mean log1p of counts per ten thousand) and ``detection`` in the group,
            ``null``.
        ``"targets"``
            DataFrame, one row per group and target: ``cells`` that have it, ``self`` (what it reads from itself),
            ``mass_gene`` and ``mass_other`` (from all gene tokens, and from special, chromosome and pad tokens).
        ``"params"``
            The arguments, the model, the plan of the run, and ``genes_together``, the targets of a block.

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
    >>> scfast.tl.rollout_matrix(adata, model, ["LYZ", "CD3D"], groupby="cell_type")
    >>> adata.uns["rollout_matrix"]["table"].columns.tolist()
    ['group', 'target', 'source', 'mean', 'cells', 'rank', 'expression', 'detection']
    """
    check_rollout(heads, residual)
    check_options(key_added, null)
    if not isinstance(n_top, int) or isinstance(n_top, bool) or n_top < 1:
        raise ValueError(f"n_top={n_top!r} must be a whole number, 1 or more")
    how = Conditions(memory, backend, progress, seed)
    counts = get_counts(adata, counts_layer)
    groups = get_groups(adata, groupby)
    targets = _columns(adata, "genes", genes, gene_symbols)
    columns = None if sources is None else _columns(adata, "sources", sources, gene_symbols)
    source = get_source(model, device)
    first, last = resolve_layers(layers, source)
    found = survey(source, counts, gene=targets.tolist())
    rows = get_rows(found, source, adata.var)
    rows = rows[found.holds[rows]]
    if not len(rows):
        raise ValueError(
            f"no cell has a token of the genes {list(adata.var_names[targets[:3]])}, ...: they are not expressed,"
            f" not in {source.name}'s vocabulary, or cut off by its context"
        )

    def observe(block: np.ndarray) -> Callable[[Tokens], Sequence[Rollout]]:
        span = layers if isinstance(layers, str) else (first, last)
        return lambda tokens: [
            Rollout(row_weights(tokens, block, adata.n_vars), layers=span, residual=residual, heads=heads)
        ]

    scoring = PairScoring(
        source, counts, found, rows, observe, "rollout", targets, columns,
        steps=source.n_layers if isinstance(layers, str) else None,
        complete=0 if layers == "suffix" else -1,
        layers_kept=last + 1 - first,
    )  # fmt: skip
    params = {
        **given(groupby=groupby, counts_layer=counts_layer, gene_symbols=gene_symbols),
        "heads": heads,
        "residual": residual,
        "layers": layers if isinstance(layers, str) else np.array([first, last]),
    }
    return score_pairs(
        adata, scoring, groups, how, key_added=key_added, null=null, n_top=n_top, params=params, copy=copy
    )


def _columns(adata: AnnData, argument: str, genes: Sequence[str], gene_symbols: str | None) -> np.ndarray:
    """int64 [n]: columns of the genes that a user names."""
    columns = list(get_genes(adata, genes, gene_symbols).values())
    if not columns:
        raise ValueError(f"{argument}={genes!r} names no gene: give one or more")
    return np.array(columns, dtype=np.int64)
