"""Gene programs' share of attention, against their share of the genes that cells express."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy
from scipy import sparse

from scfast.analyses import GeneShares, Strata
from scfast.analyses.gene_shares import shares
from scfast.tl._batches import given
from scfast.tl._inputs import Groups, check_options, check_share, commit, get_groups
from scfast.tl._kept_scores import KeptScores, kept_scores, own_groupby
from scfast.tl._resampling import bins_of, bootstrap, permuted
from scfast.tl._several import gene_names
from scfast.tl._tables import categorical

if TYPE_CHECKING:
    from anndata import AnnData

#: What genes without a cluster form.
UNASSIGNED = "unassigned"


def prevalence(
    adata: AnnData,
    clusters: Mapping[str, str],
    *,
    keys: str | Sequence[str] = "rollout",
    groupby: str | None = None,
    replicate_key: str | None = None,
    gene_symbols: str | None = None,
    n_bootstrap: int = 1000,
    n_permutations: int = 1000,
    n_bins: int = 5,
    level: float = 0.95,
    key_added: str = "prevalence",
    seed: int = 0,
    copy: bool = False,
) -> AnnData | None:
    """Whether gene programs get more of a model's attention than their share of the cell.

    Of every cell, a cluster's share by frequency is the share of the cell's gene tokens that belong to it; its share by
    attention is the share of the scores of the cell's genes. The difference, averaged over a cell type, says what the
    model prefers beyond what is expressed.

    Parameters
    ----------
    adata
        After :func:`scfast.tl.rollout`, or another tool that keeps the scores of every cell; with several models, after
        one run for each, under different names.
    clusters
        Gene -> cluster, such as :func:`scfast.io.read_clusters` reads from the Human Protein Atlas. Genes without one
        form ``"unassigned"``.
    keys
        Name of those results, or several: one for each model.
    groupby
        Column of ``adata.obs`` with the cell types. Default: the one that the first of ``keys`` was computed with.
    replicate_key
        Column of ``adata.obs`` (donor, batch): intervals are then between replicates, else between cells.
    gene_symbols
        Column of ``adata.var`` that the genes of ``clusters`` are looked up in. Default: the index.
    n_bootstrap
        Samples of the bootstrap that gives the interval.
    n_permutations
        Permutations of the null: clusters are permuted over genes that are alike in detection and mean rank, in the
        same way for all cells.
    n_bins
        Bins of detection and of mean rank, each, within which genes are alike.
    level
        Of the intervals.
    key_added
        Name of the results; what is there under that name is replaced.
    seed
        Of bootstrap and permutations.
    copy
        Return a copy with the results instead of writing them into ``adata``.

    Returns
    -------
    AnnData or None
        ``uns[key_added]``:

        ``"table"``
            DataFrame, one row per model (its key), group and cluster, largest difference first: ``genes`` (of the
            cluster, with a token in any cell), ``attention`` and ``frequency`` (mean shares), ``difference`` with
            ``low`` and ``high`` (bootstrap percentiles; nan for fewer than two cells or replicates), ``null_mean``,
            ``null_low`` and ``null_high`` (of the permutations), ``p_value`` (two-sided, how often a permutation is as
            far from their mean) and ``q_value`` (Benjamini & Hochberg 1995, over the clusters of a model and group).
        ``"groups"``
            DataFrame, one row per model and group: ``cells``, ``replicates``, and the mean share of genes that have a
            cluster, ``assigned``.
        ``"params"``
            The arguments, and how many genes of ``clusters`` were not found.

    Raises
    ------
    KeyError
        When results, columns or all genes of the clusters are not there.
    ValueError
        For numbers that make no sense, and groups without a scored cell; ``adata`` is unchanged after any error.

    Examples
    --------
    >>> import numpy as np, pandas as pd, scfast
    >>> from anndata import AnnData
    >>> from scipy import sparse
    >>> genes = list("ABCD")
    >>> adata = AnnData(np.ones((2, 4)), var=pd.DataFrame(index=genes))
    >>> adata.layers["rollout"] = sparse.csr_matrix([[0.5, 0.2, 0.2, 0.1], [0.6, 0.2, 0.2, 0.0]])
    >>> ranks = pd.DataFrame({"gene": genes, "rank": [1.0, 2, 3, 4], "cells": [2, 2, 2, 1]})
    >>> adata.uns["rollout"] = {"table": ranks, "params": {}}  # as tl.rollout leaves them
    >>> scfast.tl.prevalence(adata, {"A": "immune", "B": "immune", "C": "other"}, n_bins=1)
    >>> adata.uns["prevalence"]["table"][["cluster", "attention", "frequency"]].round(3).values.tolist()
    [['immune', 0.75, 0.583], ['unassigned', 0.05, 0.125], ['other', 0.2, 0.292]]
    """
    check_options(key_added)
    check_share("level", level)
    for name, number in (
        ("n_bootstrap", n_bootstrap),
        ("n_permutations", n_permutations),
        ("n_bins", n_bins),
    ):
        if not isinstance(number, int) or number < 1:
            raise ValueError(f"{name}={number!r} must be a whole number, 1 or more")
    names = [keys] if isinstance(keys, str) else list(keys)
    if not names or len(set(names)) < len(names):
        raise ValueError(f"keys={names} must name at least one result, and none twice")
    kept = {key: kept_scores(adata, key) for key in names}
    column = own_groupby(kept[names[0]], groupby)
    groups = get_groups(adata, column, replicate_key)
    program, missing = _assign(clusters, gene_names(adata, gene_symbols))

    tables, abouts = [], []
    for key, scores in kept.items():
        draws = np.random.default_rng(seed)
        measured = _measure(key, scores, groups)
        low, high = _intervals(scores, measured, groups, program, n_bootstrap, level, draws)
        null = _null(measured, program, _alike(key, scores, measured, n_bins), n_permutations, draws)
        tables += _tables(key, groups, measured, program, low, high, null, level)
        abouts.append(_about(key, groups, measured, program))
    uns: dict[str, Any] = {
        "table": categorical(pd.concat(tables, ignore_index=True), "model", "group", "cluster"),
        "groups": categorical(pd.concat(abouts, ignore_index=True), "model", "group"),
        "params": {
            "keys": np.array(names, dtype=str), "n_bootstrap": n_bootstrap, "n_permutations": n_permutations,
            "n_bins": n_bins, "level": level, "seed": seed, "genes_not_found": missing,
            **given(groupby=column, replicate_key=replicate_key, gene_symbols=gene_symbols),
        },
    }  # fmt: skip
    target = adata.copy() if copy else adata
    commit(target, uns={key_added: uns})
    return target if copy else None


@dataclass(frozen=True, eq=False)
class _Programs:
    """Clusters of genes: ``of_gene`` int64 [genes]; ``names``, the last for genes without one."""

    of_gene: np.ndarray
    names: list[str]

    def sums(self, values: np.ndarray, of_gene: np.ndarray | None = None) -> np.ndarray:
        """[..., K]: sums over the genes of each cluster of values [..., genes]."""
        labels = self.of_gene if of_gene is None else of_gene
        rows = values.reshape(-1, values.shape[-1])
        found = np.stack([np.bincount(labels, row, minlength=len(self.names)) for row in rows])
        return found.reshape(*values.shape[:-1], len(self.names))

    @property
    def members(self) -> sparse.csr_matrix:
        """CSR [genes, K]: one in the column of a gene's cluster."""
        n = len(self.of_gene)
        return sparse.csr_matrix((np.ones(n), self.of_gene, np.arange(n + 1)), shape=(n, len(self.names)))


@dataclass(frozen=True, eq=False)
class _Measured:
    """Sums of shares over the cells of each stratum, and mean shares [groups, genes] of each group."""

    sums: GeneShares
    attention: np.ndarray
    frequency: np.ndarray
    cells: np.ndarray
    detecting: np.ndarray


def _assign(clusters: Mapping[str, str], names: np.ndarray) -> tuple[_Programs, int]:
    """The cluster of each column, and how many genes of ``clusters`` are not there."""
    if not len(clusters):
        raise ValueError("clusters gives no gene a cluster")
    given_names = {str(gene): str(cluster) for gene, cluster in clusters.items()}
    if any(not cluster or cluster == UNASSIGNED for cluster in given_names.values()):
        raise ValueError(
            f"clusters: a cluster has a name, other than {UNASSIGNED!r}; leave genes without one out"
        )
    found = [given_names.get(gene) for gene in names]
    there = sorted({cluster for cluster in found if cluster is not None})
    if not there:
        raise KeyError(
            f"clusters: none of its {len(given_names)} genes ({list(given_names)[:3]}, ...) is among the cells' genes"
            f" ({names[:3].tolist()}, ...); name the column that holds such names with gene_symbols="
        )
    code = {cluster: number for number, cluster in enumerate([*there, UNASSIGNED])}
    of_gene = np.array(
        [code[UNASSIGNED if cluster is None else cluster] for cluster in found], dtype=np.int64
    )
    return _Programs(of_gene, list(code)), len(given_names.keys() - set(names))


def _measure(key: str, scores: KeptScores, groups: Groups) -> _Measured:
    sums = scores.gene_shares(groups.strata)
    result = sums.result()
    empty = [name for name, cells in zip(groups.names, result.cells, strict=True) if not cells]
    if empty:
        raise ValueError(
            f"{key!r} has no scores of any cell of the groups {empty}: run the tool on them, or remove them"
        )
    return _Measured(sums, result.attention, result.frequency, result.cells, result.detecting)


def _intervals(
    scores: KeptScores, measured: _Measured, groups: Groups, program: _Programs, n: int, level: float,
    draws: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Ends of the intervals of the differences, float64 [groups, K] each."""
    strata, ends = groups.strata, [(1 - level) / 2, (1 + level) / 2]
    found = np.full((2, strata.n_groups, len(program.names)), np.nan)
    members = program.members
    for group in range(strata.n_groups):
        if strata.replicated:
            units = np.flatnonzero((strata.group == group) & (measured.sums.sums["cells"] > 0))
            held = measured.sums.sums["attention"][units] - measured.sums.sums["frequency"][units]
            blocks: Any = [(program.sums(held), measured.sums.sums["cells"][units])]
            sizes = [len(units)]
        else:
            rows = _scored(scores, strata, group)
            blocks, sizes = (
                _cells(scores, rows, members),
                [len(block.rows) for block, _ in scores.blocks(rows)],
            )
        if sum(sizes) >= 2:
            found[:, group] = np.quantile(bootstrap(blocks, sizes, n, draws), ends, axis=0)
    return found[0], found[1]


def _scored(scores: KeptScores, strata: Strata, group: int) -> np.ndarray:
    """Rows of the group's cells that have a share: those with a score above 0."""
    rows = np.flatnonzero(strata.of_row == group)
    return rows[np.asarray(scores.matrix.sum(axis=1)).ravel()[rows] > 0]


def _cells(
    scores: KeptScores, rows: np.ndarray, members: sparse.csr_matrix
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Differences of some cells at a time, float64 [m, K]."""
    for block, tokens in scores.blocks(rows):
        found = shares(sparse.csr_matrix(block.values), tokens)
        held = sparse.csr_matrix(
            (found.attention - found.frequency, (found.cell, found.gene)), shape=block.values.shape
        )
        yield (held @ members).toarray(), np.ones(len(block.rows))


def _alike(key: str, scores: KeptScores, measured: _Measured, n_bins: int) -> np.ndarray:
    """Bins of detection and mean rank, int64 [genes]; -1 for genes without a token."""
    table = scores.results["table"]
    if not {"gene", "rank", "cells"} <= set(table):
        raise KeyError(f"uns[{key!r}]['table'] lacks the ranks of the genes: run the tool again")
    weighted = (table["rank"] * table["cells"]).groupby(table["gene"].astype(str)).sum()
    rank = weighted / table["cells"].groupby(table["gene"].astype(str)).sum()
    of_gene = rank.reindex(scores.genes).to_numpy(dtype=np.float64)
    detection = measured.detecting.sum(0) / measured.cells.sum()
    bins = np.full(len(detection), -1, dtype=np.int64)
    held = np.flatnonzero((detection > 0) & np.isfinite(of_gene))
    bins[held] = bins_of([detection[held], of_gene[held]], n_bins)
    return bins


def _null(
    measured: _Measured, program: _Programs, bins: np.ndarray, n: int, draws: np.random.Generator
) -> np.ndarray:
    """Differences under permuted clusters, float64 [n, groups, K]."""
    held = np.flatnonzero(bins >= 0)
    difference = (measured.attention - measured.frequency)[:, held]
    labels, bins = program.of_gene[held], bins[held]
    return np.stack([program.sums(difference, permuted(labels, bins, draws)) for _ in range(n)])


def _tables(
    key: str, groups: Groups, measured: _Measured, program: _Programs, low: np.ndarray, high: np.ndarray,
    null: np.ndarray, level: float,
) -> list[pd.DataFrame]:  # fmt: skip
    """A table for each group, largest difference first, of the clusters that have a gene with a token."""
    genes = program.sums((measured.detecting.sum(0) > 0).astype(np.float64)).astype(np.int64)
    held = np.flatnonzero(genes)
    attention, frequency = program.sums(measured.attention), program.sums(measured.frequency)
    difference = attention - frequency
    centre = null.mean(0)
    ends = np.quantile(null, [(1 - level) / 2, (1 + level) / 2], axis=0)
    # A permutation that changes nothing gives the same up to rounding, and counts.
    further = np.abs(null - centre) >= np.abs(difference - centre) * (1 - 1e-9)
    p_value = (1 + further.sum(0)) / (1 + len(null))
    tables = []
    for group, name in enumerate(groups.names):
        table = pd.DataFrame(
            {
                "model": key,
                "group": name,
                "cluster": [program.names[number] for number in held],
                "genes": genes[held],
                "attention": attention[group, held],
                "frequency": frequency[group, held],
                "difference": difference[group, held],
                "low": low[group, held],
                "high": high[group, held],
                "null_mean": centre[group, held],
                "null_low": ends[0, group, held],
                "null_high": ends[1, group, held],
                "p_value": p_value[group, held],
                "q_value": scipy.stats.false_discovery_control(p_value[group, held]),
            }
        )
        tables.append(table.sort_values("difference", ascending=False, kind="stable", ignore_index=True))
    return tables


def _about(key: str, groups: Groups, measured: _Measured, program: _Programs) -> pd.DataFrame:
    strata = groups.strata
    units = (measured.sums.sums["cells"] > 0) & strata.replicated
    return pd.DataFrame(
        {
            "model": key,
            "group": groups.names,
            "cells": measured.cells,
            "replicates": strata.by_group(units.astype(np.int64)),
            "assigned": program.sums(measured.frequency)[:, :-1].sum(1),
        }
    )
