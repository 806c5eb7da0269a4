"""The passes of a gene network: block of sources by block of sources, and within, block of cells by block of cells."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from scfast import ops
from scfast.analyses import Accumulator, GeneEdges, GeneStateTotals, Strata
from scfast.models.base import AttentionSource, Tokens
from scfast.observables import GeneEdges as EdgesOfBatch
from scfast.observables import GeneQueriesKeys, Observable
from scfast.packing import Packing
from scfast.run import Counts, TokenSurvey, granted_memory
from scfast.tl._batches import Batches, Conditions, make_batches
from scfast.tl._edge_statistics import MATRICES, MATRICES_PER_REPLICATE

#: Share of the memory that the matrices of a pass may take; the rest is for the model.
SHARE = 0.5
#: Sums of queries and keys that are held beside those of blocks: of a batch, a run, all cells, and all but one block.
BESIDE_STATES = 4
#: Matrices of sources x genes that are held beside the statistics of groups: sums and cells of a block, of a batch, the
#: product that counts its cells, and what means and errors are made of.
BESIDE = 10


class Part(NamedTuple):
    """Sums ``score`` float64 and numbers of ``cells`` [S, G] of one block of cells of a group."""

    score: np.ndarray
    cells: np.ndarray


@dataclass(eq=False)
class GrnRun:
    """A model, cells in groups and blocks, and the genes of the network.

    Attributes
    ----------
    source, counts, found, how
        The model, the cells, what tokenising said, and what the user asked for.
    genes, sources
        int64: columns of the genes, and of those that are read from.
    cells
        int64: how many have a token of each of ``genes``.
    weights
        float64 [N, H]: of layers and heads, with sum 1.
    rank
        Whether edges weigh by rank.
    statistics, replicates
        Groups whose statistics are held at once, and replicates whose sums are.
    states_held
        Blocks of cells whose sums of queries and keys are held.
    batches
        Of the last pass.
    """

    source: AttentionSource
    counts: Counts
    found: TokenSurvey
    how: Conditions
    genes: np.ndarray
    sources: np.ndarray
    cells: np.ndarray
    weights: np.ndarray
    rank: bool = False
    statistics: int = 2
    replicates: int = 0
    states_held: int = 0
    batches: Batches | None = None
    passes: int = 0

    def __post_init__(self) -> None:
        n = self.counts.var.shape[0]
        self.place, self.source_place, self.target_place = np.full((3, n), -1, dtype=np.int64)
        self.place[self.genes] = np.arange(len(self.genes))
        self.source_place[self.sources] = np.arange(len(self.sources))
        # Genes that many cells have lie side by side while sums are made: a cell then touches fewer lines of memory.
        often = np.argsort(-self.cells, kind="stable")
        self.target_place[self.genes[often]] = np.arange(len(self.genes))

    @property
    def row_bytes(self) -> int:
        """What the matrices take of one source."""
        matrices = self.statistics * MATRICES + self.replicates * MATRICES_PER_REPLICATE + BESIDE
        return int(8 * len(self.genes) * matrices)

    def rows_together(self) -> int:
        """Sources whose matrices fit together."""
        room = granted_memory(self.how.memory, self.source.device) * SHARE
        each = self.row_bytes
        if room < each:
            raise ValueError(
                f"one source's edges to {len(self.genes)} genes take {each / 1e6:.3g} MB and may take half of"
                f" memory={self.how.memory!r}: name fewer genes=, or grant more memory="
            )
        return int(min(len(self.sources), room // each))

    def edges(self, rows: np.ndarray, first: int, last: int, label: str) -> Part:
        """Sums over some cells, of the sources ``first`` to ``last`` - 1."""
        strata = Strata.from_codes(np.zeros(self.counts.n_cells, dtype=np.int64), 1)
        edges = GeneEdges(strata, self.target_place, self.source_place, first, last)

        def observe(tokens: Tokens) -> Sequence[Observable]:
            return [
                EdgesOfBatch(
                    self.target_place, self.weights, (first, last), sources=self.source_place, rank=self.rank
                )
            ]

        found = self._run(rows, (last - first) * self.row_bytes, {"edges": edges}, observe, label)["edges"]
        return Part(*(x[:, self.target_place[self.genes]] for x in found))

    def states(self, rows: np.ndarray, label: str) -> np.ndarray:
        """Sums of queries and keys over some cells; see :class:`scfast.observables.GeneQueriesKeys`."""
        totals = self._totals()

        def observe(tokens: Tokens) -> Sequence[Observable]:
            return [GeneQueriesKeys(self.place, self.weights)]

        reserved = (self.states_held + BESIDE_STATES) * totals.nbytes
        return np.asarray(self._run(rows, reserved, {"states": totals}, observe, label)["states"])

    def check_states(self, blocks: int) -> None:
        """Refuse more blocks of cells than the memory holds :meth:`states` of.

        Raises
        ------
        ValueError
            When they take more than the matrices may.
        """
        each = self._totals().nbytes
        self.states_held = 2 * blocks  # of groups, and of all cells
        size = (self.states_held + BESIDE_STATES) * each
        if size > granted_memory(self.how.memory, self.source.device) * SHARE:
            raise ValueError(
                f"queries and keys of {len(self.genes)} genes in {blocks} blocks of cells take {size / 1e9:.3g} GB and"
                f" may take half of memory={self.how.memory!r}: name fewer genes= or layers=, lower n_blocks=, or grant"
                " more"
            )

    def _totals(self) -> GeneStateTotals:
        layers, heads = int(self.weights.any(1).sum()), self.source.n_heads
        strata = Strata.from_codes(np.zeros(self.counts.n_cells, dtype=np.int64), 1)
        return GeneStateTotals(strata, layers, len(self.genes), 2 + 2 * heads * self.source.head_dim)

    def _run(
        self,
        rows: np.ndarray,
        reserved: int,
        analyses: Mapping[str, Accumulator],
        observe: Callable[[Tokens], Sequence[Observable]],
        label: str,
    ) -> dict[str, Any]:
        batches = make_batches(self.source, self.counts, self.found, rows, self.how, results_bytes=reserved)
        results = batches.run(analyses, observe, label)
        self.batches = batches.again(batches.source, results.plan)
        self.passes += 1
        return results


def map_of_means(run: GrnRun, states: np.ndarray, first: int, last: int) -> np.ndarray:
    """Attention of the mean queries on the mean keys, float64 [last - first, G], as scPRINT has it: one softmax."""
    count = states[0, :, 0]
    seen = np.flatnonzero(count)
    heads, out = run.source.n_heads, torch.zeros(last - first, len(count), dtype=torch.float64)
    keys = torch.from_numpy(run.source_place[run.genes[seen]])
    packing = Packing.from_lengths([len(seen)])
    chosen = np.flatnonzero(run.weights.any(1))
    for layer, sums in zip(chosen, states, strict=True):
        q, k = (
            torch.from_numpy((x / count[seen, None]).astype(np.float32)).reshape(len(seen), heads, -1)
            for x in np.split(sums[seen, 2:], 2, axis=1)
        )
        ops.attention_scatter(
            q, k, packing, keys, out, ids_q=torch.from_numpy(seen), rows=(first, last), heads="sum",
            head_weights=torch.from_numpy(run.weights[layer].astype(np.float32)),
            scale=float(sums[seen[0], 1] / sums[seen[0], 0]),
        )  # fmt: skip
    return out.numpy()


def blocks_of_rows(run: GrnRun, together: int) -> Iterator[tuple[int, int]]:
    """(first, last) of the sources that are run together, as even as can be."""
    n = len(run.sources)
    edges = np.linspace(0, n, -(-n // together) + 1).astype(int)
    return zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
