"""Gene sets among the genes that a model attends to most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scfast.io import read_gmt
from scfast.tl._batches import given
from scfast.tl._gene_sets import members_of, over_represented
from scfast.tl._inputs import check_options, commit, get_groups
from scfast.tl._kept_scores import kept_scores, own_groupby
from scfast.tl._several import gene_names
from scfast.tl._tables import categorical

if TYPE_CHECKING:
    from anndata import AnnData

    from scfast.analyses.gene_shares import GeneSharesResult


def enrich(
    adata: AnnData,
    gene_sets: Mapping[str, Sequence[str]] | str | Path,
    *,
    key: str = "rollout",
    groupby: str | None = None,
    top: int = 100,
    min_detection: float = 0.1,
    universe: Sequence[str] | None = None,
    gene_symbols: str | None = None,
    key_added: str = "enrich",
    copy: bool = False,
) -> AnnData | None:
    """Which gene sets are over-represented among the genes that a group of cells attends to most.

    Genes are ranked by score x n, with n the genes of the cell: the score relative to an even one, averaged over the
    group's cells that have the gene. (Scores that do not sum to 1 in a cell, such as attention received, are first
    divided by their sum.) The ``top`` of them are compared with each set by the hypergeometric distribution.

    Parameters
    ----------
    adata
        After :func:`scfast.tl.rollout`, or another tool that keeps the scores of every cell.
    gene_sets
        Name -> genes, or a GMT file, which :func:`scfast.io.read_gmt` reads.
    key
        Name of those results.
    groupby
        Column of ``adata.obs``. Default: the one that ``key`` was computed with.
    top
        How many genes of each group.
    min_detection
        Least share of the group's cells that have a token of a gene, for it to be ranked.
    universe
        Genes that the top is compared with. Default: those with a token in at least ``min_detection`` of the group's
        cells, because against all genes an immune set in blood only restates what is expressed.
    gene_symbols
        Column of ``adata.var`` that the names in ``gene_sets`` and ``universe`` are looked up in. Default: the index.
        Where a name stands for several genes, all of them are meant.
    key_added
        Name of the results; what is there under that name is replaced.
    copy
        Return a copy with the results instead of writing them into ``adata``.

    Returns
    -------
    AnnData or None
        ``uns[key_added]``:

        ``"table"``
            DataFrame, one row per group and set, smallest p first: ``group``, ``gene_set``, ``overlap`` (genes of the
            set in the top), ``set_size`` (genes of the set in the universe), ``top`` and ``universe`` (genes in each),
            ``expected`` overlap and ``ratio`` to it, ``p_value`` = P(X >= overlap), ``log10_p`` (which does not
            underflow), ``q_value`` (Benjamini & Hochberg 1995, over all sets of the group; without overlap p = 1, and
            the set still counts), and ``genes``, the overlap, most attended first.
        ``"top_genes"``
            DataFrame: ``group``, ``gene``, ``score`` (relative to an even one) and ``detection``.
        ``"groups"``
            DataFrame, one row per group: ``cells``, ``universe``, ``ranked`` (genes that could be in the top) and
            ``sets`` tested; sets without a gene in the universe are not.
        ``"params"``
            The arguments, and how many genes of sets and universe were not found.

    Raises
    ------
    KeyError
        When results, columns or all genes of the sets are not there.
    ValueError
        When the universe of a group is empty, or too small for ``top``; ``adata`` is unchanged after any error.

    Examples
    --------
    >>> import numpy as np, pandas as pd, scfast
    >>> from anndata import AnnData
    >>> from scipy import sparse
    >>> adata = AnnData(np.ones((2, 6)), var=pd.DataFrame(index=list("ABCDEF")))
    >>> adata.layers["rollout"] = sparse.csr_matrix([[0.3, 0.3, 0.1, 0.1, 0.1, 0.1]] * 2)
    >>> adata.uns["rollout"] = {"table": pd.DataFrame(), "params": {}}  # as tl.rollout leaves them
    >>> scfast.tl.enrich(adata, {"both": ["A", "B"], "other": ["C", "D"]}, top=2)
    >>> adata.uns["enrich"]["table"][["gene_set", "overlap", "p_value", "q_value"]].round(3).values.tolist()
    [['both', 2, 0.067, 0.133], ['other', 0, 1.0, 1.0]]
    """
    check_options(key_added)
    if not isinstance(top, int) or top < 1:
        raise ValueError(f"top={top!r} must be a number of genes, 1 or more")
    if not 0.0 <= min_detection <= 1.0:
        raise ValueError(f"min_detection must lie in [0, 1], got {min_detection}")
    kept = kept_scores(adata, key)
    column = own_groupby(kept, groupby)
    groups = get_groups(adata, column)
    names = gene_names(adata, gene_symbols)
    sets = gene_sets if isinstance(gene_sets, Mapping) else read_gmt(gene_sets)
    labels, members, not_found = members_of(sets, names, gene_symbols)
    given_universe, unknown = _universe(universe, names)

    scores = kept.gene_shares(groups.strata).result()
    tables, tops, abouts = [], [], []
    for number, name in enumerate(groups.names):
        held = _candidates(name, scores, number, min_detection)
        within = held if given_universe is None else given_universe
        ranked = np.flatnonzero(held & within)
        if not len(ranked) or len(ranked) < top or int(within.sum()) <= top:
            raise ValueError(
                f"top={top}: group {name!r} has {len(ranked)} genes to rank in a universe of {int(within.sum())}; name"
                f" a smaller top, or lower min_detection={min_detection}"
            )
        best = ranked[np.argsort(-scores.relative[number][ranked], kind="stable")[:top]]
        tables.append(over_represented(name, labels, members, within, best, names))
        tops.append(
            pd.DataFrame(
                {
                    "group": name,
                    "gene": names[best],
                    "score": scores.relative[number][best],
                    "detection": scores.detecting[number][best] / scores.cells[number],
                }
            )
        )
        abouts.append((scores.cells[number], int(within.sum()), len(ranked), len(tables[-1])))
    uns: dict[str, Any] = {
        "table": categorical(pd.concat(tables, ignore_index=True), "group", "gene_set"),
        "top_genes": categorical(pd.concat(tops, ignore_index=True), "group"),
        "groups": pd.DataFrame(
            abouts, columns=["cells", "universe", "ranked", "sets"], index=pd.Index(groups.names, name="group")
        ),
        "params": {
            "key": key, "top": top, "min_detection": min_detection, "sets": len(sets),
            "genes_not_found": not_found, "universe_not_found": unknown,
            **given(groupby=column, gene_symbols=gene_symbols),
            "universe": "detected" if universe is None else "given",
        },
    }  # fmt: skip
    target = adata.copy() if copy else adata
    commit(target, uns={key_added: uns})
    return target if copy else None


def _universe(universe: Sequence[str] | None, names: np.ndarray) -> tuple[np.ndarray | None, int]:
    """Which genes it holds, bool [genes], and how many of its names are not there."""
    if universe is None:
        return None, 0
    wanted = {str(name) for name in ([universe] if isinstance(universe, str) else universe)}
    held = pd.Index(names).isin(list(wanted))
    if not held.any():
        raise ValueError(
            f"universe is empty: none of its {len(wanted)} genes ({sorted(wanted)[:3]}, ...) is among the cells' genes"
            f" ({names[:3].tolist()}, ...)"
        )
    return held, len(wanted - set(names[held]))


def _candidates(name: str, scores: GeneSharesResult, number: int, min_detection: float) -> np.ndarray:
    """Genes that enough of the group's cells have, bool [genes]."""
    cells, detecting = int(scores.cells[number]), scores.detecting[number]
    held = (detecting > 0) & (detecting >= min_detection * cells)
    if not held.any():
        raise ValueError(
            f"the universe of group {name!r} is empty: no gene has a token in {min_detection:.0%} of its {cells} cells;"
            " lower min_detection, or leave the group out"
        )
    return held
