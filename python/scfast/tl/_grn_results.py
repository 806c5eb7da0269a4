"""What stays of a network: sparse matrices, the strength of genes, and the edges that change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import scipy
from scipy import sparse

from scfast.analyses._arrays import ratio
from scfast.tl._edge_statistics import EdgeStatistics
from scfast.tl._jackknife import interval

#: What an edge takes in two sparse matrices: float32 and int32 each.
BYTES_PER_EDGE = 16


class NetworkParts:
    """The edges of one network, collected block of sources by block of sources.

    Parameters
    ----------
    top
        Edges kept of every source; None: all.
    """

    def __init__(self, top: int | None) -> None:
        self.top = top
        self._parts: list[tuple[np.ndarray, ...]] = []
        self._strength: list[tuple[np.ndarray, ...]] = []

    def add(self, first: int, mean: np.ndarray, error: np.ndarray, own: np.ndarray) -> None:
        """Add the sources from ``first`` on: ``mean`` and ``error`` [S, G], nan where there is no edge.

        ``own`` int64 [S] is each source's own place among the genes: an edge to itself is none.
        """
        size = np.where(np.isnan(mean), -np.inf, np.abs(mean))
        size[np.arange(len(own)), own] = -np.inf
        if self.top is not None and self.top < mean.shape[1]:
            best = np.argsort(-size, axis=1, kind="stable")[:, : self.top]
            kept = np.zeros(mean.shape, dtype=bool)
            np.put_along_axis(kept, best, True, axis=1)
            kept &= np.isfinite(size)
        else:
            kept = np.isfinite(size)
        row, column = (place.astype(np.int32) for place in np.nonzero(kept))
        values = (x[kept].astype(np.float32) for x in (mean, error))
        self._parts.append((row + np.int32(first), column, *values))
        valid = np.isfinite(size)
        weight = np.where(valid, mean, 0)
        self._strength.append((weight.sum(1), valid.sum(1), weight.sum(0), valid.sum(0)))

    def matrices(
        self, sources: np.ndarray, genes: np.ndarray, n_vars: int
    ) -> tuple[sparse.csr_matrix, sparse.csr_matrix]:
        """Weights and standard errors, [genes of adata, genes of adata]; the edges are let go of, one kind by one.

        Sources and genes ascend, and so do the edges: they are in the order of CSR as they are.
        """
        parts, self._parts = self._parts, []
        row, column, *values = ([part[i] for part in parts] for i in range(4))
        del parts
        starts = np.zeros(n_vars + 1, dtype=np.int64)
        for part in row:
            starts[1:] += np.bincount(sources[part], minlength=n_vars)
        row.clear()
        starts = np.cumsum(starts)
        places = genes.astype(np.int32)[np.concatenate(column)]
        column.clear()
        return tuple(  # type: ignore[return-value]
            sparse.csr_matrix((_joined(x), places.copy(), starts), shape=(n_vars, n_vars)) for x in values
        )

    def strength(self, n_sources: int) -> tuple[np.ndarray, np.ndarray]:
        """Mean weight of each source's edges [S], and of the edges to each gene [G]; nan without any."""
        out, n_out, into, n_into = zip(*self._strength, strict=True)
        return (
            ratio(np.concatenate(out), np.concatenate(n_out)),
            ratio(np.sum(into, axis=0), np.sum(n_into, axis=0)),
        )


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    """One array of them; the parts are let go of."""
    joined = np.concatenate(parts)
    parts.clear()
    return joined


class Changes:
    """The edges that differ most between two groups.

    Parameters
    ----------
    n_edges
        How many are tabled.
    """

    def __init__(self, n_edges: int) -> None:
        self.n_edges = n_edges
        self._tables: list[pd.DataFrame] = []
        self._p: list[np.ndarray] = []

    def add(
        self,
        first: int,
        before: EdgeStatistics,
        after: EdgeStatistics,
        min_cells: int,
        own: np.ndarray,
        covariance: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Add a block of sources; returns the change and its standard error [S, G].

        ``covariance`` [S, G] of the two means, where groups share replicates. Degrees of freedom are counted by the
        blocks that hold an edge: one fewer than each mean has, or than the fewer of those shared.
        """
        old, new = before.mean(min_cells), after.mean(min_cells)
        change = new - old
        change[np.arange(len(own)), own] = np.nan
        variance = before.error(min_cells) ** 2 + after.error(min_cells) ** 2
        if covariance is None:
            blocks = before.held + after.held - 1
        else:
            variance -= 2 * covariance
            blocks = np.minimum(before.held, after.held)
        error = np.sqrt(np.maximum(variance, 0))
        with np.errstate(divide="ignore", invalid="ignore"):
            p = 2 * scipy.stats.t.sf(np.abs(change) / error, blocks - 1)
        row, column = np.nonzero(np.isfinite(change))
        size = np.abs(change[row, column])
        best = np.argsort(-size, kind="stable")[: self.n_edges]
        at = (row[best], column[best])
        low, high = interval(change[at], error[at], blocks[at])
        columns = {"row": row[best] + first, "column": column[best], "before": old[at], "after": new[at]}
        columns |= {"change": change[at], "se": error[at], "low": low, "high": high, "p_value": p[at]}
        self._tables.append(pd.DataFrame(columns))
        self._p.append(p[row, column].astype(np.float32))
        return change, error

    def table(self, sources: np.ndarray, genes: np.ndarray, names: np.ndarray) -> pd.DataFrame:
        """A row per edge, the largest change first; q over all edges that were compared."""
        table = pd.concat(self._tables, ignore_index=True)
        every = np.nan_to_num(np.concatenate(self._p).astype(np.float64), nan=1.0)
        q = scipy.stats.false_discovery_control(every)
        order = np.argsort(every, kind="stable")
        place = np.searchsorted(every[order], np.float32(table["p_value"].fillna(1.0)), side="left")
        table["q_value"] = q[order][np.minimum(place, len(q) - 1)]
        table.insert(0, "source", names[sources[table.pop("row").to_numpy()]])
        table.insert(1, "target", names[genes[table.pop("column").to_numpy()]])
        order = np.argsort(-table["change"].abs().to_numpy(), kind="stable")[: self.n_edges]
        return table.iloc[order].reset_index(drop=True)


def strength_table(
    parts: dict[str, NetworkParts], names: np.ndarray, sources: np.ndarray, genes: np.ndarray
) -> Any:
    """DataFrame: a row per network and gene."""
    tables = []
    for network, each in parts.items():
        out, into = each.strength(len(sources))
        read = np.full(len(genes), np.nan)
        read[np.searchsorted(genes, sources)] = out
        columns = {"network": network, "gene": names[genes], "out": read, "in": into}
        tables.append(pd.DataFrame(columns))
    table = pd.concat(tables, ignore_index=True)
    for name in ("network", "gene"):
        table[name] = pd.Categorical(table[name], categories=list(dict.fromkeys(table[name])))
    return table
