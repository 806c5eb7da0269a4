"""Attention received at each rank of the encoding, in one model or several."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from scfast.analyses import Accumulator, GroupScores, RankProfile, RowWriter, Strata
from scfast.models.base import AttentionSource, Tokens
from scfast.observables import Received
from scfast.run import Counts, EqualLength, TokenSurvey
from scfast.tl._batches import Conditions, given, make_batches
from scfast.tl._inputs import Groups, check_options, commit, get_counts, get_groups, get_rows
from scfast.tl._several import get_genes, get_sources, survey_alike
from scfast.tl._tables import categorical

if TYPE_CHECKING:
    import torch
    from anndata import AnnData

    from scfast.tl._several import Models


def rank_profile(
    adata: AnnData,
    model: Models,
    *,
    genes: Sequence[str] | None = None,
    gene_symbols: str | None = None,
    groupby: str | None = None,
    quantiles: int | None = None,
    equal_length: int | Literal["shortest"] | None = None,
    key_added: str = "rank_profile",
    device: str | torch.device | None = None,
    memory: str | int | None = None,
    counts_layer: str | None = None,
    seed: int = 0,
    progress: bool | None = None,
    backend: str = "auto",
    copy: bool = False,
) -> AnnData | None:
    """Attention received at each rank of the encoding, and how models differ in it (Falkenstein 2024).

    Rank 1 is the first gene token of a cell. Several models must read the same sequences; each is compared with the
    first: change = 100 (new - old) / old, of what is received at a rank, summed over cells.

    Parameters
    ----------
    adata
        Raw counts, cells x genes. ``adata.obs["n_counts"]`` is used where present, else row sums.
    model
        From :func:`scfast.models.load`, or ``"geneformer:FOLDER"``. Several: a list, or a mapping from the names
        they shall have, such as ``{"pretrained": ..., "fine-tuned": ...}``; the first is what the others are
        compared with.
    genes
        Genes whose mean rank is marked, from ``adata.var_names`` or from ``gene_symbols``.
    gene_symbols
        Column of ``adata.var`` that ``genes`` are looked up in.
    groupby
        Column of ``adata.obs``: a profile for each group.
    quantiles
        A profile for each of so many bins of cell length, with as many cells in each as ties allow.
    equal_length
        Every cell keeps so many gene tokens, drawn at random and left in their order, so that groups or batches whose
        cells differ in length can be compared; shorter cells are left out, with a warning. ``"shortest"``: as many as
        the shortest cell has. Bins of ``quantiles`` are those of the whole cells.
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
        Of the draws of ``equal_length``.
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
            DataFrame, one row per ``model``, ``group``, ``lengths`` (a bin such as ``"256-400"``, or ``"all"``) and
            ``rank``: ``cells`` that have a token there, ``sum`` and ``mean`` over those cells of the attention
            received (summed over layers, heads and queries), ``se`` between cells, and with several models
            ``change`` against the first in percent (nan for the first itself).
        ``"lengths"``
            DataFrame, one row per ``group`` and ``lengths``: ``cells``, and ``median``, ``shortest`` and ``longest``,
            their gene tokens before any were drawn.
        ``"genes"``
            With ``genes``: DataFrame, one row per ``model``, ``group``, ``lengths`` and ``gene`` (``label``: as it
            was named): ``cells`` that have it, its mean ``rank`` and ``rank_sd`` there, and ``mean``, the attention
            it receives.
        ``"params"``
            The arguments, and the models with the plans of their runs.

    Raises
    ------
    ValueError, KeyError, TypeError
        For input that does not fit, such as models that read different sequences; the message names it and the
        remedy. ``adata`` is unchanged after any error.
    MemoryError
        When one cell does not fit by itself; the message says what it needs.

    Examples
    --------
    >>> import scfast
    >>> adata, model = scfast.datasets.toy()
    >>> _, other = scfast.datasets.toy(seed=1)
    >>> scfast.tl.rank_profile(adata, {"before": model, "after": other}, genes=["CD3E", "MS4A1"])
    >>> sorted(adata.uns["rank_profile"])
    ['genes', 'lengths', 'params', 'table']
    """
    check_options(key_added)
    _check_numbers(quantiles, equal_length)
    how = Conditions(memory, backend, progress, seed)
    counts = get_counts(adata, counts_layer)
    groups = get_groups(adata, groupby)
    named = get_genes(adata, genes, gene_symbols)
    sources = get_sources(model, device)
    surveys = survey_alike(sources, counts)
    found, source = next(iter(surveys.values())), next(iter(sources.values()))
    rows = get_rows(found, source, adata.var)
    lengths = found.gene_tokens
    if equal_length is not None:
        kept = int(lengths[rows].min()) if equal_length == "shortest" else equal_length
        rows = _long_enough(lengths, rows, kept)
        counts = EqualLength(counts.matrix, counts.var, counts.n_counts, n_genes=kept, seed=seed)
        surveys = survey_alike(sources, counts)
    strata, bins = _bins(groups, lengths, rows, quantiles)

    profiles: list[pd.DataFrame] = []
    marks: list[pd.DataFrame] = []
    runs: dict[str, Any] = {}
    for name, source in sources.items():
        results, runs[name] = _run(name, source, counts, surveys[name], rows, strata, how, marked=bool(named))
        profiles.append(_profile(name, bins, results["profile"], profiles[0] if profiles else None))
        if named:
            marks.append(_marks(name, bins, named, adata.var_names, results["genes"]))
    several, where = len(sources) > 1, ("model", "group", "lengths")
    table = categorical(pd.concat(profiles, ignore_index=True), *where)
    uns: dict[str, Any] = {
        "table": table if several else table.drop(columns="change"),
        "lengths": categorical(_lengths(bins, strata, lengths, rows), *where[1:]),
        "params": {
            "models": np.array(list(sources)),
            "runs": runs,
            **given(groupby=groupby, quantiles=quantiles, counts_layer=counts_layer),
            **({} if equal_length is None else {"equal_length": kept, "seed": seed}),
        },
    }
    if marks:
        uns["genes"] = categorical(pd.concat(marks, ignore_index=True), *where, "gene", "label")
    target = adata.copy() if copy else adata
    commit(target, uns={key_added: uns})
    return target if copy else None


def _check_numbers(quantiles: int | None, equal_length: int | str | None) -> None:
    if quantiles is not None and (not isinstance(quantiles, int) or quantiles < 2):
        raise ValueError(f"quantiles={quantiles!r} must be a whole number from 2, such as 4")
    if equal_length not in (None, "shortest") and (not isinstance(equal_length, int) or equal_length < 1):
        raise ValueError(f"equal_length={equal_length!r} must be a number of gene tokens, or 'shortest'")


def _long_enough(lengths: np.ndarray, rows: np.ndarray, kept: int) -> np.ndarray:
    """The rows with ``kept`` gene tokens or more; an error when there are none, a warning when some are shorter."""
    long = rows[lengths[rows] >= kept]
    if not len(long):
        raise ValueError(
            f"equal_length={kept}: the longest cell has {lengths[rows].max()} gene tokens; choose fewer, or 'shortest'"
        )
    if len(long) < len(rows):
        warnings.warn(
            f"{len(rows) - len(long)} of {len(rows)} cells have fewer than equal_length={kept} gene tokens and are"
            " left out",
            UserWarning,
            stacklevel=3,
        )
    return long


def _bins(
    groups: Groups, lengths: np.ndarray, rows: np.ndarray, quantiles: int | None
) -> tuple[Strata, pd.DataFrame]:
    """Strata of cells by group and bin of length, and a frame with their ``group`` and ``lengths``."""
    inside = lengths[rows]
    cuts = (
        []
        if quantiles is None
        else np.quantile(inside, np.arange(1, quantiles) / quantiles, method="inverted_cdf")
    )
    cuts = np.unique([cut for cut in cuts if cut < inside.max()])
    code = np.searchsorted(cuts, inside)
    names = ["all"]
    if quantiles is not None:
        names = [f"{part.min()}-{part.max()}" for part in (inside[code == i] for i in range(len(cuts) + 1))]
    of_row = np.full(len(lengths), -1, dtype=np.int64)
    group = groups.strata.of(rows)
    of_row[rows] = np.where(group >= 0, group * len(names) + code, -1)
    bins = pd.MultiIndex.from_product([groups.names, names], names=["group", "lengths"]).to_frame(index=False)
    return Strata.from_codes(of_row, len(bins)), bins


def _run(
    name: str,
    source: AttentionSource,
    counts: Counts,
    found: TokenSurvey,
    rows: np.ndarray,
    strata: Strata,
    how: Conditions,
    *,
    marked: bool,
) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """The profile of one model (and scores of its genes), and what is noted of the run."""
    profile = RankProfile(strata, int(found.gene_tokens[rows].max()))
    analyses: dict[str, Accumulator | RowWriter] = {"profile": profile}
    if marked:
        analyses["genes"] = GroupScores(strata, counts.var.shape[0], name="received")
    size = sum(x.nbytes for x in analyses.values() if isinstance(x, Accumulator))
    batches = make_batches(source, counts, found, rows, how, results_bytes=size, in_blocks=True)

    def observe(tokens: Tokens) -> Sequence[Received]:
        return [Received()]

    results = batches.run(analyses, observe, name)
    return results, batches.params(results.plan)


def _profile(name: str, bins: pd.DataFrame, result: Any, first: pd.DataFrame | None) -> pd.DataFrame:
    """A row per bin and rank that any cell has."""
    bin_, rank = np.nonzero(result.cells > 0)
    table = bins.iloc[bin_].reset_index(drop=True)
    table.insert(0, "model", name)
    table["rank"] = rank + 1
    for field in ("cells", "sum", "mean", "se"):
        table[field] = getattr(result, field)[bin_, rank]
    old = table["sum"] if first is None else first["sum"]  # the same cells: row by row the same ranks
    table["change"] = np.nan if first is None else 100 * (table["sum"] - old) / old
    return table


def _marks(
    name: str, bins: pd.DataFrame, named: dict[str, int], genes: pd.Index, result: Any
) -> pd.DataFrame:
    """A row per bin and named gene."""
    columns = np.array(list(named.values()))
    table = bins.loc[np.repeat(bins.index, len(columns))].reset_index(drop=True)
    table.insert(0, "model", name)
    table["gene"], table["label"] = np.tile(genes[columns].astype(str), len(bins)), list(named) * len(bins)
    for field, array in (
        ("cells", result.detecting),
        ("rank", result.rank),
        ("rank_sd", result.rank_sd),
        ("mean", result.mean_detecting),
    ):
        table[field] = array[:, columns].ravel()
    return table


def _lengths(bins: pd.DataFrame, strata: Strata, lengths: np.ndarray, rows: np.ndarray) -> pd.DataFrame:
    """A row per bin that has cells."""
    parts = [lengths[rows[strata.of_row[rows] == number]] for number in range(len(bins))]
    table = bins.assign(cells=[len(part) for part in parts])
    for name, of in (("median", np.median), ("shortest", np.min), ("longest", np.max)):
        table[name] = [float(of(part)) if len(part) else np.nan for part in parts]
    return table[table["cells"] > 0].reset_index(drop=True)
