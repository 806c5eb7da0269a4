"""Over-representation of gene sets among chosen genes, by the hypergeometric distribution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import scipy
from scipy import sparse


def members_of(
    sets: Mapping[str, Sequence[str]], names: np.ndarray, gene_symbols: str | None
) -> tuple[list[str], sparse.csr_matrix, int]:
    """Names of the sets; which genes each holds, int64 CSR [sets, genes]; and how many of their genes are not there."""
    if not sets:
        raise ValueError("gene_sets holds no set")
    wrong = [name for name, genes in sets.items() if isinstance(genes, str)]
    if wrong:
        raise TypeError(f"gene_sets[{wrong[0]!r}] is one text: give a list of genes")
    listed = pd.DataFrame(
        [(place, str(gene)) for place, genes in enumerate(sets.values()) for gene in genes],
        columns=["set", "gene"],
    ).drop_duplicates()
    columns = pd.DataFrame({"gene": names, "column": np.arange(len(names))})
    found = listed.merge(columns, on="gene")
    if not len(found):
        where = "adata.var_names" if gene_symbols is None else f"adata.var[{gene_symbols!r}]"
        raise KeyError(
            f"gene_sets: none of their {listed['gene'].nunique()} genes ({listed['gene'].head(3).tolist()}, ...) is in"
            f" {where}, which holds {names[:3].tolist()}, ...; name the column that holds such names with gene_symbols="
        )
    held = sparse.csr_matrix(
        (np.ones(len(found), dtype=np.int64), (found["set"], found["column"])), shape=(len(sets), len(names))
    )
    missing = listed["gene"].nunique() - found["gene"].nunique()
    return [str(name) for name in sets], held, missing


def over_represented(
    group: str,
    labels: list[str],
    members: sparse.csr_matrix,
    within: np.ndarray,
    best: np.ndarray,
    names: np.ndarray,
) -> pd.DataFrame:
    """A row per set that has genes in the universe, smallest p first."""
    sizes = members @ within.astype(np.int64)
    in_top = members[:, best].tocsr()
    overlap = np.diff(in_top.indptr)
    universe, tested = int(within.sum()), np.flatnonzero(sizes)
    log_p = np.zeros(len(labels))
    some = np.flatnonzero(overlap)  # at least none is certain: p = 1
    at_least = scipy.stats.hypergeom.logsf(overlap[some] - 1, universe, sizes[some], len(best))
    log_p[some] = np.minimum(0.0, at_least)
    expected = sizes[tested] * len(best) / universe
    p = np.exp(log_p[tested])
    in_top.sort_indices()
    found = [names[best[in_top.indices[in_top.indptr[i] : in_top.indptr[i + 1]]]] for i in tested]
    table = pd.DataFrame(
        {
            "group": group,
            "gene_set": [labels[i] for i in tested],
            "overlap": overlap[tested],
            "set_size": sizes[tested],
            "top": len(best),
            "universe": universe,
            "expected": expected,
            "ratio": overlap[tested] / expected,
            "p_value": p,
            "log10_p": log_p[tested] / np.log(10),
            "q_value": scipy.stats.false_discovery_control(p) if len(p) else p,
            "genes": [";".join(genes) for genes in found],
        }
    )
    return table.sort_values(["log10_p", "ratio"], ascending=[True, False], kind="stable", ignore_index=True)
