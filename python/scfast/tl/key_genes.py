"""Key genes: a table of the genes that a model attends to, beside what that may merely restate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from scfast.analyses import Accumulator, GroupExpression, GroupScores, RowWriter
from scfast.analyses.group_scores import GroupScoresResult
from scfast.models.base import AttentionSource, Tokens
from scfast.observables import Received
from scfast.run import survey
from scfast.tl._batches import Conditions, given, make_batches
from scfast.tl._inputs import Groups, check_options, commit, get_counts, get_groups, get_rows, get_source
from scfast.tl._several import highlighted
from scfast.tl._tables import auroc, gene_table, spearman

if TYPE_CHECKING:
    import torch
    from anndata import AnnData

#: What the attention of a gene must beat, as columns of the table.
CONFOUNDERS = ("cells", "rank", "expression", "detection", "null")


def key_genes(
    adata: AnnData,
    model: AttentionSource | str,
    *,
    groupby: str | None = None,
    highlight: Sequence[str] | None = None,
    gene_symbols: str | None = None,
    null: Literal["untrained"] | None = None,
    key_added: str = "key_genes",
    device: str | torch.device | None = None,
    memory: str | int | None = None,
    counts_layer: str | None = None,
    seed: int = 0,
    progress: bool | None = None,
    backend: str = "auto",
    copy: bool = False,
) -> AnnData | None:
    """The genes that receive most attention over all cells (Falkenstein 2024, table of key genes).

    Attention received is summed over layers, heads, queries and cells, and min-max scaled over the genes. A gene that
    stands in many cells, or high up in their encoding, adds up much attention whatever the model has learnt: cells,
    rank, expression and detection stand beside it, and on request the same from the untrained model.

    Parameters
    ----------
    adata
        Raw counts, cells x genes. ``adata.obs["n_counts"]`` is used where present, else row sums.
    model
        From :func:`scfast.models.load`, or ``"geneformer:FOLDER"``.
    groupby
        Column of ``adata.obs``: the mean rank of each gene in each group. Attention is that of all cells.
    highlight
        A gene set, such as the targets of p53: marked in the table, and compared with all other genes. Names from
        ``adata.var_names`` or ``gene_symbols``; those that are not there are noted.
    gene_symbols
        Column of ``adata.var`` that ``highlight`` is looked up in, and that the table shows beside the genes.
    null
        ``"untrained"``: run the same architecture with fresh weights too, and put its attention beside.
    key_added
        Name of the results; what is there under that name is replaced.
    device
        ``"cuda"``, ``"cuda:N"`` or ``"cpu"``. Default: where ``model`` is; one that is named by its folder runs on
        the GPU where there is one.
    memory
        What the run may use beyond what is loaded, such as ``"2GB"``; on a GPU, of its memory. Default: 2 GB, on
        a GPU all that is free there. Cells that do not fit as a whole are run in blocks of tokens, which takes about
        half the memory; a batch that does not fit after all is run in halves, a cell in smaller blocks.
    counts_layer
        Layer that holds the counts. Default: ``adata.X``.
    seed
        Of the untrained model.
    progress
        Show a progress bar. Default: on a terminal.
    backend
        Of the attention ops.
    copy
        Return a copy with the results instead of writing them into ``adata``.

    Returns
    -------
    AnnData or None
        ``uns[key_added]``:

        ``"table"``
            DataFrame, one row per gene that any cell has a token of, most attended first: ``gene`` (and ``symbol``),
            ``attention`` (scaled to 0..1), ``attention_sum`` (over cells), ``attention_mean`` and ``attention_se``
            (over the ``cells`` that have the gene), ``rank`` and ``rank_sd`` (mean and standard deviation of its place
            in the encoding, from 1), ``expression`` (mean log1p of counts per ten thousand), ``detection`` (share of
            cells with a count), ``null`` (attention of the untrained model, scaled likewise), ``rank_GROUP`` for each
            group, and ``highlight``.
        ``"correlations"``
            DataFrame: Spearman correlation over the genes of ``attention`` and of ``attention_mean`` (rows) with each
            confounder (columns).
        ``"highlight"``
            DataFrame, one row per column of the table that genes can be ranked by: ``auroc``, the probability that a
            gene of the set stands above one outside it (0.5: no difference; ``rank``: nearer to the top).
        ``"params"``
            The arguments, the genes of ``highlight`` that were not found, the model, and the plan of the run.

    Raises
    ------
    ValueError, KeyError, TypeError
        For input that does not fit; the message names it and the remedy. ``adata`` is unchanged after any
        error.
    MemoryError
        When one cell does not fit by itself; the message says what it needs.

    Examples
    --------
    >>> import scfast
    >>> adata, model = scfast.datasets.toy()
    >>> response = ["ISG15", "IFI6", "STAT1"]
    >>> scfast.tl.key_genes(adata, model, groupby="condition", highlight=response)
    >>> table = adata.uns["key_genes"]["table"]
    >>> table.columns.tolist()[-5:]
    ['expression', 'detection', 'rank_ctrl', 'rank_stim', 'highlight']
    """
    check_options(key_added, null)
    how = Conditions(memory, backend, progress, seed)
    counts = get_counts(adata, counts_layer)
    groups, everyone = get_groups(adata, groupby), get_groups(adata, None)
    marked, missing = highlighted(adata, highlight, gene_symbols)
    source = get_source(model, device)
    found = survey(source, counts)
    rows = get_rows(found, source, adata.var)

    def scores(of: Groups) -> GroupScores:
        return GroupScores(of.strata, adata.n_vars, name="received")

    def observe(tokens: Tokens) -> Sequence[Received]:
        return [Received()]

    analyses: dict[str, Accumulator | RowWriter] = {
        "scores": scores(everyone),
        "baseline": GroupExpression(everyone.strata, adata.n_vars),
        **({} if groupby is None else {"groups": scores(groups)}),
    }
    size = sum(x.nbytes for x in analyses.values() if isinstance(x, Accumulator))
    batches = make_batches(
        source, counts, found, rows, how, results_bytes=size * (2 if null else 1), in_blocks=True
    )
    results = batches.run(analyses, observe, "key genes")
    nulls = None
    if null is not None:
        fresh = batches.again(source.untrained(seed), results.plan)
        nulls = fresh.run({"scores": scores(everyone)}, observe, "untrained")["scores"]

    ranked = gene_table(adata.var_names, everyone.names, results["scores"], results["baseline"], nulls)
    table = _table(ranked, results["scores"])
    at = adata.var_names.astype(str).get_indexer(table["gene"])
    if gene_symbols is not None:
        table.insert(1, "symbol", adata.var[gene_symbols].astype(str).to_numpy()[at])
    if groupby is not None:
        for name, mean_rank in zip(groups.columns, results["groups"].rank, strict=True):
            table[f"rank_{name}"] = mean_rank[at]
    table["highlight"] = marked[at]
    uns: dict[str, Any] = {
        "table": table,
        "correlations": _correlations(table),
        "params": {
            **given(groupby=groupby, null=null, counts_layer=counts_layer, gene_symbols=gene_symbols),
            **({} if highlight is None else {"not_found": np.array(missing, dtype=str)}),
            **batches.params(results.plan),
        },
    }
    if highlight is not None:
        uns["highlight"] = _highlight(table)
    target = adata.copy() if copy else adata
    commit(target, uns={key_added: uns})
    return target if copy else None


def _table(ranked: pd.DataFrame, scores: GroupScoresResult) -> pd.DataFrame:
    """The table of one group under the names of this tool, best first."""
    total = ranked["mean"] * scores.cells[0]
    table = pd.DataFrame(
        {
            "gene": ranked["gene"].astype(str),
            "attention": _scaled(total),
            "attention_sum": total,
            "attention_mean": ranked["mean_detecting"],
            "attention_se": ranked["se_detecting"],
            **{name: ranked[name] for name in ("cells", "rank", "rank_sd", "expression", "detection")},
        }
    )
    if "null" in ranked:
        table["null"] = _scaled(ranked["null"])
    return table


def _scaled(values: pd.Series) -> pd.Series:
    """Values from 0 (the smallest) to 1 (the largest); 0 where all are equal."""
    span = values.max() - values.min()
    return (values - values.min()) / (span if span > 0 else 1.0)


def _correlations(table: pd.DataFrame) -> pd.DataFrame:
    """Spearman correlations of attention with what it must beat."""
    kinds = ["attention", "attention_mean"]
    found = {
        name: [spearman(table[kind].to_numpy(), table[name].to_numpy()) for kind in kinds]
        for name in CONFOUNDERS
        if name in table
    }
    return pd.DataFrame(found, index=pd.Index(kinds, name="spearman"))


def _highlight(table: pd.DataFrame) -> pd.DataFrame:
    """How far up the marked genes stand, by attention and by everything else."""
    marked = table["highlight"].to_numpy()
    columns = [name for name in ("attention", "attention_mean", *CONFOUNDERS) if name in table]
    values = {name: table[name].to_numpy() * (-1 if name == "rank" else 1) for name in columns}
    return pd.DataFrame(
        {"auroc": [auroc(values[name], marked) for name in columns], "genes": int(marked.sum())},
        index=pd.Index(columns, name="by"),
    )
