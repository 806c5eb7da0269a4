"""Attended genes against differentially expressed ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import scipy
from scipy import sparse

from scfast.analyses.group_expression import TARGET_SUM
from scfast.tl._batches import given
from scfast.tl._inputs import check_options, commit, get_counts
from scfast.tl._tables import categorical, partial_spearman, spearman

if TYPE_CHECKING:
    from anndata import AnnData

#: Columns of the attention table that a ranking of genes must beat, and which end of each is the top.
BASELINES = {
    "rank": -1, "expression": 1, "detection": 1, "null": 1, "expression_difference": 1, "detection_difference": 1,
}  # fmt: skip
#: What the partial correlation holds constant, as far as the table has it.
HELD = ("rank", "detection", "detection_difference")
SCORES = ("mean", "mean_detecting", "difference")


def compare_de(
    adata: AnnData,
    *,
    key: str = "received",
    groupby: str | None = None,
    score: Literal["mean", "mean_detecting", "difference"] = "mean",
    top: Sequence[int] = (20, 50, 100),
    min_detection: float = 0.1,
    layer: str | None = None,
    tie_correct: bool = False,
    key_added: str = "compare_de",
    copy: bool = False,
) -> AnnData | None:
    """Do the genes that a model attends to mark the groups? Attention beside a Wilcoxon test, group by group.

    Each group is tested against all other cells (scanpy's ``rank_genes_groups``); the genes at the top by attention
    are compared with those at the top of the test. Expression, detection and rank in the encoding are compared with
    the test in the same way: attention says something of its own only where it does better than they do.

    Parameters
    ----------
    adata
        After :func:`scfast.tl.received` or :func:`scfast.tl.rollout` with ``groupby=``.
    key
        Name of those results.
    groupby
        Column of ``adata.obs`` with the groups. Default: the one that ``key`` was computed with, and no other fits.
    score
        By what genes are attended to: ``"mean"`` over all cells of the group, ``"mean_detecting"`` over those that
        have the gene, or ``"difference"`` between the means over the group's cells and over those of all other groups.
        Such differences of expression and detection are then baselines too: a test of differences is near to them.
    top
        Sizes k of the lists that are compared.
    min_detection
        Genes are ranked in groups of which this share of the cells has a token of them.
    layer
        Layer with logged, normalised expression for the test. Default: log1p of counts per ten thousand, from the
        counts that ``key`` was computed with.
    tie_correct
        Correct the test's variance for ties.
    key_added
        Name of the results; what is there under that name is replaced.
    copy
        Return a copy with the results instead of writing them into ``adata``.

    Returns
    -------
    AnnData or None
        ``uns[key_added]``:

        ``"table"``
            DataFrame, one row per ``group`` and ``gene``, most attended first: ``attention`` (the score) and
            ``attention_place`` (1: the top), the test's ``de_score`` (z), ``log_fold_change`` (base 2), ``p_adjusted``
            (Benjamini-Hochberg over all genes) and ``de_place`` (1: the most up-regulated), and ``rank``,
            ``expression``, ``detection`` and ``null`` as in the table of ``key`` (``score="difference"``: also
            ``expression_difference`` and ``detection_difference``).
        ``"overlap"``
            DataFrame, one row per ``group`` and ``k``: ``overlap`` of the two top lists, ``expected`` by chance
            (k^2 / genes) and ``p_value`` (hypergeometric, not adjusted), and ``overlap_rank``,
            ``overlap_expression``, ...: the overlap that each of those rankings reaches.
        ``"groups"``
            DataFrame, one row per group: ``genes`` ranked; Spearman correlation of attention with the test's score
            (``spearman_de``), the same with rank and detection (for ``"difference"``, its difference too) held constant
            (``partial_de``), of attention with each baseline (``spearman_rank``, ...) and of the test with each
            (``de_rank``, ...).
        ``"params"``
            The arguments.

    Raises
    ------
    ModuleNotFoundError
        When scanpy is not installed.
    KeyError, ValueError
        When there are no such results, they have one group only, a group has a single cell, or no list is short
        enough; the message names the remedy. ``adata`` is unchanged after any error.

    Examples
    --------
    >>> import scfast
    >>> adata, model = scfast.datasets.toy()
    >>> scfast.tl.received(adata, model, groupby="cell_type")
    >>> scfast.tl.compare_de(adata, top=(5, 10))
    >>> adata.uns["compare_de"]["overlap"].columns.tolist()
    ['group', 'k', 'overlap', 'expected', 'p_value', 'overlap_rank', 'overlap_expression', 'overlap_detection']
    """
    check_options(key_added)
    if score not in SCORES:
        raise ValueError(f"score={score!r} is unknown; use one of {', '.join(SCORES)}")
    if not 0.0 <= min_detection <= 1.0:
        raise ValueError(f"min_detection={min_detection} must lie in [0, 1]")
    sizes = sorted({int(k) for k in ([top] if isinstance(top, int) else top)})
    if not sizes or sizes[0] < 1:
        raise ValueError(f"top={top!r} must hold sizes of lists, such as (20, 50, 100)")
    results, groupby = _grouped(adata, key, groupby)
    if layer is not None and layer not in adata.layers:
        raise KeyError(f"layer={layer!r} is not in adata.layers, which has {list(adata.layers)}")
    if layer is None:
        logged = _logged(get_counts(adata, results["params"].get("counts_layer")).matrix)
    else:
        logged = adata.layers[layer]
    cells = _tested(adata, groupby, logged)
    test = _wilcoxon(cells, tie_correct=tie_correct)
    if score == "difference":
        test = test.join(_differences(cells))

    about = results["groups"]
    attention = _attention(adata, key, score)
    parts, overlaps, summaries = [], [], []
    for column, name in enumerate(about.index):
        rows = results["table"][(results["table"]["group"] == name).to_numpy()]
        rows = rows[(rows["cells"] >= min_detection * about.loc[name, "cells"]).to_numpy()]
        part = _beside(str(name), rows, attention[:, column], test.loc[name], adata.var_names)
        parts.append(part)
        overlaps += [_overlap(str(name), part, k) for k in sizes if k < len(part)]
        summaries.append(_summary(part))
    if not overlaps:
        raise ValueError(
            f"top={sizes}: at most {max(map(len, parts))} genes are ranked in a group; name shorter lists, or lower"
            f" min_detection={min_detection}"
        )
    uns: dict[str, Any] = {
        "table": categorical(pd.concat(parts, ignore_index=True), "group"),
        "overlap": categorical(pd.DataFrame(overlaps), "group"),
        "groups": pd.DataFrame(summaries, index=about.index.copy()),
        "params": {
            "key": key, "groupby": groupby, "score": score, "top": np.array(sizes), "method": "wilcoxon",
            "min_detection": min_detection, "tie_correct": tie_correct, **given(layer=layer),
        },
    }  # fmt: skip
    target = adata.copy() if copy else adata
    commit(target, uns={key_added: uns})
    return target if copy else None


def _grouped(adata: AnnData, key: str, groupby: str | None) -> tuple[dict[str, Any], str]:
    """The results under ``key``, and the column that they are grouped by."""
    results = adata.uns.get(key, {})
    if not {"table", "groups", "params"} <= set(results) or key not in adata.varm:
        raise KeyError(
            f"adata.uns has no attention per group named {key!r}: run scfast.tl.received(adata, model, groupby=...,"
            f" key_added={key!r}) first"
        )
    own = results["params"].get("groupby")
    if own is None:
        raise ValueError(f"{key!r} was computed over all cells as one group: run it again with groupby=")
    if groupby is not None and groupby != own:
        raise ValueError(f"groupby={groupby!r}, but {key!r} was computed with groupby={own!r}: leave it out")
    if own not in adata.obs:
        raise KeyError(f"{key!r} was computed with groupby={own!r}, which is not in adata.obs any more")
    sizes = adata.obs[own].astype(str)[adata.obs[own].notna()].value_counts()
    names = [str(name) for name in results["groups"].index]
    if set(sizes.index) != set(names):
        raise ValueError(
            f"adata.obs[{own!r}] has the groups {sorted(sizes.index)}, {key!r} those of {sorted(names)}: the column"
            " has changed; run it again"
        )
    if len(names) < 2:
        raise ValueError(
            f"adata.obs[{own!r}] has one group, {names[0]!r}: a test needs another to compare it with"
        )
    single = [name for name in names if sizes[name] < 2]
    if single:
        raise ValueError(
            f"the groups {single} of adata.obs[{own!r}] have one cell each: merge or remove them"
        )
    return results, own


def _tested(adata: AnnData, groupby: str, logged: sparse.csr_matrix | np.ndarray) -> AnnData:
    """The cells that have a group, with logged expression in X and their group in obs; ``adata`` is left alone."""
    from anndata import AnnData

    cells = adata.obs[groupby].notna().to_numpy()
    labels = pd.Categorical(adata.obs.loc[cells, groupby].astype(str))
    obs = pd.DataFrame({"group": labels}, index=adata.obs_names[cells].astype(str))
    return AnnData(logged[cells], obs=obs, var=pd.DataFrame(index=adata.var_names.astype(str)))


def _wilcoxon(cells: AnnData, *, tie_correct: bool) -> pd.DataFrame:
    """Scanpy's test of every group against the rest; (group, gene) -> scores, logfoldchanges, pvals_adj."""
    try:
        import scanpy
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("tl.compare_de tests with scanpy: pip install 'scfast[scanpy]'") from error
    cells.uns["log1p"] = {"base": None}  # else scanpy takes the values for counts
    scanpy.tl.rank_genes_groups(cells, "group", method="wilcoxon", tie_correct=tie_correct)
    return scanpy.get.rank_genes_groups_df(cells, group=None).set_index(["group", "names"])


def _differences(cells: AnnData) -> pd.DataFrame:
    """(group, gene) -> mean over the group less mean over all others, of expression and of detection."""
    groups = cells.obs["group"].cat
    member = groups.codes.to_numpy() == np.arange(len(groups.categories))[:, None]  # [groups, cells]
    weights = member / member.sum(1, keepdims=True) - ~member / (~member).sum(1, keepdims=True)
    values = sparse.csr_matrix(cells.X, dtype=np.float64)
    index = pd.MultiIndex.from_product([groups.categories, cells.var_names], names=["group", "names"])
    matrices = {"expression_difference": values, "detection_difference": values > 0}
    return pd.DataFrame({name: (weights @ matrix).ravel() for name, matrix in matrices.items()}, index=index)


def _logged(counts: sparse.csr_matrix | np.ndarray) -> sparse.csr_matrix:
    """log1p of counts per ten thousand, float32 CSR."""
    matrix = sparse.csr_matrix(counts, dtype=np.float64)
    totals = np.asarray(matrix.sum(axis=1)).ravel()
    matrix.data *= np.repeat(TARGET_SUM / np.where(totals > 0, totals, 1.0), np.diff(matrix.indptr))
    return matrix.log1p().astype(np.float32)


def _attention(adata: AnnData, key: str, score: str) -> np.ndarray:
    """The score of every gene in every group, float64 [genes, groups]; nan where the table has none."""
    results = adata.uns[key]
    groups = list(results["groups"].index)
    mean = adata.varm[key].to_numpy()
    if score == "mean":
        return mean
    if score == "difference":
        cells = results["groups"]["cells"].to_numpy()
        total = mean * cells
        return mean - (total.sum(1, keepdims=True) - total) / (cells.sum() - cells)
    table = results["table"].astype({"gene": str, "group": str})
    wide = table.pivot(index="gene", columns="group", values=score)
    return wide.reindex(index=adata.var_names.astype(str), columns=[str(name) for name in groups]).to_numpy()


def _beside(
    name: str, rows: pd.DataFrame, attention: np.ndarray, test: pd.DataFrame, genes: pd.Index
) -> pd.DataFrame:
    """One group: attention, test and baselines of its genes, most attended first."""
    names = rows["gene"].astype(str)
    test = test.loc[names]
    part = pd.DataFrame(
        {
            "group": name,
            "gene": names.to_numpy(),
            "attention": attention[genes.astype(str).get_indexer(names)],
            "attention_place": 0,
            "de_score": test["scores"].to_numpy(dtype=np.float64),
            "log_fold_change": test["logfoldchanges"].to_numpy(dtype=np.float64),
            "p_adjusted": test["pvals_adj"].to_numpy(dtype=np.float64),
            "de_place": 0,
            **{column: of[column].to_numpy() for column in BASELINES for of in (rows, test) if column in of},
        }
    )
    for values, place in (("attention", "attention_place"), ("de_score", "de_place")):
        part[place] = _places(part[values].to_numpy())
    return part.sort_values("attention_place", ignore_index=True)


def _places(values: np.ndarray) -> np.ndarray:
    """Place of each value from the largest, 1, down; ties by order."""
    places = np.empty(len(values), dtype=np.int64)
    places[np.argsort(-values, kind="stable")] = np.arange(1, len(values) + 1)
    return places


def _overlap(name: str, part: pd.DataFrame, k: int) -> dict[str, Any]:
    """How many genes of two top lists of k are the same, for attention and for each baseline."""
    differential = (part["de_place"] <= k).to_numpy()
    shared = int(np.sum(differential[:k]))  # rows are in the order of attention
    row = {
        "group": name,
        "k": k,
        "overlap": shared,
        "expected": k * k / len(part),
        "p_value": float(scipy.stats.hypergeom.sf(shared - 1, len(part), k, k)),
    }
    for column, sign in BASELINES.items():
        if column in part:
            row[f"overlap_{column}"] = int(np.sum(differential[_places(sign * part[column].to_numpy()) <= k]))
    return row


def _summary(part: pd.DataFrame) -> dict[str, float]:
    """Rank correlations of one group's columns."""
    values = {name: part[name].to_numpy(dtype=np.float64) for name in part if name not in ("group", "gene")}
    attention, test = values["attention"], values["de_score"]
    held = np.column_stack([values[name] for name in HELD if name in values])
    baselines = [name for name in BASELINES if name in values]
    return {
        "genes": len(part),
        "spearman_de": spearman(attention, test),
        "partial_de": partial_spearman(attention, test, held),
        **{f"spearman_{name}": spearman(attention, values[name]) for name in baselines},
        **{f"de_{name}": spearman(test, values[name]) for name in baselines},
    }
