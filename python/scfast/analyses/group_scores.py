"""Gene scores per group of cells: means, errors, and what the scores leave out."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from scfast.analyses._arrays import ArrayAccumulator, ratio
from scfast.analyses._errors import standard_error
from scfast.analyses.base import Addition, Batch, Scatter
from scfast.analyses.strata import Strata
from scfast.models.base import TokenKind

N_KINDS = len(TokenKind)


class GroupScoresResult(NamedTuple):
    """Statistics of every group; float64 [groups, genes] unless said otherwise, nan where nothing is defined.

    ``mean`` and ``se`` are over all cells of the group (a cell without the gene scores 0), ``mean_detecting``
    and ``se_detecting`` over the cells that have a token of the gene; ``detecting`` int64 is the number of
    those, ``rank`` the gene's mean place in their encoding, from 1, and ``rank_sd`` the standard deviation of that
    place between them (nan for one cell). ``cells`` and ``replicates`` are int64
    [groups]; ``mass`` [groups, kinds] is the mean score that falls on each
    :class:`~scfast.models.base.TokenKind`; ``lost_vocabulary`` and ``lost_truncation`` [groups] are genes per
    cell.
    """

    mean: np.ndarray
    se: np.ndarray
    mean_detecting: np.ndarray
    se_detecting: np.ndarray
    detecting: np.ndarray
    rank: np.ndarray
    rank_sd: np.ndarray
    cells: np.ndarray
    replicates: np.ndarray
    mass: np.ndarray
    lost_vocabulary: np.ndarray
    lost_truncation: np.ndarray


class GroupScores(ArrayAccumulator):
    """Scores of genes in groups of cells, with standard errors.

    Parameters
    ----------
    strata
        The groups, or groups and replicates; errors are between replicates in the latter case, else between
        cells.
    n_genes
        Columns of the counts matrix.
    name
        The observable that holds the scores [R, T].
    row
        Which of the R rows; negative numbers count from the end.

    Notes
    -----
    Standard errors are those of :func:`scfast.analyses._errors.standard_error`.
    """

    config = ("n_genes", "name", "row")

    def __init__(self, strata: Strata, n_genes: int, name: str = "rollout", row: int = -1) -> None:
        self.strata, self.n_genes, self.name, self.row = strata, n_genes, name, row
        per_gene = (strata.n, n_genes)
        self.sums = {
            "cells": np.zeros(strata.n, dtype=np.int64),
            "count": np.zeros(per_gene, dtype=np.int64),
            "rank": np.zeros(per_gene, dtype=np.int64),
            "rank_square": np.zeros(per_gene, dtype=np.int64),
            "score": np.zeros(per_gene),
            "square": np.zeros(per_gene),
            "mass": np.zeros((strata.n, N_KINDS)),
            "lost_vocabulary": np.zeros(strata.n, dtype=np.int64),
            "lost_truncation": np.zeros(strata.n, dtype=np.int64),
        }

    def additions(self, batch: Batch) -> list[Addition]:
        """What the cells of a batch add; nothing is changed."""
        stratum, member = self._strata_of(batch)
        cells = Scatter(stratum[member])
        found = [cells.counts("cells")]
        for lost in ("lost_vocabulary", "lost_truncation"):
            found.append(cells.counts(lost, getattr(batch.tokens, lost).numpy()[member]))

        inside = member[batch.cell_of_token]
        kind = batch.tokens.kind.numpy()[inside]
        places = Scatter(stratum[batch.cell_of_token[inside]] * N_KINDS + kind)
        found.append(places.sums("mass", batch.scores(self.name, self.row)[inside]))

        pairs = batch.genes
        inside = member[pairs.cell]
        scores = batch.gene_scores(self.name, self.row)[inside]
        places = Scatter(stratum[pairs.cell[inside]] * self.n_genes + pairs.gene[inside])
        rank = pairs.rank[inside]
        found += [
            places.counts("count"),
            places.counts("rank", rank),
            places.counts("rank_square", rank * rank),
        ]
        found += [places.sums("score", scores), places.sums("square", scores * scores)]
        return found

    def result(self) -> GroupScoresResult:
        """Statistics of every group."""
        cells, count = self.strata.by_group(self.sums["cells"]), self.strata.by_group(self.sums["count"])
        score = self.strata.by_group(self.sums["score"])
        all_cells = np.broadcast_to(cells[:, None], count.shape)
        mean, mean_detecting = ratio(score, all_cells), ratio(score, count)
        rank = ratio(self.strata.by_group(self.sums["rank"]), count)
        squares = self.strata.by_group(self.sums["rank_square"]) - count * np.nan_to_num(rank) ** 2
        seen = self.sums["cells"] > 0
        return GroupScoresResult(
            mean=mean,
            se=self._error(mean, np.broadcast_to(self.sums["cells"][:, None], self.sums["count"].shape)),
            mean_detecting=mean_detecting,
            se_detecting=self._error(mean_detecting, self.sums["count"]),
            detecting=count,
            rank=rank,
            rank_sd=np.sqrt(ratio(np.maximum(squares, 0.0), count - 1)),
            cells=cells,
            replicates=self.strata.by_group((seen & self.strata.replicated).astype(np.int64)),
            mass=ratio(self.strata.by_group(self.sums["mass"]), cells[:, None]),
            lost_vocabulary=ratio(self.strata.by_group(self.sums["lost_vocabulary"]), cells),
            lost_truncation=ratio(self.strata.by_group(self.sums["lost_truncation"]), cells),
        )

    def _error(self, mean: np.ndarray, n: np.ndarray) -> np.ndarray:
        """Standard error of ``mean`` [groups, genes]: sums over ``n`` [S, genes] cells per stratum."""
        return standard_error(self.strata, self.sums["score"], self.sums["square"], n, mean)
