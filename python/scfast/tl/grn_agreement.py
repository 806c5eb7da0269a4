"""How far networks of several trainings agree, and what they have in common."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy
from scipy import sparse

from scfast.tl._inputs import check_options, commit
from scfast.tl._leiden import leiden
from scfast.tl._networks import POOLED, read_networks
from scfast.tl._several import columns_of
from scfast.tl._tables import spearman

if TYPE_CHECKING:
    from anndata import AnnData

#: Share of the trainings that put two genes together, for them to be together in the consensus.
MAJORITY = 0.5


def grn_agreement(
    adata: AnnData,
    keys: Sequence[str],
    *,
    network: str = POOLED,
    programs: Sequence[str] | None = None,
    min_genes: int = 5,
    seed: int = 0,
    key_added: str = "grn_consensus",
    copy: bool = False,
) -> AnnData | None:
    """Compare the networks, and the gene programs, of models that differ by their seed alone.

    Parameters
    ----------
    adata
        With the results of two or more runs of :func:`scfast.tl.grn`, each under its own key.
    keys
        Their names.
    network
        Which network of each.
    programs
        Names of as many results of :func:`scfast.tl.gene_programs`.
    min_genes
        Least size of a consensus program.
    seed
        Of its clusters.
    key_added
        Name of the results; what is there under that name is replaced.
    copy
        Return a copy with the results instead of writing them into ``adata``.

    Returns
    -------
    AnnData or None
        ``varp[key_added]``: float32 CSR, the mean over the networks of the share of edges that an edge is stronger
        than, for edges that all have. ``uns[key_added]``: ``"pairs"`` (DataFrame, a row per pair: rank correlation
        ``edges`` over the edges that all have, and adjusted Rand index ``programs`` over the genes that are in all
        graphs, those of no program each alone) and ``"params"``. With programs ``var[key_added]``: consensus programs,
        Leiden clusters of genes that most of the trainings put together.

    Raises
    ------
    KeyError, ValueError
        When results are not there, are fewer than two, or share no edge; ``adata`` is unchanged after any error.

    Examples
    --------
    >>> import numpy as np, pandas as pd, scfast
    >>> from anndata import AnnData
    >>> adata = AnnData(np.ones((2, 3)), var=pd.DataFrame(index=list("ABC")))
    >>> adata.varp["one"] = np.array([[0, 3, 2], [1, 0, 4], [5, 6, 0]])
    >>> adata.varp["two"] = adata.varp["one"] ** 2
    >>> scfast.tl.grn_agreement(adata, ["one", "two"])
    >>> adata.uns["grn_consensus"]["pairs"]["edges"].tolist()
    [1.0]
    """
    check_options(key_added)
    keys = [keys] if isinstance(keys, str) else list(keys)
    if len(keys) < 2 or len(set(keys)) < len(keys):
        raise ValueError(f"keys={keys}: two or more different networks are needed")
    if programs is not None and len(programs) != len(keys):
        raise ValueError(
            f"{len(programs)} programs for {len(keys)} networks: name one for each, in this order"
        )
    matrices = []
    for key in keys:
        networks = read_networks(adata, key)
        if network not in networks.names:
            raise KeyError(f"network={network!r} is not in {key!r}, which has {list(networks.names)}")
        matrices.append(networks.matrix(network))
    shared = matrices[0] != 0
    for matrix in matrices[1:]:
        shared = shared.multiply(matrix != 0)
    place = shared.tocoo()
    if not place.nnz:
        raise ValueError(f"the networks {keys} have no edge in common: were they made of the same genes?")
    weights = [np.asarray(matrix[place.row, place.col]).ravel() for matrix in matrices]
    ranks = np.mean([(scipy.stats.rankdata(x) - 1) / max(len(x) - 1, 1) for x in weights], axis=0)
    # a rank of 0 is an edge too
    values = np.maximum(ranks, np.finfo(np.float32).tiny).astype(np.float32)
    consensus = sparse.csr_matrix((values, (place.row, place.col)), shape=shared.shape)
    labels = None if programs is None else [_labels(adata, name) for name in programs]
    graphs = None if programs is None else np.all([_in_graph(adata, name) for name in programs], axis=0)
    pairs = []
    for a, b in combinations(range(len(keys)), 2):
        row: dict[str, Any] = {"one": keys[a], "other": keys[b], "edges": spearman(weights[a], weights[b])}
        if labels is not None:
            row["programs"] = adjusted_rand(labels[a][graphs], labels[b][graphs])
        pairs.append(row)
    uns = {
        "pairs": pd.DataFrame(pairs),
        "params": {"keys": np.array(keys, dtype=str), "network": network, "edges": int(place.nnz)},
    }
    written: dict[str, Any] = {"varp": {key_added: consensus}, "uns": {key_added: uns}}
    if labels is not None:
        written["var"] = {key_added: _together(labels, min_genes, seed)}
        uns["params"]["programs"] = np.array(programs, dtype=str)
    target = adata.copy() if copy else adata
    commit(target, **written)
    return target if copy else None


def adjusted_rand(one: np.ndarray, other: np.ndarray) -> float:
    """Adjusted Rand index (Hubert & Arabie 1985) of two clusterings, int64 [n]; -1 is a cluster of its own each time.

    Examples
    --------
    >>> import numpy as np
    >>> adjusted_rand(np.array([0, 0, 1, 1]), np.array([5, 5, 2, 2]))
    1.0
    """
    one, other = (_alone(x) for x in (one, other))
    table = sparse.coo_matrix((np.ones(len(one), dtype=np.int64), (one, other))).tocsr()

    def pairs(counts: np.ndarray) -> float:
        counts = np.asarray(counts, dtype=np.float64)
        return float((counts * (counts - 1) / 2).sum())

    both, rows, columns = pairs(table.data), pairs(table.sum(1)), pairs(table.sum(0))
    n = len(one)
    expected, most = rows * columns / (n * (n - 1) / 2), (rows + columns) / 2
    return 1.0 if most == expected else (both - expected) / (most - expected)


def _alone(labels: np.ndarray) -> np.ndarray:
    """Labels from 0, without gaps; every -1 has one of its own."""
    labels = labels.astype(np.int64)
    alone = labels < 0
    labels[alone] = labels.max(initial=-1) + 1 + np.arange(alone.sum())
    return np.unique(labels, return_inverse=True)[1]


def _labels(adata: AnnData, name: str) -> np.ndarray:
    if name not in adata.var or "genes" not in adata.uns.get(name, {}):
        raise KeyError(
            f"programs {name!r}, and the genes of their graph, are not there: run scfast.tl.gene_programs first"
        )
    return adata.var[name].cat.codes.to_numpy().astype(np.int64)


def _in_graph(adata: AnnData, name: str) -> np.ndarray:
    """Bool [genes]: those that could have been in a program."""
    found = np.zeros(adata.n_vars, dtype=bool)
    genes = adata.uns[name]["genes"]
    found[columns_of(adata, genes, f"the programs {name!r}", "scfast.tl.gene_programs")] = True
    return found


def _together(labels: Sequence[np.ndarray], min_genes: int, seed: int) -> pd.Categorical:
    """Programs of the genes that more than half of the clusterings put together."""
    n, total = len(labels[0]), None
    for each in labels:
        rows = np.flatnonzero(each >= 0)
        member = sparse.csr_matrix(
            (np.ones(len(rows)), (rows, each[rows])), shape=(n, each.max(initial=0) + 1)
        )
        total = member @ member.T if total is None else total + member @ member.T
    assert total is not None
    graph = sparse.triu(total, 1).tocsr()
    graph.data = np.where(graph.data / len(labels) > MAJORITY, graph.data / len(labels), 0)
    graph.eliminate_zeros()
    cluster = leiden(graph, 1.0, seed)
    sizes = np.bincount(cluster, minlength=n)
    large = np.flatnonzero(sizes >= min_genes)
    large = large[np.argsort(-sizes[large], kind="stable")]
    number = np.full(len(sizes), -1)
    number[large] = np.arange(len(large))
    return pd.Categorical.from_codes(number[cluster], categories=[str(i) for i in range(len(large))])
