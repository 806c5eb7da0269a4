"""Scores of genes, per cell and per group: computed, tabled beside what they must beat, and written."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from scfast.analyses import (
    Accumulator,
    CellScores,
    CellTokens,
    GroupExpression,
    GroupScores,
    LayerScores,
    RowWriter,
)
from scfast.models.base import AttentionSource, Tokens
from scfast.observables import Observable
from scfast.run import Counts, TokenSurvey
from scfast.tl._batches import Conditions, for_anndata, given, make_batches, stays_on_disk
from scfast.tl._inputs import Groups, commit
from scfast.tl._tables import gene_table, group_table

if TYPE_CHECKING:
    from anndata import AnnData


class Parts(NamedTuple):
    """Rows of an observable that are averaged one by one, into ``uns[...][key]`` [*shape, genes, groups]."""

    observable: str
    key: str
    shape: tuple[int, ...]

    @property
    def n_rows(self) -> int:
        """How many rows those are."""
        return math.prod(self.shape)

    def unfold(self, means: np.ndarray) -> np.ndarray:
        """[*shape, genes, groups] of means [R, groups, genes]."""
        return means.reshape(*self.shape, *means.shape[1:]).swapaxes(-1, -2).copy()


class Tabled(NamedTuple):
    """An analysis of the same run, and what is made of its result for ``uns``."""

    analysis: Accumulator
    present: Callable[[Any], Any]


@dataclass(frozen=True, eq=False)
class GeneScoring:
    """A run that gives every token a score.

    Attributes
    ----------
    source, counts, found, rows
        The model, the cells, what tokenising said of them, and which of them are run.
    observe
        Makes what is recorded of a batch: observables that give scores [R, T].
    name, row
        The observable that holds the scores, and which of its rows.
    parts
        What else is averaged.
    layers_kept
        Layers whose q and k the observables keep.
    observed
        Bytes that they take per token beyond that.
    gradients
        Whether the observables have a target, which is then differentiated.
    tables
        What else goes into ``uns``, by name.
    in_blocks
        Whether the observables take blocks.
    """

    source: AttentionSource
    counts: Counts
    found: TokenSurvey
    rows: np.ndarray
    observe: Callable[[Tokens], Sequence[Observable]]
    name: str
    row: int = -1
    parts: Parts | None = None
    layers_kept: int = 0
    observed: int = 0
    gradients: bool = False
    tables: Mapping[str, Tabled] = field(default_factory=dict)
    in_blocks: bool = False

    def observe_scores(self, tokens: Tokens) -> list[Observable]:
        """The observable of the scores alone: all that is taken from a model without training."""
        return [observable for observable in self.observe(tokens) if observable.name == self.name]


def score_genes(
    adata: AnnData,
    scoring: GeneScoring,
    groups: Groups,
    how: Conditions,
    *,
    key_added: str,
    null: str | None,
    store_cells: bool,
    params: dict[str, Any],
    copy: bool = False,
) -> AnnData | None:
    """Run, and write ``layers``, ``varm`` and ``uns[key_added]`` as the tool's documentation says.

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
    key_added, null, store_cells, copy
        The tool's arguments.
    params
        What is noted beside the model and the plan.
    """
    n_genes, strata = scoring.counts.var.shape[0], groups.strata

    def scores() -> GroupScores:
        return GroupScores(strata, n_genes, name=scoring.name, row=scoring.row)

    analyses: dict[str, Accumulator | RowWriter] = {
        "scores": scores(),
        "baseline": GroupExpression(strata, n_genes),
    }
    if scoring.parts is not None:
        analyses["parts"] = LayerScores(strata, n_genes, scoring.parts.n_rows, name=scoring.parts.observable)
    analyses |= {name: tabled.analysis for name, tabled in scoring.tables.items()}
    results_bytes = sum(x.nbytes for x in analyses.values() if isinstance(x, Accumulator))
    results_bytes *= 2 if null else 1
    if store_cells:
        analyses["cells"] = CellScores(n_genes, name=scoring.name, row=scoring.row)
        if scoring.found.repeats:
            analyses["tokens"] = CellTokens(n_genes)
        # float32 and int32, once in blocks, once in order; and the tokens likewise
        held = 0 if stays_on_disk(scoring.counts) else 16
        results_bytes += (
            held * (1 + scoring.found.repeats) * int(scoring.found.gene_tokens[scoring.rows].sum())
        )
    batches = make_batches(
        scoring.source, scoring.counts, scoring.found, scoring.rows, how, results_bytes=results_bytes,
        layers_kept=scoring.layers_kept, observed=scoring.observed,
        readouts=1 if scoring.parts is None else scoring.parts.n_rows,
        in_blocks=scoring.in_blocks,
    )  # fmt: skip
    results = batches.run(
        analyses, scoring.observe, scoring.name, gradients=scoring.gradients, rows_on_disk=True
    )
    nulls = None
    if null is not None:
        fresh = batches.again(scoring.source.untrained(how.seed), results.plan)
        nulls = fresh.run(
            {"scores": scores()}, scoring.observe_scores, "untrained", gradients=scoring.gradients
        )["scores"]

    table = gene_table(adata.var_names, groups.names, results["scores"], results["baseline"], nulls)
    uns: dict[str, Any] = {
        "params": {**params, **given(null=null), **batches.params(results.plan)},
        "groups": group_table(groups.names, results["scores"], table),
        "table": table,
        **{name: tabled.present(results[name]) for name, tabled in scoring.tables.items()},
    }
    if scoring.parts is not None:
        uns[scoring.parts.key] = scoring.parts.unfold(results["parts"])
    means = {key_added: results["scores"]} | ({} if nulls is None else {f"{key_added}_null": nulls})
    varm = {
        key: pd.DataFrame(of.mean.T.copy(), index=adata.var_names, columns=groups.columns)
        for key, of in means.items()
    }
    target = adata.copy() if copy else adata
    cells = {key_added: for_anndata(results["cells"])} if store_cells else {}
    if store_cells and scoring.found.repeats:
        uns["params"]["tokens_layer"] = f"{key_added}_tokens"
        cells[f"{key_added}_tokens"] = for_anndata(results["tokens"])
    commit(target, layers=cells, varm=varm, uns={key_added: uns})
    return target if copy else None
