"""What a user may name several of: models over the same cells, and genes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scfast.models.base import AttentionSource
from scfast.run import Counts, TokenSurvey, survey
from scfast.tl._inputs import get_source

if TYPE_CHECKING:
    import torch
    from anndata import AnnData

    Models = AttentionSource | str | Sequence[AttentionSource | str] | Mapping[str, AttentionSource | str]


def get_sources(model: Models, device: str | torch.device | None = None) -> dict[str, AttentionSource]:
    """One model or several, by the names that they were given or have.

    Raises
    ------
    ValueError
        When there are none, two have one name, or a name that no file can hold.
    """
    if isinstance(model, Mapping):
        sources = {str(name): get_source(x, device) for name, x in model.items()}
    else:
        several = list(model) if isinstance(model, Sequence) and not isinstance(model, str) else [model]
        loaded = [get_source(x, device) for x in several]
        sources = {source.name: source for source in loaded}
        if len(sources) < len(loaded):
            raise ValueError(
                f"the models are called {', '.join(source.name for source in loaded)}: tell them apart by names of"
                " your own, model={'before': ..., 'after': ...}"
            )
    if not sources:
        raise ValueError(f"model={model!r} holds no model")
    unfit = [name for name in sources if not name or "/" in name]
    if unfit:
        raise ValueError(f"models cannot be called {unfit}: a name is not empty and has no '/'")
    return sources


def survey_alike(sources: Mapping[str, AttentionSource], counts: Counts) -> dict[str, TokenSurvey]:
    """Tokenise all cells with every model, which must give the same sequences of genes.

    Raises
    ------
    ValueError
        When they do not: ranks, and maps, of different sequences cannot be compared.
    """
    surveys = {name: survey(source, counts) for name, source in sources.items()}
    first, *others = surveys
    for name in others:
        if surveys[name].fingerprint == surveys[first].fingerprint:
            continue
        apart = int(np.sum(surveys[name].lengths != surveys[first].lengths))
        raise ValueError(
            f"{first!r} and {name!r} read different sequences of genes from the same cells ({apart} of"
            f" {counts.n_cells} differ in length): compare models of one vocabulary, gene medians and context"
        )
    return surveys


def gene_names(adata: AnnData, gene_symbols: str | None) -> np.ndarray:
    """What genes are looked up in: str [genes], the index or a column of ``adata.var``.

    Raises
    ------
    KeyError
        When there is no such column.
    """
    if gene_symbols is None:
        return adata.var_names.astype(str).to_numpy()
    if gene_symbols not in adata.var:
        raise KeyError(
            f"gene_symbols={gene_symbols!r} is not in adata.var, which has {list(adata.var.columns)}"
        )
    return adata.var[gene_symbols].astype(str).to_numpy()


def columns_of(adata: AnnData, names: np.ndarray, what: str, tool: str) -> np.ndarray:
    """Columns, int64, of the genes that results were made of.

    Raises
    ------
    ValueError
        When names of genes are not unique.
    KeyError
        When genes are no longer there.
    """
    check_unique(adata)
    columns = pd.Index(adata.var_names.astype(str)).get_indexer(np.asarray(names, dtype=str))
    if lost := int((columns < 0).sum()):
        raise KeyError(
            f"{lost} of the {len(columns)} genes of {what} are no longer in adata.var_names: run {tool} on these genes,"
            " or leave genes out afterwards"
        )
    return columns


def check_unique(adata: AnnData) -> None:
    """Raise a ValueError unless every gene has a name of its own."""
    if not adata.var_names.is_unique:
        twice = adata.var_names[adata.var_names.duplicated()].unique()
        raise ValueError(
            f"adata.var_names are not unique ({', '.join(map(str, twice[:3]))}{', ...' if len(twice) > 3 else ''}), so"
            " genes cannot be told apart: call adata.var_names_make_unique()"
        )


def get_genes(adata: AnnData, genes: Sequence[str] | None, gene_symbols: str | None) -> dict[str, int]:
    """Columns of the genes that a user names.

    Raises
    ------
    KeyError
        When a gene, or the column of symbols, is not there, or a symbol stands for several genes.
    """
    names = gene_names(adata, gene_symbols)
    wanted = [genes] if isinstance(genes, str) else list(genes or [])
    columns = {gene: np.flatnonzero(names == gene) for gene in wanted}
    for problem, bad in (
        ("are not in", [gene for gene in wanted if len(columns[gene]) == 0]),
        ("stand more than once in", [gene for gene in wanted if len(columns[gene]) > 1]),
    ):
        if bad:
            raise KeyError(
                f"genes {bad} {problem} {_where(gene_symbols)}, which holds {names[:3].tolist()}, ..."
            )
    return {gene: int(column[0]) for gene, column in columns.items()}


def highlighted(
    adata: AnnData, genes: Sequence[str] | None, gene_symbols: str | None
) -> tuple[np.ndarray, list[str]]:
    """Which columns belong to a gene set, bool [genes], and the genes of the set that are not there.

    Raises
    ------
    KeyError
        When none is there.
    """
    names = gene_names(adata, gene_symbols)
    if genes is None:
        return np.zeros(len(names), dtype=bool), []
    wanted = list(dict.fromkeys([genes] if isinstance(genes, str) else map(str, genes)))
    marked = pd.Index(names).isin(wanted)
    if not marked.any():
        raise KeyError(
            f"highlight: none of the {len(wanted)} genes ({wanted[:3]}, ...) is in {_where(gene_symbols)}, which holds"
            f" {names[:3].tolist()}, ...; name the column that holds such names with gene_symbols="
        )
    return marked, [gene for gene in wanted if gene not in set(names[marked])]


def _where(gene_symbols: str | None) -> str:
    return "adata.var_names" if gene_symbols is None else f"adata.var[{gene_symbols!r}]"
