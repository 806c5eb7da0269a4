"""Gene programs: clusters of genes whose states in a model are alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from scfast import ops
from scfast.io import read_gmt
from scfast.tl._batches import given
from scfast.tl._gene_sets import members_of, over_represented
from scfast.tl._inputs import check_options, commit
from scfast.tl._leiden import leiden
from scfast.tl._several import columns_of, gene_names

if TYPE_CHECKING:
    from anndata import AnnData

#: Pairs from which the threshold is taken, where it is given as a share of pairs.
SAMPLED = 10**6


def gene_programs(
    adata: AnnData,
    *,
    key: str = "similarity",
    layer: int = -1,
    threshold: float | None = None,
    share: float = 0.01,
    resolution: float = 1.0,
    min_genes: int = 5,
    gene_sets: Mapping[str, Sequence[str]] | str | Path | None = None,
    gene_symbols: str | None = None,
    seed: int = 0,
    key_added: str = "gene_programs",
    copy: bool = False,
) -> AnnData | None:
    """Leiden clusters of the graph of genes whose states have a cosine above a threshold.

    Parameters
    ----------
    adata
        After :func:`scfast.tl.similarity` with ``genes``: mean states of genes.
    key
        Name of its results.
    layer
        States after so many layers; 0 is the output of the embeddings, negative numbers count from the last one kept.
    threshold
        Least cosine of an edge. Default: the one that ``share`` of the pairs reach.
    share
        Of the pairs of genes.
    resolution
        Of Leiden (Traag et al. 2019): larger, for more and smaller programs.
    min_genes
        Smaller clusters are no programs.
    gene_sets
        Name -> genes, or a GMT file: over-represented sets of every program, against all genes of the graph.
    gene_symbols
        Column of ``adata.var`` that names in ``gene_sets`` are looked up in. Default: the index.
    seed
        Of Leiden.
    key_added
        Name of the results; what is there under that name is replaced.
    copy
        Return a copy with the results instead of writing them into ``adata``.

    Returns
    -------
    AnnData or None
        ``var[key_added]`` (categorical: ``"0"`` for the largest program, ...; nan for genes of none) and
        ``uns[key_added]``: ``"programs"`` (DataFrame: ``genes``, ``edges`` within, mean ``cosine`` of these, and their
        ``names``), ``"enrichment"`` (DataFrame as of :func:`scfast.tl.enrich`, with ``program``), ``"genes"`` (names of
        those of the graph) and ``"params"``, with the ``threshold`` and the number of ``edges``.

    Raises
    ------
    KeyError, ValueError
        When there are no such states, or no pair of genes is alike enough; ``adata`` is unchanged after any error.
    ModuleNotFoundError
        Without igraph and leidenalg (the extra ``networks``).

    Examples
    --------
    >>> import scfast
    >>> adata, model = scfast.datasets.toy()
    >>> scfast.tl.similarity(adata, model, genes="all", layers=[0])
    >>> scfast.tl.gene_programs(adata, share=0.2, gene_sets={"T_CELL": ["CD3D", "CD3E", "IL7R", "CCR7"]})
    >>> sorted(adata.uns["gene_programs"])
    ['enrichment', 'genes', 'params', 'programs']
    """
    check_options(key_added)
    if not 0 < share < 1:
        raise ValueError(f"share={share} is of the pairs of genes: it lies between 0 and 1")
    if resolution <= 0 or min_genes < 1:
        raise ValueError(f"resolution={resolution} and min_genes={min_genes} must be positive")
    if "genes" not in adata.uns.get(key, {}):
        raise KeyError(
            f"adata.uns has no states of genes named {key!r}: run scfast.tl.similarity(..., genes='all',"
            f" key_added={key!r}) first"
        )
    kept = adata.uns[key]["genes"]
    columns = columns_of(adata, kept["names"], f"the states of {key!r}", "scfast.tl.similarity")
    layers = list(map(int, kept["layers"]))
    if not (-len(layers) <= layer < 0 or layer in layers):
        raise ValueError(f"layer={layer} was not kept; there are states after {layers} layers")
    states = torch.from_numpy(np.asarray(kept["states"][layer if layer < 0 else layers.index(layer)]))
    least = _threshold(states, share, seed) if threshold is None else float(threshold)
    if least <= 0:
        raise ValueError(
            f"edges weigh by their cosine, which must be above 0, and {least:.4g} is the least of them:"
            f" {'lower share=' if threshold is None else 'raise threshold='}"
        )
    similar = ops.cosine_threshold(states, least)
    graph = sparse.csr_matrix((similar.values, similar.indices, similar.indptr), shape=(len(states),) * 2)
    if not graph.nnz:
        raise ValueError(f"no two of {len(states)} genes have a cosine of {least:.4g}: lower the threshold")
    cluster = leiden(graph, resolution, seed)
    sizes = np.bincount(cluster)
    large = np.flatnonzero(sizes >= min_genes)
    large = large[np.argsort(-sizes[large], kind="stable")]
    number = np.full(len(sizes), -1)
    number[large] = np.arange(len(large))
    program = number[cluster]

    names = gene_names(adata, gene_symbols)
    labels = np.array([str(i) for i in range(len(large))])
    codes = np.full(adata.n_vars, -1)
    codes[columns] = program
    var = pd.Categorical.from_codes(codes, categories=labels)
    uns: dict[str, Any] = {
        "programs": _table(program, graph, names[columns], labels),
        "genes": np.asarray(kept["names"], dtype=str),
        "enrichment": _enriched(program, columns, names, gene_symbols, gene_sets, labels),
        "params": {
            "key": key, "layer": layer, "threshold": least, "edges": int(graph.nnz), "genes": len(states),
            "resolution": resolution, "min_genes": min_genes, "seed": seed, **given(gene_symbols=gene_symbols),
        },
    }  # fmt: skip
    target = adata.copy() if copy else adata
    commit(target, var={key_added: var}, uns={key_added: uns})
    return target if copy else None


def _threshold(states: torch.Tensor, share: float, seed: int) -> float:
    """The cosine that a share of the pairs reach, from a sample of them."""
    draws, n = np.random.default_rng(seed), len(states)
    one, other = draws.integers(0, n, (2, min(SAMPLED, n * (n - 1))))
    one, other = one[one != other], other[one != other]
    unit = torch.nn.functional.normalize(states, dim=1)
    cosines = [
        (unit[a] * unit[b]).sum(1).numpy()
        for a, b in zip(np.array_split(one, 64), np.array_split(other, 64), strict=True)
    ]
    return float(np.quantile(np.concatenate(cosines), 1 - share))


def _table(
    program: np.ndarray, graph: sparse.csr_matrix, names: np.ndarray, labels: np.ndarray
) -> pd.DataFrame:
    """A row per program."""
    pairs = graph.tocoo()
    rows = []
    for number in range(len(labels)):
        members = np.flatnonzero(program == number)
        within = (program[pairs.row] == number) & (program[pairs.col] == number)
        rows.append(
            {
                "genes": len(members),
                "edges": int(within.sum()),
                "cosine": float(pairs.data[within].mean()) if within.any() else np.nan,
                "names": ";".join(names[members]),
            }
        )
    return pd.DataFrame(
        rows, columns=["genes", "edges", "cosine", "names"], index=pd.Index(labels, name="program")
    )


def _enriched(
    program: np.ndarray,
    columns: np.ndarray,
    names: np.ndarray,
    gene_symbols: str | None,
    gene_sets: Mapping[str, Sequence[str]] | str | Path | None,
    labels: np.ndarray,
) -> pd.DataFrame:
    """Sets among the genes of every program, against all genes of the graph."""
    if gene_sets is None or not len(labels):
        return pd.DataFrame({"program": [], "gene_set": []})
    sets = gene_sets if isinstance(gene_sets, Mapping) else read_gmt(gene_sets)
    titles, members, _ = members_of(sets, names, gene_symbols)
    within = np.zeros(len(names), dtype=bool)
    within[columns] = True
    tables = [
        over_represented(label, titles, members, within, columns[program == number], names)
        for number, label in enumerate(labels)
    ]
    return pd.concat(tables, ignore_index=True).rename(
        columns={"group": "program", "top": "genes_of_program"}
    )
