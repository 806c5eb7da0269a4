"""Finds which column of the counts is which gene of a vocabulary, and says so when nothing fits."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Generic, Protocol, TypeVar

import numpy as np
import pandas as pd

from scfast.models.dictionaries import SPECIAL, Dictionaries

_LOG = logging.getLogger(__name__)
#: Columns of ``var`` that may hold gene ids or symbols, beside its index.
COLUMNS = (
    *("ensembl_id", "ensembl_ids", "ensembl", "gene_ids", "gene_id", "feature_id"),
    *("symbol", "gene_symbol", "gene_symbols", "gene_name", "gene_names", "feature_name", "gene_short_name"),
)
_ENSEMBL = re.compile(r"ENS[A-Z]*G\d{11}")
_VERSION = re.compile(r"(ENS[A-Z]*G\d{11})\.\d+")
#: Ids win over symbols unless they match fewer than this share of what symbols match.
_IDS_PREFERRED = 0.5
#: Lost names that a report shows.
_SHOWN = 3


@dataclass(frozen=True)
class GeneMatch:
    """Which columns of the counts the vocabulary knows; its arrays cannot be written to.

    Attributes
    ----------
    token_ids
        int64 [G]: token of each column, -1 where the vocabulary lacks it.
    medians
        float64 [G]: non-zero median of each column's gene, 1 where the vocabulary lacks it.
    target
        int64 [G]: the column that stands for this one; not itself where several columns are one gene.
    source
        ``"index"`` or the column of ``var`` that holds the names.
    by
        ``"id"``, or ``"symbol"`` when symbols were translated.
    n_by_symbol
        Columns without a gene id, in data that have ids, that were found by their symbol.
    lost
        The first names that the vocabulary lacks, for reports.
    """

    token_ids: np.ndarray
    medians: np.ndarray
    target: np.ndarray
    source: str
    by: str
    n_by_symbol: int = 0
    lost: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for array in (self.token_ids, self.medians, self.target):
            array.flags.writeable = False

    @property
    def n_matched(self) -> int:
        """Columns that the vocabulary knows."""
        return int((self.token_ids >= 0).sum())

    @cached_property
    def n_collapsed(self) -> int:
        """Columns that are added to another column of the same gene."""
        return int((self.target != np.arange(len(self.target))).sum())

    def describe(self) -> str:
        """One sentence for reports."""
        where = "the index of var" if self.source == "index" else f"var[{self.source!r}]"
        how = "as gene ids" if self.by == "id" else "as gene symbols, translated by the name dictionary"
        if self.n_by_symbol:
            how += f", {self.n_by_symbol} without an id by their symbol"
        n_lost = len(self.token_ids) - self.n_matched
        named = f" ({', '.join(self.lost)}{', ...' if n_lost > len(self.lost) else ''})" if self.lost else ""
        return (
            f"{self.n_matched} of {len(self.token_ids)} genes are in the vocabulary ({where} read {how}); "
            f"{n_lost} are lost{named}; {self.n_collapsed} were added to another column of the same gene"
        )


def match_genes(var: pd.DataFrame, dictionaries: Dictionaries) -> GeneMatch:
    """Find the names in ``var`` (index or a column of :data:`COLUMNS`) that fit the vocabulary best.

    Gene ids are looked up as they are, without an Ensembl version suffix, and through the Ensembl mapping
    where there is one. Symbols are translated by the name dictionary. Ids are preferred; a gene that has none is
    looked up by its symbol, while one whose id the vocabulary lacks is lost.

    Raises
    ------
    ValueError
        When no column fits any gene; shows the first names of both sides and what they look like.

    Examples
    --------
    >>> tables = Dictionaries(
    ...     tokens={"<pad>": 0, "<mask>": 1, "ENSG00000167286": 2},
    ...     medians={"ENSG00000167286": 2.5},
    ...     gene_names={"CD3D": "ENSG00000167286"},
    ... )
    >>> match_genes(pd.DataFrame(index=["ACTB", "CD3D"]), tables).token_ids.tolist()
    [-1, 2]
    """
    candidates = {"index": pd.Index(var.index)}
    candidates |= {name: pd.Index(var[name]) for name in COLUMNS if name in var.columns}
    routes: dict[str, Callable[[str], str | None]] = {
        "id": lambda name: _by_id(name, dictionaries),
        "symbol": lambda name: _by_symbol(name, dictionaries),
    }
    found = {
        (source, by): [route(name) if isinstance(name, str) else None for name in names]
        for by, route in routes.items()
        for source, names in candidates.items()
    }
    hits = {key: sum(gene is not None for gene in genes) for key, genes in found.items()}
    best = {by: max((key for key in hits if key[1] == by), key=hits.__getitem__) for by in routes}
    chosen = best["id"] if hits[best["id"]] >= _IDS_PREFERRED * hits[best["symbol"]] else best["symbol"]
    if hits[chosen] == 0:
        raise ValueError(_no_overlap(candidates, dictionaries))
    genes, names = list(found[chosen]), candidates[chosen[0]]
    without_id = [gene is None and not _is_id(name) for gene, name in zip(genes, names, strict=True)]
    if chosen[1] == "id":
        for column in (column for column, without in enumerate(without_id) if without):
            symbols = (found[source, "symbol"][column] for source in candidates)
            genes[column] = next((gene for gene in symbols if gene is not None), None)
    match = _columns(genes, names, dictionaries, *chosen)
    n_by_symbol = sum(genes[column] is not None for column, without in enumerate(without_id) if without)
    lost = [
        name if isinstance(name, str) and name else "no name"
        for gene, name in zip(genes, names, strict=True)
        if gene is None
    ]
    return replace(match, n_by_symbol=n_by_symbol, lost=tuple(lost[:_SHOWN]))


def _is_id(name: object) -> bool:
    return isinstance(name, str) and _ENSEMBL.match(name.upper()) is not None


class Described(Protocol):
    """Which genes were found, in words."""

    def describe(self) -> str:
        """A sentence for logs."""
        ...


Match = TypeVar("Match", bound=Described)


class Matcher(Generic[Match]):
    """Remembers which genes one model found: cells are tokenised block by block over one var.

    Parameters
    ----------
    match
        Finds them, such as :func:`match_genes` with a model's dictionaries.
    name
        What logs call the model.
    """

    def __init__(self, match: Callable[[pd.DataFrame], Match], name: str) -> None:
        self._match, self._name = match, name
        self._last: tuple[pd.Index, pd.DataFrame, Match] | None = None

    def __call__(self, var: pd.DataFrame) -> Match:
        """Which columns of the data the vocabulary knows; logged where it was not known yet."""
        last, present = self._last, [column for column in COLUMNS if column in var.columns]
        if last is None or not (_same(last[0], var.index) and _same_columns(last[1], var, present)):
            last = (var.index, var[present].copy(), self._match(var))
            _LOG.info("%s: %s", self._name, last[2].describe())
        # An index cannot change, and the same object is seen at once: names that were compared are not compared again.
        self._last = (var.index, *last[1:])
        return last[2]


def _same(index: pd.Index, other: pd.Index) -> bool:
    return index is other or index.equals(other)  # text in Arrow's form is compared name by name


def _same_columns(seen: pd.DataFrame, var: pd.DataFrame, present: list[str]) -> bool:
    return list(seen.columns) == present and all(seen[name].equals(var[name]) for name in present)


def _by_id(name: str, dictionaries: Dictionaries) -> str | None:
    """The gene of the vocabulary that an id stands for."""
    versioned = _VERSION.fullmatch(name)
    gene = versioned[1] if versioned else name
    if dictionaries.ensembl_mapping and _ENSEMBL.fullmatch(gene.upper()):
        gene = dictionaries.ensembl_mapping.get(gene.upper(), gene)
    return gene if gene in dictionaries.tokens and gene not in SPECIAL else None


def _by_symbol(name: str, dictionaries: Dictionaries) -> str | None:
    """The gene of the vocabulary that a symbol stands for; case counts (mouse symbols are not human ones)."""
    gene = dictionaries.gene_names.get(name) or dictionaries.ensembl_mapping.get(name)
    return None if gene is None else _by_id(gene, dictionaries)


def _columns(
    genes: list[str | None], names: pd.Index, dictionaries: Dictionaries, source: str, by: str
) -> GeneMatch:
    token_ids = np.full(len(genes), -1, dtype=np.int64)
    medians = np.ones(len(genes), dtype=np.float64)
    target = np.arange(len(genes), dtype=np.int64)
    first: dict[str, int] = {}
    for column, gene in enumerate(genes):
        if gene is None:
            continue
        token_ids[column] = dictionaries.tokens[gene]
        medians[column] = dictionaries.medians[gene]
        # The column that carries the gene's own id stands for it, else the first of them.
        if gene not in first or (names[column] == gene and names[first[gene]] != gene):
            first[gene] = column
    for column, gene in enumerate(genes):
        if gene is not None:
            target[column] = first[gene]
    return GeneMatch(token_ids=token_ids, medians=medians, target=target, source=source, by=by)


def _no_overlap(candidates: dict[str, pd.Index], dictionaries: Dictionaries) -> str:
    genes = dictionaries.genes
    shown = "; ".join(
        f"{'the index of var' if source == 'index' else f'var[{source!r}]'} holds "
        f"{', '.join(map(str, names[:3]))} ({_kind(names)})"
        for source, names in candidates.items()
    )
    wanted = _kind(pd.Index(genes[:200]))
    remedy = (
        "give var an index or a column 'ensembl_id' of that kind"
        if dictionaries.gene_names
        else "give var a column of that kind, or a table that translates symbols: load(..., gene_names=PATH)"
    )
    return (
        f"no gene of the data is in the model's vocabulary: {shown}; the vocabulary holds "
        f"{', '.join(genes[:3])} ({wanted}). To go on, {remedy}"
    )


def _kind(names: pd.Index) -> str:
    """What a column of names looks like, for messages."""
    texts = [name for name in names[:200] if isinstance(name, str)]
    if not texts:
        return "not text"
    prefixes = {match[0].rstrip("0123456789") for text in texts if (match := _ENSEMBL.match(text))}
    if "ENSG" in prefixes:
        return "human Ensembl gene ids"
    if prefixes:
        return f"Ensembl gene ids of another species, {min(prefixes)}..."
    if all(text.isdigit() for text in texts):
        return "plain numbers"
    return "names or symbols"
