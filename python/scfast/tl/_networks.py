"""Networks in an AnnData as they are read back: by name, restricted to some pairs, with blocks of cells left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from scfast.tl._several import columns_of

if TYPE_CHECKING:
    from anndata import AnnData

#: The network over all cells.
POOLED = "all"
#: The mean of the groups' networks.
STRATIFIED = "stratified"


@dataclass(frozen=True, eq=False)
class Networks:
    """What :func:`scfast.tl.grn` left under a key, or a matrix in ``varp`` that came from elsewhere.

    Attributes
    ----------
    adata, key
        Where they are.
    about
        ``uns[key]``; empty for a matrix from elsewhere.
    names
        Of the networks.
    genes
        int64: columns of the genes that they are of.
    group
        int64 [cells]: number of each cell's network, -1 for none; None where the only network is that of all cells.
    block
        int64 [cells] of the jackknife, -1 for cells without; None where none are known.
    """

    adata: AnnData
    key: str
    about: Mapping[str, Any]
    names: tuple[str, ...]
    genes: np.ndarray
    group: np.ndarray | None
    block: np.ndarray | None

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the networks of groups."""
        return tuple(name for name in self.names if name != POOLED)

    def matrix(self, name: str) -> sparse.csr_matrix:
        """[genes of adata, genes of adata]: weights of the edges from rows to columns."""
        place = self.about["networks"].loc[name, "varp"] if self.about else self.key
        return sparse.csr_matrix(self.adata.varp[place])

    def errors(self, place: str) -> sparse.csr_matrix | None:
        """Standard errors of the matrix at ``varp[place]``, where there are any."""
        key = f"{place}_se"
        return sparse.csr_matrix(self.adata.varp[key]) if key in self.adata.varp else None

    def weights(self, name: str, sources: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """float64 [R, T] of some pairs, 0 where there is no edge; ``"stratified"``: the mean over the groups."""
        if name == STRATIFIED:
            return np.mean([self.weights(each, sources, targets) for each in self.groups], axis=0)
        return self.matrix(name)[sources][:, targets].toarray().astype(np.float64)

    def cells(self, name: str) -> np.ndarray:
        """Rows of the cells that a network is of."""
        if name in (POOLED, STRATIFIED) or self.group is None:
            inside = np.ones(self.adata.n_obs, dtype=bool) if self.group is None else self.group >= 0
            return np.flatnonzero(inside)
        return np.flatnonzero(self.group == self.groups.index(name))

    def blocks(self, name: str) -> np.ndarray:
        """Numbers of the blocks that its cells are of."""
        assert self.block is not None
        numbers = np.unique(self.block[self.cells(name)])
        return numbers[numbers >= 0]

    def leave_out(
        self, name: str, sources: np.ndarray, targets: np.ndarray, blocks: np.ndarray
    ) -> Iterator[np.ndarray]:
        """The same as :meth:`weights` from all cells but those of one block after another; needs kept blocks."""
        if name == STRATIFIED:
            parts = zip(
                *(self.leave_out(each, sources, targets, blocks) for each in self.groups), strict=True
            )
            yield from (np.mean(part, axis=0) for part in parts)
            return
        kept = self.about["blocks"]
        members = self.groups if name == POOLED and self.groups else (name,)
        tables = [kept[self.about["networks"].loc[each, "varp"]] for each in members]
        at = np.ix_(self._places(kept["sources"], sources), self._places(kept["targets"], targets))
        sums, cells = (
            sum(table[what][(slice(None), *at)].astype(np.float64) for table in tables)
            for what in ("score", "cells")
        )
        held = self.weights(name, sources, targets) != 0  # pairs in too few cells are no edges in any part
        for block in blocks:
            top, bottom = sums.sum(0) - sums[block], cells.sum(0) - cells[block]
            yield np.divide(top, bottom, out=np.zeros_like(top), where=held & (bottom > 0))

    def leaves_out(self, sources: np.ndarray) -> bool:
        """Whether blocks were kept for all of these sources."""
        kept = self.about.get("blocks")
        if kept is None:
            return False
        return bool(np.isin(self.adata.var_names[sources].astype(str), kept["sources"]).all())

    def _places(self, names: np.ndarray, columns: np.ndarray) -> np.ndarray:
        return pd.Index(np.asarray(names, dtype=str)).get_indexer(self.adata.var_names[columns].astype(str))


def read_networks(adata: AnnData, key: str) -> Networks:
    """Find the networks of a key.

    Raises
    ------
    KeyError
        When there are none.
    ValueError
        When a matrix from elsewhere holds nan, or nothing.
    """
    about = adata.uns.get(key, {})
    if "networks" not in about:
        if key not in adata.varp:
            raise KeyError(
                f"key={key!r} is not in adata.varp, which has {list(adata.varp)}: run scfast.tl.grn first, or put a"
                " matrix of genes x genes there, regulators in rows"
            )
        matrix = sparse.csr_matrix(adata.varp[key])
        if not np.isfinite(matrix.data).all() or not matrix.count_nonzero():
            raise ValueError(
                f"adata.varp[{key!r}] holds {'no edge' if not matrix.count_nonzero() else 'nan'}"
            )
        genes = np.arange(adata.n_vars)
        return Networks(adata, key, {}, (POOLED,), genes, None, None)
    names = tuple(map(str, about["networks"].index))
    genes = columns_of(adata, about["genes"], f"the networks {key!r}", "scfast.tl.grn")
    column = about["params"].get("groupby")
    group = None
    if column is not None:
        if column not in adata.obs:
            raise KeyError(f"groupby={column!r} of {key!r} is no longer in adata.obs")
        wanted = pd.Index([name for name in names if name != POOLED])
        group = wanted.get_indexer(adata.obs[column].astype(str))
    block = adata.obs.get(f"{key}_block")
    block = None if block is None else block.to_numpy().astype(np.int64)
    return Networks(adata, key, about, names, np.sort(genes), group, block)
