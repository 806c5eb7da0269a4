"""Gene networks from attention: which gene reads from which, exactly, in groups of cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from scfast.models.base import AttentionSource
from scfast.run import granted_memory, survey
from scfast.tl._batches import Conditions, given
from scfast.tl._grn_choice import (
    blocks_of_cells,
    choose_columns,
    layer_weights,
    places_of,
    shared_replicates,
)
from scfast.tl._grn_groups import GroupNetworks
from scfast.tl._grn_results import BYTES_PER_EDGE, strength_table
from scfast.tl._grn_run import GrnRun
from scfast.tl._inputs import check_options, commit, get_groups, get_raw_counts, get_rows, get_source
from scfast.tl._model_verdict import LOG, model_verdict
from scfast.tl._networks import POOLED

if TYPE_CHECKING:
    import torch
    from anndata import AnnData

CONVENTIONS = ("mean", "qk-mean", "rank")


def grn(
    adata: AnnData,
    model: AttentionSource | str,
    *,
    groupby: str | None = None,
    compare: tuple[str, str] | None = None,
    genes: Sequence[str] | None = None,
    sources: Sequence[str] | None = None,
    gene_symbols: str | None = None,
    layers: Sequence[int] | None = None,
    heads: Sequence[int] | None = None,
    weights: np.ndarray | None = None,
    convention: Literal["mean", "qk-mean", "rank"] = "mean",
    min_cells: int = 10,
    top: int | None = None,
    n_changes: int = 1000,
    replicate_key: str | None = None,
    n_blocks: int = 10,
    keep_blocks: bool = False,
    training: Mapping[str, Any] | str | Path | None = None,
    seed: int = 0,
    key_added: str = "grn",
    device: str | torch.device | None = None,
    memory: str | int | None = None,
    counts_layer: str | None = None,
    progress: bool | None = None,
    backend: str = "auto",
    copy: bool = False,
) -> AnnData | None:
    """Mean attention between genes, gene x gene, of every group of cells; no map is held.

    The weight of the edge from gene j, which is read, to gene i, which reads, is the sum of A_ij over the cells,
    divided by the cells that hold both; A is the mean over layers and heads. Exact: every cell, layer and head counts.
    Sources are run in blocks whose matrices take half of ``memory``; each block is a pass of the model. Whether a
    network is worth anything is for :func:`scfast.tl.grn_score` to say.

    Parameters
    ----------
    adata
        Raw counts, cells x genes. ``adata.obs["n_counts"]`` is used where present, else row sums.
    model
        From :func:`scfast.models.load`, or ``"bioformers:FOLDER"``.
    groupby
        Column of ``adata.obs``: a network of each group, beside that of all their cells.
    compare
        Two of these groups: the second less the first, edge by edge.
    genes
        Those of the network, as far as ``min_cells`` cells have a token of them. Default: all such. A warning names
        those that no gene is called.
    sources
        Genes that are read from, such as regulators; they belong to the network. Default: all of ``genes``. A warning
        names those that are not there, or in too few cells.
    gene_symbols
        Column of ``adata.var`` that these names are looked up in. Default: the index.
    layers, heads
        Which, by number. Default: all.
    weights
        [layers, heads] instead: their weights, which are divided by their sum.
    convention
        ``"mean"``; ``"qk-mean"``: one softmax of each gene's mean query and key, as in scPRINT; ``"rank"``: raw scores
        replaced by their rank among a query's keys and then among a key's queries, as in scGPT's tutorial.
    min_cells
        Cells that must hold both genes of an edge.
    top
        Keep so many edges of every source, the strongest. Default: all.
    n_changes
        Edges in the table of changes.
    replicate_key
        Column of ``adata.obs`` (donor, batch): errors are then between replicates, two or more in every group. What
        groups share with a replicate counts in the errors of all cells' network and of the change.
    n_blocks
        Random blocks of cells of each group that errors are between otherwise.
    keep_blocks
        Keep sums and numbers of cells of every block, 8 bytes a source, gene and block, so that
        :func:`scfast.tl.grn_score` gives intervals over cells. Name ``sources`` then.
    training
        The training log of the model, or its folder, from which the networks are labelled. Default: the folder of
        ``model``, where it is named by its folder and holds a log.
    seed
        Of the blocks.
    key_added
        Name of the results; what is there under that name is replaced.
    device, memory, counts_layer, progress, backend, copy
        As of :func:`scfast.tl.rollout`.

    Returns
    -------
    AnnData or None
        ``varp[key_added]``
            float32 CSR [source, target], of all cells; ``varp[key_added + "_GROUP"]`` of a group,
            ``varp[key_added + "_change"]`` of the comparison; each with ``_se`` behind it its jackknife standard
            errors, nan where a single block holds the edge. Genes have no edge to themselves.
        ``obs[key_added + "_block"]``
            int64: the block of every cell, -1 for those that were not run.
        ``uns[key_added]``
            ``"networks"`` (DataFrame: name, key in ``varp``, cells, edges, blocks), ``"genes"`` and ``"sources"``
            (names), ``"strength"`` (DataFrame: mean weight of the edges from and to every gene), ``"changes"``
            (DataFrame, the largest first: ``before``, ``after``, ``change`` with standard error, 95 % interval, p and
            q), ``"blocks"`` if kept, and ``"params"``, with ``model_verdict``, what the model's training says of it.

    Raises
    ------
    ValueError, KeyError, TypeError
        For input that does not fit, values that are no counts among it; the message names it and the remedy. ``adata``
        is unchanged after any error.
    MemoryError
        When one cell does not fit by itself; the message says what it needs.

    Examples
    --------
    >>> import scfast
    >>> adata, model = scfast.datasets.toy()
    >>> scfast.tl.grn(adata, model, groupby="condition", compare=("ctrl", "stim"))
    >>> adata.varp["grn"].shape
    (40, 40)
    >>> adata.uns["grn"]["changes"].columns.tolist()
    ['source', 'target', 'before', 'after', 'change', 'se', 'low', 'high', 'p_value', 'q_value']
    """
    check_options(key_added)
    _check(convention, min_cells, top, n_blocks, n_changes, keep_blocks)
    how = Conditions(memory, backend, progress, seed)
    counts = get_raw_counts(adata, counts_layer)
    groups = get_groups(adata, groupby)
    if compare is not None and (len(set(compare)) != 2 or any(name not in groups.names for name in compare)):
        raise ValueError(f"compare={compare!r}: name two of the groups {groups.names} of groupby={groupby!r}")
    places = places_of(key_added, groups, groupby, compare)
    replicates = None
    if replicate_key is not None:
        get_groups(adata, groupby, replicate_key)
        replicates = adata.obs[replicate_key].astype("category").cat.codes.to_numpy().astype(np.int64)
        n_blocks = int(replicates.max()) + 1
    source = get_source(model, device)
    verdict = _verdict(model, training)
    weighed = layer_weights(source, layers, heads, weights)
    found = survey(source, counts)
    rows = get_rows(found, source, adata.var)
    columns, read, seen = choose_columns(
        adata, source, counts, found, genes, sources, gene_symbols, min_cells
    )
    group, block = blocks_of_cells(groups, rows, replicates, n_blocks, seed, groupby)
    shared = int(block.max()) + 1 if replicates is not None and shared_replicates(group, block) else 0
    networks = 1 + 2 * (compare is not None)  # whose replicates are held, where groups share them
    run = GrnRun(
        source, counts, found, how, columns, read, seen, weighed, convention == "rank", 4 if compare else 2,
        shared * networks,
    )  # fmt: skip
    _check_result(run, how, len(places), len(groups.names), top, n_blocks if keep_blocks else 0)
    made = GroupNetworks(run, groups.names, groupby is not None, compare, min_cells, top, n_changes, shared)
    if convention == "qk-mean":
        made.run_means(group, block)
    else:
        made.run(group, block, n_blocks if keep_blocks else 0)

    names = adata.var_names.astype(str).to_numpy(dtype=str)
    varp, about = {}, []
    strength = strength_table(
        {name: made.parts[name] for name in places if name in made.blocks}, names, read, columns
    )
    for name, place in places.items():
        varp[place], varp[f"{place}_se"] = made.parts[name].matrices(read, columns, adata.n_vars)
        if name in made.blocks:
            cells = int(np.sum(group >= 0 if name == POOLED else group == groups.names.index(name)))
            about.append((name, place, cells, varp[place].nnz, made.blocks[name]))
    assert run.batches is not None
    uns: dict[str, Any] = {
        "networks": pd.DataFrame(
            about, columns=["network", "varp", "cells", "edges", "blocks"]
        ).set_index("network"),
        "genes": names[columns],
        "sources": names[read],
        "strength": strength,
        "params": {
            "convention": convention, "min_cells": min_cells, "n_blocks": n_blocks, "seed": seed,
            "weights": weighed, "passes": run.passes, "model_verdict": verdict,
            **given(
                groupby=groupby, gene_symbols=gene_symbols, top=top, replicate_key=replicate_key,
                counts_layer=counts_layer, compare=None if compare is None else np.array(compare, dtype=str),
            ),
            **run.batches.params(run.batches.plan),
        },
    }  # fmt: skip
    if compare is not None:
        uns["changes"] = made.changes.table(read, columns, names)
    if keep_blocks:
        kept = {places[name]: x for name, x in made.kept.items()}
        uns["blocks"] = {**kept, "sources": names[read], "targets": names[columns]}
    target = adata.copy() if copy else adata
    commit(target, varp=varp, obs={f"{key_added}_block": block}, uns={key_added: uns})
    return target if copy else None


def _verdict(model: AttentionSource | str, training: Mapping[str, Any] | str | Path | None) -> str:
    if training is not None:
        return model_verdict(training)
    if isinstance(model, str) and (log := Path(model.split(":", 1)[1]).expanduser() / LOG).is_file():
        return model_verdict(log)
    return "How well the model predicts held-out cells was not given (training=)."


def _check(
    convention: str, min_cells: int, top: int | None, n_blocks: int, n_changes: int, keep_blocks: bool
) -> None:
    if convention not in CONVENTIONS:
        raise ValueError(f"convention={convention!r} is unknown; use one of {', '.join(CONVENTIONS)}")
    for name, number, least in (
        ("min_cells", min_cells, 1), ("top", top, 1), ("n_blocks", n_blocks, 2), ("n_changes", n_changes, 1),
    ):  # fmt: skip
        wrong = not isinstance(number, int) or isinstance(number, bool) or number < least
        if wrong and not (name == "top" and number is None):
            raise ValueError(f"{name}={number!r} must be a whole number, {least} or more")
    if keep_blocks and convention == "qk-mean":
        raise ValueError(
            "keep_blocks=True keeps sums over cells, and convention='qk-mean' has none: leave it out"
        )


def _check_result(
    run: GrnRun, how: Conditions, networks: int, groups: int, top: int | None, kept_blocks: int
) -> None:
    """Refuse a result that is larger than the memory that was granted."""
    each = min(top or len(run.genes), len(run.genes)) * len(run.sources) * BYTES_PER_EDGE
    size = each * networks + 8 * kept_blocks * groups * len(run.genes) * len(run.sources)
    granted = granted_memory(how.memory, run.source.device)
    if run.source.device.type == "cpu" and size > granted:
        raise ValueError(
            f"{networks} networks of {len(run.sources)} x {len(run.genes)} genes take {size / 1e9:.3g} GB, more than"
            f" memory={granted / 1e9:.3g}GB: name fewer genes= or sources=, keep the strongest with top=, or grant more"
        )
