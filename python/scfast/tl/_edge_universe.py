"""The pairs of genes that a network is judged on: regulators of a reference, and all genes that it knows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd


@dataclass(frozen=True, eq=False)
class EdgeUniverse:
    """Ordered pairs of a regulator and another gene, fixed by the reference and not by what was found.

    Attributes
    ----------
    sources, targets
        int64 [R], [T]: columns of the regulators, and of the genes that the reference names at either end.
    edges
        bool [R, T]: which pairs are edges of the reference.
    own
        int64 [R]: the regulator's place among the targets.
    not_found
        Genes of the reference that are not among the network's.
    """

    sources: np.ndarray
    targets: np.ndarray
    edges: np.ndarray
    own: np.ndarray
    not_found: int

    @property
    def inside(self) -> np.ndarray:
        """All pairs but those of a gene with itself, bool [R, T]."""
        return self.sources[:, None] != self.targets

    @property
    def density(self) -> float:
        """Share of the pairs that are edges."""
        return float(self.edges.sum() / self.inside.sum())

    def without(self, left_out: np.ndarray) -> np.ndarray:
        """The pairs of the regulators that are not ``left_out``, bool [R], as bool [R, T]."""
        return self.inside & ~left_out[:, None]


def edge_universe(reference: pd.DataFrame, names: np.ndarray, genes: np.ndarray, where: str) -> EdgeUniverse:
    """The universe of a reference among the genes of a network.

    A regulator belongs to it if it has a target among the network's genes. A name that stands for several columns
    means all of them.

    Parameters
    ----------
    reference
        ``source``, ``target``; see :func:`scfast.io.read_network`.
    names
        str [columns]: what the reference's names are compared with.
    genes
        int64: columns of the genes that the network is of.
    where
        Of the names, for messages.

    Raises
    ------
    ValueError
        When the reference has no edge among these genes, or all pairs are edges.
    """
    columns = pd.DataFrame({"name": names[genes], "column": genes})
    others = reference[reference["source"] != reference["target"]]  # two columns of one name are one gene
    found = others.merge(columns.add_prefix("source_"), left_on="source", right_on="source_name").merge(
        columns.add_prefix("target_"), left_on="target", right_on="target_name"
    )
    source, target = found["source_column"].to_numpy(), found["target_column"].to_numpy()
    source, target = source[source != target], target[source != target]
    known = pd.unique(pd.concat([reference["source"], reference["target"]]))
    overlap = pd.Index(known).isin(names[genes])
    if not len(source):
        raise ValueError(
            f"the reference has no edge between two of the network's {len(genes)} genes ({overlap.sum()} of its"
            f" {len(known)} names are there): it names {known[:3].tolist()}, ..., {where} holds"
            f" {names[genes][:3].tolist()}, ...; name the column that holds such names with gene_symbols="
        )
    sources = np.unique(source)
    targets = np.union1d(sources, target)
    edges = np.zeros((len(sources), len(targets)), dtype=bool)
    edges[np.searchsorted(sources, source), np.searchsorted(targets, target)] = True
    universe = EdgeUniverse(
        sources, targets, edges, np.searchsorted(targets, sources), int(len(known) - overlap.sum())
    )
    if universe.density == 1:
        raise ValueError(
            f"all {edges.sum()} pairs of the {len(sources)} regulators and {len(targets)} genes that network and"
            " reference share are edges of the reference: nothing can be told apart; give a larger reference or more"
            " genes"
        )
    return universe
