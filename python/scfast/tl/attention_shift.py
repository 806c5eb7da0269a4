"""How attention differs between two models: before and after fine-tuning, or between two trainings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scfast.analyses import Accumulator, GroupExpression, GroupScores, MapCosines, RankProfile
from scfast.models.base import AttentionSource, Tokens
from scfast.models.pair import ModelPair
from scfast.observables import MapShift, ReceivedShift
from scfast.observables.base import Observable
from scfast.run import TokenSurvey, survey
from scfast.tl._batches import Conditions, given, make_batches
from scfast.tl._inputs import Groups, check_options, commit, get_counts, get_groups, get_rows, get_source
from scfast.tl._tables import spearman

if TYPE_CHECKING:
    import torch
    from anndata import AnnData

#: Rows of :class:`~scfast.observables.ReceivedShift`.
ROWS = {"before": 0, "after": 1, "change": 2}


def attention_shift(
    adata: AnnData,
    model_a: AttentionSource | str,
    model_b: AttentionSource | str,
    *,
    groupby: str | None = None,
    replicate_key: str | None = None,
    key_added: str = "attention_shift",
    device: str | torch.device | None = None,
    memory: str | int | None = None,
    counts_layer: str | None = None,
    progress: bool | None = None,
    backend: str = "auto",
    copy: bool = False,
) -> AnnData | None:
    """How attention shifts from one model to another, on the same tokens of whole cells (Falkenstein 2024, Fig. 4).

    For every layer and head the cosine <P_a, P_b> / (|P_a| |P_b|) between the attention maps of both models, and how
    the attention that genes and ranks receive (:func:`scfast.tl.received`) changes. No map is held: both models run on
    each batch, one after the other.

    Parameters
    ----------
    adata
        Raw counts, cells x genes. ``adata.obs["n_counts"]`` is used where present, else row sums.
    model_a, model_b
        Before and after: from :func:`scfast.models.load`, or ``"geneformer:FOLDER"``. They need the same layers,
        heads, vocabulary and tokeniser; widths and dtypes may differ.
    groupby
        Column of ``adata.obs``: results per group. Default: one group, ``"all"``. Cells whose group is empty are run,
        but count in no group.
    replicate_key
        Column of ``adata.obs`` (donor, batch): standard errors are then between replicates, else between
        cells.
    key_added
        Name of the results; what is there under that name is replaced.
    device
        ``"cuda"``, ``"cuda:N"`` or ``"cpu"``. Default: where the models are; those that are named by their folders
        run on the GPU where there is one.
    memory
        What the run may use beyond what is loaded, such as ``"2GB"``; on a GPU, of its memory. Default: 2 GB, on a
        GPU all that is free there. A batch that does not fit after all is run in halves.
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
        ``uns[key_added]``:

        ``"cosine"``
            DataFrame, one row per ``group``, ``layer`` and ``head`` (from 0): ``mean`` and ``se`` over the cosines of
            the cells, and ``concatenated``, one cosine of the maps of all cells together, in which longer cells count
            for more.
        ``"genes"``
            DataFrame, one row per group and gene with a token in it, the largest change first: ``before`` and
            ``after``, attention received from all queries, heads and layers, mean over the ``cells`` that have a
            token of the gene; ``change`` and ``se``, their difference with its standard error between those
            cells or their replicates; ``percent``, 100 (after - before) / before; ``rank``, ``expression`` and
            ``detection`` as in :func:`scfast.tl.rollout`.
        ``"ranks"``
            DataFrame, the same per group and ``rank`` of the encoding (gene tokens, from 1).
        ``"groups"``
            DataFrame, one row per group: ``cells``, ``replicates``, ``cosine`` (mean over layers, heads and cells), and
            Spearman correlations of the genes' change with what it may merely restate (``spearman_rank``, ...).
        ``"params"``
            The arguments, the models, and the plan of the run.

    Raises
    ------
    ValueError, KeyError, TypeError
        For input that does not fit, such as models of other shapes or tokenisers, or a group without cells; the
        message names it and the remedy. ``adata`` is unchanged after any error.
    MemoryError
        When one cell does not fit by itself; the message says what it needs.

    Examples
    --------
    >>> import scfast
    >>> adata, model = scfast.datasets.toy()
    >>> _, other = scfast.datasets.toy(seed=1)
    >>> scfast.tl.attention_shift(adata, model, other, groupby="condition")
    >>> cosine = adata.uns["attention_shift"]["cosine"]
    >>> cosine.columns.tolist()
    ['group', 'layer', 'head', 'mean', 'se', 'concatenated']
    >>> bool((cosine["mean"] < 1).all())  # 1: nothing changed
    True
    """
    check_options(key_added)
    how = Conditions(memory, backend, progress)
    counts = get_counts(adata, counts_layer)
    groups = get_groups(adata, groupby, replicate_key)
    pair = ModelPair(get_source(model_a, device), get_source(model_b, device))
    found = survey(pair, counts)
    rows = get_rows(found, pair, adata.var)
    _check_groups(groups, rows, groupby)

    strata, n_genes = groups.strata, counts.var.shape[0]
    analyses: dict[str, Accumulator] = {
        "maps": MapCosines(strata, pair.first.n_layers, pair.n_heads),
        "baseline": GroupExpression(strata, n_genes),
    }
    for name, row in ROWS.items():
        analyses[f"genes {name}"] = GroupScores(strata, n_genes, name="received_shift", row=row)
        analyses[f"ranks {name}"] = RankProfile(strata, _most_genes(found), name="received_shift", row=row)
    batches = make_batches(
        pair, counts, found, rows, how, results_bytes=sum(x.nbytes for x in analyses.values()),
        layers_kept=pair.first.n_layers, readouts=len(ROWS),
    )  # fmt: skip
    results = batches.run(analyses, _observe, "attention shift")

    cosine = _cosines(groups.names, results["maps"])
    genes = _genes(groups.names, adata.var_names, results)
    uns: dict[str, Any] = {
        "params": {
            **given(groupby=groupby, replicate_key=replicate_key, counts_layer=counts_layer),
            **{name: value for name, value in batches.params(results.plan).items() if name != "model"},
            "model_a": pair.first.name,
            "model_b": pair.second.name,
            "n_layers": pair.first.n_layers,
        },
        "cosine": cosine,
        "genes": genes,
        "ranks": _ranks(groups.names, results),
        "groups": _groups(groups.names, results, genes),
    }
    target = adata.copy() if copy else adata
    commit(target, uns={key_added: uns})
    return target if copy else None


def _observe(tokens: Tokens) -> Sequence[Observable]:
    return [MapShift(), ReceivedShift()]


def _check_groups(groups: Groups, rows: np.ndarray, groupby: str | None) -> None:
    stratum = groups.strata.of(rows)
    cells = np.bincount(groups.strata.group[stratum[stratum >= 0]], minlength=groups.strata.n_groups)
    empty = [name for name, n in zip(groups.names, cells, strict=True) if n == 0]
    if empty:
        raise ValueError(
            f"groupby={groupby!r}: no cell of {', '.join(empty)} has a gene of the models' vocabulary; remove those"
            " cells, or name another column"
        )


def _most_genes(found: TokenSurvey) -> int:
    return int(found.gene_tokens.max())


def _cosines(groups: list[str], maps: Any) -> pd.DataFrame:
    """A row per group, layer and head."""
    n_groups, n_layers, n_heads = maps.mean.shape
    group, layer, head = (x.reshape(-1) for x in np.indices((n_groups, n_layers, n_heads)))
    return pd.DataFrame(
        {
            "group": pd.Categorical.from_codes(group, categories=groups),
            "layer": layer,
            "head": head,
            "mean": maps.mean.reshape(-1),
            "se": maps.se.reshape(-1),
            "concatenated": maps.concatenated.reshape(-1),
        }
    )


def _genes(groups: list[str], names: pd.Index, results: dict[str, Any]) -> pd.DataFrame:
    """A row per group and gene with a token in it, the largest change first."""
    before, after, change = (results[f"genes {name}"] for name in ROWS)
    parts = []
    for number, group in enumerate(groups):
        kept = np.flatnonzero(change.detecting[number] > 0)
        kept = kept[np.argsort(-np.abs(change.mean_detecting[number][kept]), kind="stable")]
        old, new = (of.mean_detecting[number][kept] for of in (before, after))
        columns = {
            "gene": names[kept].astype(str),
            "group": group,
            "cells": change.detecting[number][kept],
            "before": old,
            "after": new,
            "change": change.mean_detecting[number][kept],
            "se": change.se_detecting[number][kept],
            "percent": 100 * (new - old) / old,
            "rank": change.rank[number][kept],
            "expression": results["baseline"].expression[number][kept],
            "detection": results["baseline"].detection[number][kept],
        }
        parts.append(pd.DataFrame(columns))
    table = pd.concat(parts, ignore_index=True)
    table["gene"] = pd.Categorical(table["gene"])
    table["group"] = pd.Categorical(table["group"], categories=groups)
    return table


def _ranks(groups: list[str], results: dict[str, Any]) -> pd.DataFrame:
    """A row per group and rank that any of its cells has."""
    before, after, change = (results[f"ranks {name}"] for name in ROWS)
    group, rank = np.nonzero(change.cells)
    old, new = before.mean[group, rank], after.mean[group, rank]
    return pd.DataFrame(
        {
            "group": pd.Categorical.from_codes(group, categories=groups),
            "rank": rank + 1,
            "cells": change.cells[group, rank],
            "before": old,
            "after": new,
            "change": change.mean[group, rank],
            "se": change.se[group, rank],
            "percent": 100 * (new - old) / old,
        }
    )


def _groups(groups: list[str], results: dict[str, Any], genes: pd.DataFrame) -> pd.DataFrame:
    """A row per group."""
    maps = results["maps"]
    parts = [genes[(genes["group"] == name).to_numpy()] for name in groups]
    columns: dict[str, Any] = {
        "cells": maps.cells,
        "replicates": results["genes change"].replicates,
        "cosine": maps.mean.mean((1, 2)),
    }
    for against in ("expression", "detection", "rank"):
        columns[f"spearman_{against}"] = [
            spearman(part["change"].to_numpy(), part[against].to_numpy()) for part in parts
        ]
    return pd.DataFrame(columns, index=pd.Index(groups, name="group"))
