"""One regulator in a network: the genes it reaches, which of them are known, and what they do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy
from scipy import sparse

from scfast.io import read_gmt
from scfast.io.networks import to_network
from scfast.tl._batches import given
from scfast.tl._gene_sets import members_of, over_represented
from scfast.tl._inputs import check_options, commit
from scfast.tl._networks import POOLED, Networks, read_networks
from scfast.tl._several import gene_names, get_genes

if TYPE_CHECKING:
    from anndata import AnnData

#: The difference of two groups among the networks.
CHANGE = "change"


def regulator(
    adata: AnnData,
    gene: str,
    *,
    key: str = "grn",
    network: str | None = None,
    reference: pd.DataFrame | Mapping[str, Sequence[str]] | str | Path | None = None,
    gene_sets: Mapping[str, Sequence[str]] | str | Path | None = None,
    gene_symbols: str | None = None,
    n_genes: int = 10,
    n_edges: int = 20,
    top: int = 50,
    key_added: str = "regulator",
    copy: bool = False,
) -> AnnData | None:
    """The genes that one regulator influences most, whether they are its known targets, and what they are known for.

    Parameters
    ----------
    adata
        After :func:`scfast.tl.grn`, or with any matrix in ``varp``.
    gene
        The regulator: edges from it.
    key
        Name of the networks.
    network
        By which its targets are ranked: ``"all"``, a group, or ``"change"``, by the size of the change. Default: the
        change where two groups were compared, else ``"all"``.
    reference
        Regulators and their targets, as for :func:`scfast.tl.grn_score`: known targets are marked, and its regulons
        tested like gene sets.
    gene_sets
        Name -> genes, or a GMT file.
    gene_symbols
        Column of ``adata.var`` that names are looked up in, and that genes are called by. Default: the index.
    n_genes
        Genes of the heatmap.
    n_edges
        Edges of the graph.
    top
        Genes that are compared with known targets and sets.
    key_added
        Name of the results; what is there under that name is replaced.
    copy
        Return a copy with the results instead of writing them into ``adata``.

    Returns
    -------
    AnnData or None
        ``uns[key_added]``: ``"influenced"`` (DataFrame, the ``n_genes`` strongest: ``gene``, the ``value`` they are
        ranked by, and a column per network), ``"edges"`` (DataFrame: ``source``, ``target``, ``value``, its standard
        error ``se``, ``known``, and the ``sign`` that the reference gives), ``"overlap"`` (known targets among the
        ``top``: ``overlap``, ``known``, ``top``, ``universe``, ``expected``, ``p_value``; nan without a known target),
        ``"enrichment"`` (DataFrame as of :func:`scfast.tl.enrich`, ``kind`` being ``"gene set"`` or ``"regulon"``; the
        universe is the genes with an edge from the regulator), and ``"params"``.

    Raises
    ------
    KeyError, ValueError
        When networks, the gene, or its edges are not there, or nothing can be tested; ``adata`` is unchanged after any
        error.

    Examples
    --------
    >>> import numpy as np, pandas as pd, scfast
    >>> from anndata import AnnData
    >>> adata = AnnData(np.ones((2, 5)), var=pd.DataFrame(index=["TF", "A", "B", "C", "D"]))
    >>> adata.varp["mine"] = np.zeros((5, 5))
    >>> adata.varp["mine"][0, 1:] = 4, 3, 2, 1
    >>> scfast.tl.regulator(adata, "TF", key="mine", reference={"TF": ["A", "B"]}, top=2)
    >>> adata.uns["regulator"]["overlap"]["p_value"].round(3).tolist()
    [0.167]
    """
    check_options(key_added)
    for name, number in (("n_genes", n_genes), ("n_edges", n_edges), ("top", top)):
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise ValueError(f"{name}={number!r} must be a whole number, 1 or more")
    networks = read_networks(adata, key)
    matrices = _matrices(networks)
    chosen = network or (CHANGE if CHANGE in matrices else POOLED)
    if chosen not in matrices:
        raise KeyError(f"network={network!r} is not in the results, which have {list(matrices)}")
    (column,) = get_genes(adata, [gene], gene_symbols).values()
    names = gene_names(adata, gene_symbols)
    row = matrices[chosen][[column]]
    if not row.nnz:
        raise ValueError(
            f"the network {chosen!r} has no edge from {gene}: it is read in too few cells, or was not among sources="
        )
    value = row.toarray().ravel().astype(np.float64)
    within = np.zeros(adata.n_vars, dtype=bool)
    within[row.indices] = True
    ranked = np.flatnonzero(within)
    ranked = ranked[np.argsort(-np.abs(value[ranked]), kind="stable")]
    if len(ranked) <= top and (reference is not None or gene_sets is not None):
        raise ValueError(
            f"top={top}: {gene} has edges to {len(ranked)} genes, so that nothing is left to compare the top with;"
            " name a smaller top"
        )

    table = None if reference is None else to_network(reference)
    signs = (
        {} if table is None else dict(table[table["source"] == gene][["target", "sign"]].to_numpy().tolist())
    )
    index = pd.Index(names)
    if table is not None and not index.isin(pd.concat([table["source"], table["target"]])).any():
        raise ValueError(
            f"the reference names none of the genes: it has {table['source'].iloc[0]!r}, ..., and they are called"
            f" {names[:3].tolist()}, ...; name the column that holds such names with gene_symbols="
        )
    known = index.isin(list(signs))
    error = networks.errors(_place(networks, chosen))
    best = ranked[:n_edges]
    edges = pd.DataFrame(
        {
            "source": gene,
            "target": names[best],
            "value": value[best],
            "se": np.full(len(best), np.nan) if error is None else error[[column]].toarray().ravel()[best],
            "known": known[best],
            "sign": [float(signs.get(name, np.nan)) for name in names[best]],
        }
    )
    influenced = ranked[:n_genes]
    heat = pd.DataFrame({"gene": names[influenced], "value": value[influenced]})
    for name, matrix in matrices.items():
        if name != CHANGE:
            heat[name.replace("/", "|")] = matrix[[column]].toarray().ravel()[influenced]
    uns: dict[str, Any] = {
        "influenced": heat,
        "edges": edges,
        "overlap": _overlap(known & within, within, ranked[:top], table is not None),
        "enrichment": _enriched(names, gene_symbols, within, ranked[:top], gene_sets, table, gene),
        "params": {
            "gene": gene, "key": key, "network": chosen, "top": top, **given(gene_symbols=gene_symbols),
        },
    }  # fmt: skip
    target = adata.copy() if copy else adata
    commit(target, uns={key_added: uns})
    return target if copy else None


def _place(networks: Networks, name: str) -> str:
    if name == CHANGE:
        return f"{networks.key}_change"
    return str(networks.about["networks"].loc[name, "varp"]) if networks.about else networks.key


def _matrices(networks: Networks) -> dict[str, sparse.csr_matrix]:
    """Networks by name, the change among them."""
    found = {name: networks.matrix(name) for name in networks.names}
    place = _place(networks, CHANGE)
    if networks.about and "changes" in networks.about and place in networks.adata.varp:
        found[CHANGE] = sparse.csr_matrix(networks.adata.varp[place])
    return found


def _overlap(known: np.ndarray, within: np.ndarray, best: np.ndarray, tested_at_all: bool) -> pd.DataFrame:
    """One row."""
    n, k, found = int(within.sum()), int(known.sum()), int(known[best].sum())
    p = float(scipy.stats.hypergeom.sf(found - 1, n, k, len(best))) if tested_at_all and k else np.nan
    columns = {"overlap": found, "known": k, "top": len(best), "universe": n}
    return pd.DataFrame([{**columns, "expected": k * len(best) / n, "p_value": p}])


def _enriched(
    names: np.ndarray,
    gene_symbols: str | None,
    within: np.ndarray,
    best: np.ndarray,
    gene_sets: Mapping[str, Sequence[str]] | str | Path | None,
    reference: pd.DataFrame | None,
    gene: str,
) -> pd.DataFrame:
    """Gene sets and regulons among the top, each kind corrected by itself."""
    kinds: dict[str, Mapping[str, Sequence[str]]] = {}
    if gene_sets is not None:
        kinds["gene set"] = gene_sets if isinstance(gene_sets, Mapping) else read_gmt(gene_sets)
    if reference is not None:
        kinds["regulon"] = {
            str(tf): list(part) for tf, part in reference.groupby("source", sort=False)["target"]
        }
    tables = []
    for kind, sets in kinds.items():
        labels, members, _ = members_of(sets, names, gene_symbols)
        found = over_represented(gene, labels, members, within, best, names)
        found.insert(0, "kind", kind)
        tables.append(found)
    if not tables:
        return pd.DataFrame({"kind": [], "gene_set": []})
    return pd.concat(tables, ignore_index=True).drop(columns="group")
