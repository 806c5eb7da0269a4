"""The networks of groups of cells while they are made, block of sources by block of sources."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from scfast.tl._edge_statistics import EdgeStatistics, Replicates
from scfast.tl._grn_results import Changes, NetworkParts
from scfast.tl._grn_run import GrnRun, blocks_of_rows, map_of_means
from scfast.tl._networks import POOLED


@dataclass(eq=False)
class GroupNetworks:
    """A network of each group, of all their cells, and the difference of two.

    Attributes
    ----------
    run_
        The passes of the model.
    names, grouped
        Of the groups, and whether they are a user's.
    compare
        Two of them.
    min_cells, top, n_changes
        As of :func:`scfast.tl.grn`.
    replicates
        How many, where groups share them: 0 where all blocks of cells are of one group.
    parts, blocks, kept, changes
        What was made: edges, numbers of blocks and their sums by the name of the network, edges that change.
    """

    run_: GrnRun
    names: list[str]
    grouped: bool
    compare: tuple[str, str] | None
    min_cells: int
    top: int | None
    n_changes: int
    replicates: int = 0
    parts: dict[str, NetworkParts] = field(default_factory=dict)
    blocks: dict[str, int] = field(default_factory=dict)
    kept: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        changed = ["change"] if self.compare else []
        names = [POOLED, *(self.names if self.grouped else []), *changed]
        self.parts = {name: NetworkParts(self.top) for name in names}
        self.changes = Changes(self.n_changes)

    def run(self, group: np.ndarray, block: np.ndarray, kept_blocks: int) -> None:
        """All blocks of sources, groups and blocks of cells, int64 [cells]; -1 for cells that are in none."""
        run, shape = self.run_, (kept_blocks, len(self.run_.sources), len(self.run_.genes))
        if kept_blocks:
            self.kept = {
                name: {"score": np.zeros(shape, dtype=np.float32), "cells": np.zeros(shape, dtype=np.int32)}
                for name in self.names
            }
        for first, last in blocks_of_rows(run, run.rows_together()):
            size = (last - first, len(run.genes))
            whole = EdgeStatistics.empty(size)
            shared = {name: Replicates.empty(self.replicates, size) for name in self._sharing()}
            compared: dict[str, EdgeStatistics] = {}
            for number, name in enumerate(self.names):
                own = EdgeStatistics.empty(size)
                for unit in np.unique(block[group == number]):
                    rows = np.flatnonzero((group == number) & (block == unit))
                    part = run.edges(rows, first, last, f"network {name} {unit + 1}")
                    own.add(part.score, part.cells)
                    for each in {POOLED, name} & shared.keys():
                        shared[each].add(unit, part.score, part.cells)
                    if kept_blocks:
                        self.kept[name]["score"][unit, first:last] = part.score
                        self.kept[name]["cells"][unit, first:last] = part.cells
                own.close()
                if not self.grouped:
                    whole = own  # there is no other
                    continue
                self._add(name, first, last, own)
                if not shared:
                    whole.include(own)
                if self.compare and name in self.compare:
                    compared[name] = own
            self._add(POOLED, first, last, shared[POOLED].statistics() if shared else whole)
            if self.compare:
                before, after = self.compare
                covariance = shared[before].covariance(shared[after]) if shared else None
                self._add_change(first, last, compared[before], compared[after], covariance)

    def run_means(self, group: np.ndarray, block: np.ndarray) -> None:
        """As :meth:`run` where a network is one map of means: errors by leaving out one block after another."""
        run, inside = self.run_, group >= 0
        run.check_states(len(np.unique(np.stack([group, block])[:, inside], axis=1).T))
        states = {
            name: {
                int(unit): run.states(
                    np.flatnonzero((group == number) & (block == unit)), f"means {name} {unit + 1}"
                )
                for unit in np.unique(block[group == number])
            }
            for number, name in enumerate(self.names)
        }
        together = _together(list(states.values()))
        for first, last in blocks_of_rows(run, run.rows_together()):
            compared: dict[str, LeftOut] = {}
            for name, parts in {**states, POOLED: together}.items():
                found = LeftOut.of(run, parts, first, last, hold=name in self._sharing())
                self._add(name, first, last, found.statistics)
                if self.compare and name in self.compare:
                    compared[name] = found
            if self.compare:
                before, after = (compared[name] for name in self.compare)
                covariance = before.covariance(after) if self.replicates else None
                self._add_change(first, last, before.statistics, after.statistics, covariance)

    def _sharing(self) -> list[str]:
        """Networks whose replicates are held."""
        return [POOLED, *(self.compare or ())] if self.replicates else []

    def _add(self, name: str, first: int, last: int, statistics: EdgeStatistics) -> None:
        mean, error = statistics.mean(self.min_cells), statistics.error(self.min_cells)
        self.parts[name].add(first, mean, error, self._own(first, last))
        self.blocks[name] = statistics.blocks

    def _add_change(
        self,
        first: int,
        last: int,
        before: EdgeStatistics,
        after: EdgeStatistics,
        covariance: np.ndarray | None,
    ) -> None:
        own = self._own(first, last)
        change, error = self.changes.add(first, before, after, self.min_cells, own, covariance)
        self.parts["change"].add(first, change, error, own)

    def _own(self, first: int, last: int) -> np.ndarray:
        return np.searchsorted(self.run_.genes, self.run_.sources[first:last])


@dataclass(frozen=True, eq=False)
class LeftOut:
    """The map of the means of all blocks of cells, and by how much it changes without one block after another.

    Attributes
    ----------
    statistics
        Mean and error, read as of sums.
    changes
        float64 [S, G] of each block, by its number; none unless they are to be held.
    """

    statistics: EdgeStatistics
    changes: dict[int, np.ndarray]

    @classmethod
    def of(
        cls, run: GrnRun, states: dict[int, np.ndarray], first: int, last: int, *, hold: bool = False
    ) -> LeftOut:
        """Of the sums of queries and keys of each block, float64 [layers, G, 2 + 2 H D]."""
        total, n = np.sum(list(states.values()), axis=0), len(states)
        whole, changes = map_of_means(run, total, first, last), {}
        # A gene's tokens stand for its cells; the weight is one map's, so it is divided by nothing.
        statistics = EdgeStatistics.empty(whole.shape)
        statistics.cells = cells = _fewer(run, total, first, last)
        statistics.score, statistics.blocks = whole * cells, n
        for number, part in states.items():
            change = map_of_means(run, total - part, first, last) - whole
            statistics.ss += (n - 1) / n * (change * cells) ** 2
            statistics.held += _fewer(run, part, first, last) > 0
            if hold:
                changes[number] = change
        return cls(statistics, changes)

    def covariance(self, other: LeftOut) -> np.ndarray:
        """float64 [S, G]: of two maps, over the blocks that both have."""
        products = (
            self.changes[unit] * other.changes[unit]
            for unit in sorted(self.changes.keys() & other.changes.keys())
        )
        shares = [(len(each.changes) - 1) / len(each.changes) for each in (self, other)]
        return np.asarray(
            sum(products, np.zeros_like(self.statistics.score)) * np.sqrt(shares[0] * shares[1])
        )


def _fewer(run: GrnRun, states: np.ndarray, first: int, last: int) -> np.ndarray:
    """Tokens float64 [S, G] of the source or of the target, whichever has fewer."""
    count = states[0, :, 0]
    source = np.searchsorted(run.genes, run.sources[first:last])
    return np.asarray(np.minimum(count[source][:, None], count))


def _together(parts: list[dict[int, np.ndarray]]) -> dict[int, np.ndarray]:
    """Sums of the blocks of the same number."""
    numbers = sorted(set().union(*parts))
    return {number: np.sum([part[number] for part in parts if number in part], axis=0) for number in numbers}
