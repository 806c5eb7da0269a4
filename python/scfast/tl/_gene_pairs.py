"""Scores of pairs of genes, per group: computed in blocks of targets, tabled beside what they must beat, written."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from scfast.analyses import Accumulator, GenePairs, GroupExpression, GroupScores
from scfast.analyses.gene_pairs import GenePairsResult
from scfast.models.base import AttentionSource, TokenKind, Tokens
from scfast.observables import Observable
from scfast.run import Counts, TokenSurvey, granted_memory
from scfast.run.memory import readouts_that_fit
from scfast.tl._batches import Batches, Conditions, given, make_batches
from scfast.tl._inputs import Groups, column_names, commit
from scfast.tl._pair_tables import pair_table, target_table

if TYPE_CHECKING:
    from anndata import AnnData

#: What a row takes per token while it is added up: places and values of two additions.
BYTES_ADDED = 32


def row_weights(tokens: Tokens, targets: np.ndarray, n_genes: int) -> torch.Tensor:
    """float32 [R, T]: row r is even over the tokens of gene ``targets[r]``, with sum 1 in each cell that has any."""
    row_of_gene = torch.full((n_genes,), -1, dtype=torch.int64)
    row_of_gene[torch.from_numpy(targets)] = torch.arange(len(targets))
    gene = torch.where(tokens.kind == int(TokenKind.GENE), tokens.gene_index, -1)
    row = torch.where(gene >= 0, row_of_gene[gene], -1)
    token = (row >= 0).nonzero()[:, 0]
    row, cell = row[token], tokens.packing.cell_of_query()[token]
    count = torch.zeros(len(targets), tokens.n_cells)
    count.index_put_((row, cell), torch.ones(len(token)), accumulate=True)
    weights = torch.zeros(len(targets), tokens.n_tokens)
    weights[row, token] = 1 / count[row, cell]
    return weights


@dataclass(frozen=True, eq=False)
class PairScoring:
    """A run that gives every token a score for each target.

    Attributes
    ----------
    source, counts, found, rows
        The model, the cells, what tokenising said of them, and which of them are run.
    observe
        For a block of the targets, what makes the observables of a batch.
    name
        The observable that holds the scores: R rows for R targets, or that many for each step.
    targets, sources
        int64: columns of the genes that read, and of those that are read from; None: all.
    steps
        Layers of which each has scores; None: there are only those of the whole.
    complete
        The step that is the whole.
    layers_kept
        Layers whose q and k the observables keep.
    """

    source: AttentionSource
    counts: Counts
    found: TokenSurvey
    rows: np.ndarray
    observe: Callable[[np.ndarray], Callable[[Tokens], Sequence[Observable]]]
    name: str
    targets: np.ndarray
    sources: np.ndarray | None
    steps: int | None = None
    complete: int = -1
    layers_kept: int = 0

    def accumulator(self, groups: Groups, targets: np.ndarray) -> GenePairs:
        """What takes the scores of a block of the targets."""
        n_genes = self.counts.var.shape[0]
        sources = np.arange(n_genes) if self.sources is None else self.sources
        return GenePairs(groups.strata, n_genes, targets, sources, self.steps or 1, self.name)

    def blocks(self, how: Conditions, reserved: int) -> list[np.ndarray]:
        """The targets in blocks that fit together, as even as can be."""
        steps = self.steps or 1
        together = readouts_that_fit(
            self.source, granted_memory(how.memory, self.source.device), int(self.found.lengths[self.rows].max()),
            len(self.targets) * steps, each=BYTES_ADDED, layers_kept=self.layers_kept,
            reserved=reserved if self.source.device.type == "cpu" else 0,
        )  # fmt: skip
        return np.array_split(self.targets, -(-len(self.targets) // max(1, together // steps)))


def score_pairs(
    adata: AnnData,
    scoring: PairScoring,
    groups: Groups,
    how: Conditions,
    *,
    key_added: str,
    null: str | None,
    n_top: int,
    params: dict[str, Any],
    copy: bool = False,
) -> AnnData | None:
    """Run, and write ``varm`` and ``uns[key_added]`` as :func:`scfast.tl.rollout_matrix` says.

    Parameters
    ----------
    adata
        Where the results go.
    scoring
        What is run.
    groups
        Of the cells.
    how
        Within which memory, on which backend.
    key_added, null, n_top, copy
        The tool's arguments.
    params
        What is noted beside the model and the plan.
    """
    n_genes = adata.n_vars
    beside: dict[str, Accumulator] = {
        "baseline": GroupExpression(groups.strata, n_genes),
        "ranks": GroupScores(groups.strata, n_genes, name=scoring.name, row=0),
    }
    # sums, and the means that are made of them
    sums = 2 * scoring.accumulator(groups, scoring.targets).nbytes * (2 if null else 1)
    reserved = sums + sum(x.nbytes for x in beside.values())
    blocks = scoring.blocks(how, reserved)
    readouts = len(blocks[0]) * (scoring.steps or 1)
    batches = make_batches(
        scoring.source, scoring.counts, scoring.found, scoring.rows, how, results_bytes=reserved, in_blocks=True,
        layers_kept=scoring.layers_kept, readouts=readouts, observed=BYTES_ADDED * readouts,
    )  # fmt: skip
    pairs, about, batches = _run(batches, scoring, groups, blocks, scoring.name, beside)
    names = adata.var_names.astype(str).to_numpy(dtype=str)
    _warn_of_missing(names[scoring.targets], pairs)

    every = np.arange(n_genes) if scoring.sources is None else scoring.sources
    seen = slice(None) if scoring.sources is not None else np.flatnonzero(pairs.cells.any(axis=(0, 1)))
    columns = every[seen]
    mean, cells = pairs.mean[scoring.complete][..., seen], pairs.cells[..., seen]
    uns: dict[str, Any] = {
        "group_names": np.array(groups.names, dtype=str),
        "target_names": names[scoring.targets],
        "source_names": names[columns],
        "mean": mean,
        "cells": cells,
    }
    if scoring.steps is not None:
        uns["by_layer"] = pairs.mean[..., seen]
    baselines = {"rank": about["ranks"].rank[:, columns]}
    baselines |= {name: getattr(about["baseline"], name)[:, columns] for name in ("expression", "detection")}
    if null is not None:
        fresh = batches.again(scoring.source.untrained(how.seed), batches.plan)
        nulls, _, _ = _run(fresh, scoring, groups, blocks, "untrained")
        uns["null"] = nulls.mean[scoring.complete][..., seen]
    uns["targets"] = target_table(uns, pairs, scoring.complete)
    uns["table"] = pair_table(uns, pairs.holding, baselines, n_top)
    uns["params"] = {
        **params,
        **given(null=null),
        "genes_together": len(blocks[0]),
        **batches.params(batches.plan),
    }
    varm = pd.DataFrame(np.nan, index=adata.var_names, columns=column_names(list(uns["target_names"])))
    varm.iloc[columns] = _pooled(mean, cells).T
    target = adata.copy() if copy else adata
    commit(target, varm={key_added: varm}, uns={key_added: uns})
    return target if copy else None


def _run(
    batches: Batches,
    scoring: PairScoring,
    groups: Groups,
    blocks: Sequence[np.ndarray],
    label: str,
    beside: dict[str, Accumulator] | None = None,
) -> tuple[GenePairsResult, dict[str, Any], Batches]:
    """All blocks of targets, what the first found ``beside`` them, and the batches with the plan that was run."""
    found: list[GenePairsResult] = []
    about: dict[str, Any] = {}
    for number, block in enumerate(blocks, start=1):
        analyses: dict[str, Accumulator] = {"pairs": scoring.accumulator(groups, block)}
        results = batches.run(
            analyses if number > 1 else analyses | (beside or {}),
            scoring.observe(block),
            label if len(blocks) == 1 else f"{label} {number}/{len(blocks)}",
        )
        found.append(results.pop("pairs"))
        about |= results
        batches = batches.again(batches.source, results.plan)
    return GenePairsResult.concatenated(found), about, batches


def _warn_of_missing(names: np.ndarray, pairs: GenePairsResult) -> None:
    missing = names[~pairs.holding.any(axis=0)]
    if len(missing):
        warnings.warn(
            f"no cell of any group has a token of {', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}"
            f" ({len(missing)} of {len(names)} genes): their rows are empty",
            UserWarning,
            stacklevel=4,
        )


def _pooled(mean: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """[targets, sources]: the mean over the cells of all groups; nan where there are none."""
    total = cells.sum(0)
    sums = (np.nan_to_num(mean) * cells).sum(0)
    return np.divide(sums, total, out=np.full(total.shape, np.nan), where=total > 0)
