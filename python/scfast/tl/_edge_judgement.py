"""Networks and their baselines scored on one universe: as they are, under the null, and with parts left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import sparse

from scfast.run import Counts
from scfast.tl._edge_baselines import PairMoments
from scfast.tl._edge_scores import Convention, EdgeScore, Ranking, score_edges
from scfast.tl._edge_universe import EdgeUniverse
from scfast.tl._jackknife import blocks_of
from scfast.tl._networks import STRATIFIED, Networks
from scfast.tl._rewired import rewired

BASELINES = ("coexpression", "detection")
SCORES = ("network", *BASELINES)


@dataclass(frozen=True, eq=False)
class Judged:
    """One score of one network.

    Attributes
    ----------
    network, score, cells
        Which, and of how many cells.
    value
        As it is.
    null
        float64 [samples, 2]: ratios of AUPRC and of early precision under references of the same degrees.
    left_out
        float64 [blocks, 2]: the ratios with one block left out.
    left_out_are
        What the blocks are of: ``"cells"`` or ``"regulators"``.
    curve
        Recall and precision.
    """

    network: str
    score: str
    cells: int
    value: EdgeScore
    null: np.ndarray
    left_out: np.ndarray
    left_out_are: str
    curve: tuple[np.ndarray, np.ndarray]


def judge(
    networks: Networks,
    universe: EdgeUniverse,
    counts: Counts,
    convention: Convention,
    n_null: int,
    n_blocks: int,
    draws: np.random.Generator,
) -> list[Judged]:
    """Every network, and ``"stratified"`` where there are groups, by its weights and by the baselines."""
    inside, positive = universe.inside, universe.edges[universe.inside]
    null = [np.packbits(x[inside]) for x in rewired(universe.edges, universe.own, n_null, draws)]
    by_cells = networks.block is not None and networks.leaves_out(universe.sources)
    regulator_block = blocks_of(len(universe.sources), min(n_blocks, len(universe.sources)), draws)
    cells_of = Baselines(networks, universe, counts, by_cells)
    names = [*networks.names, *([STRATIFIED] if len(networks.groups) > 1 else [])]
    judged = []
    for name in names:
        own = networks.weights(name, universe.sources, universe.targets)
        if not own[inside].any():
            raise ValueError(
                f"the network of {name!r} has no edge between the {len(universe.sources)} regulators and"
                f" {len(universe.targets)} genes that it shares with the reference: name more genes, or fewer groups"
            )
        scores = {"network": own, **cells_of.scores(name)}
        left_out = dict.fromkeys(SCORES, np.empty((0, 2)))
        if by_cells:
            blocks = networks.blocks(name)
            weights = networks.leave_out(name, universe.sources, universe.targets, blocks)
            baselines = cells_of.leave_out(name, blocks)
            parts = ({"network": x, **y} for x, y in zip(weights, baselines, strict=True))
            left_out = _without_cells(parts, inside, positive, convention)
        elif len(universe.sources) > 1:
            left_out = _without_regulators(scores, universe, regulator_block, convention)
        for score, matrix in scores.items():
            ranking = Ranking(matrix[inside])
            judged.append(
                Judged(
                    name, score, len(networks.cells(name)), score_edges(matrix[inside], positive, convention),
                    _under(ranking, null, universe, convention), left_out[score],
                    "cells" if by_cells else "regulators", ranking.curve(positive),
                )
            )  # fmt: skip
    return judged


def _under(
    ranking: Ranking, null: Sequence[np.ndarray], universe: EdgeUniverse, convention: Convention
) -> np.ndarray:
    n, ratios = len(ranking.order), []
    for packed in null:
        positive = np.unpackbits(packed, count=n).astype(bool)
        ratios.append((ranking.auprc(positive, convention), ranking.early_precision(positive, convention)))
    return np.array(ratios) / universe.density


def _without_cells(
    parts: Iterator[dict[str, np.ndarray]], inside: np.ndarray, positive: np.ndarray, convention: Convention
) -> dict[str, np.ndarray]:
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in SCORES}
    for part in parts:
        for name, matrix in part.items():
            value = score_edges(matrix[inside], positive, convention)
            found[name].append((value.auprc_ratio, value.epr))
    return {name: np.array(values) for name, values in found.items()}


def _without_regulators(
    scores: dict[str, np.ndarray], universe: EdgeUniverse, block: np.ndarray, convention: Convention
) -> dict[str, np.ndarray]:
    found = {}
    for name, matrix in scores.items():
        values = []
        for number in range(block.max() + 1):
            kept = universe.without(block == number)
            value = score_edges(matrix[kept], universe.edges[kept], convention)
            values.append((value.auprc_ratio, value.epr))
        found[name] = np.array(values)
    return found


class Baselines:
    """Co-expression and detection of the pairs of a universe, over the cells of each network.

    Parameters
    ----------
    networks, universe, counts
        Whose cells, which pairs, and the counts of all cells.
    by_cells
        Whether blocks of cells will be left out.
    """

    def __init__(self, networks: Networks, universe: EdgeUniverse, counts: Counts, by_cells: bool) -> None:
        self.networks, self.universe, self.counts, self.by_cells = networks, universe, counts, by_cells

    def scores(self, name: str) -> dict[str, np.ndarray]:
        """Baseline -> float64 [R, T]."""
        return self._mean([self._moments(rows) for rows in self._rows(name)])

    def leave_out(self, name: str, blocks: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        """The same without one of these blocks of cells after another."""
        block = self.networks.block
        assert block is not None
        groups = self._rows(name)
        whole = [self._moments(rows) for rows in groups]
        for number in blocks:
            left = [self._moments(rows[block[rows] == number]) for rows in groups]
            yield self._mean([total - part for total, part in zip(whole, left, strict=True)])

    def _rows(self, name: str) -> list[np.ndarray]:
        several = self.networks.groups if name == STRATIFIED else (name,)
        return [self.networks.cells(each) for each in several]

    def _moments(self, rows: np.ndarray) -> PairMoments:
        matrix = sparse.csr_matrix(self.counts.take(rows)[0])
        return PairMoments(matrix, self.universe.sources, self.universe.targets)

    def _mean(self, moments: list[PairMoments]) -> dict[str, np.ndarray]:
        return {name: np.mean([getattr(each, name)() for each in moments], axis=0) for name in BASELINES}
