"""Finds which column of the counts is which gene of a UCE's species: by Ensembl id first, then by symbol."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from scfast.models.gene_ids import COLUMNS
from scfast.models.uce_files import SPECIES, SpeciesGenes

_ENSEMBL = re.compile(r"(ENS[A-Z]*G)\d{11}(\.\d+)?")
#: Names that are spelled as in another species must be so many, and this share, for the data to be refused.
_ENOUGH, _MOST = 20, 0.5


@dataclass(frozen=True)
class SymbolMatch:
    """Which columns of the counts are which genes.

    Attributes
    ----------
    gene
        int64 [columns]: number of the gene, -1 where the species lacks it.
    by_id, by_symbol
        Columns that were found by an Ensembl id, and by a symbol.
    sources
        Where ids and symbols were read: ``"index"`` or a column of ``var``; None: nowhere.
    """

    gene: np.ndarray
    by_id: int
    by_symbol: int
    sources: tuple[str | None, str | None]

    def describe(self) -> str:
        """One sentence for reports."""
        found = [
            f"{number} by {what} in {_where(source)}"
            for number, what, source in (
                (self.by_id, "Ensembl id", self.sources[0]),
                (self.by_symbol, "symbol", self.sources[1]),
            )
            if number
        ]
        matched = self.by_id + self.by_symbol
        return (
            f"{matched} of {len(self.gene)} genes are in the vocabulary ({', '.join(found) or 'none'});"
            f" {len(self.gene) - matched} are lost"
        )


def match_symbols(
    var: pd.DataFrame, known: SpeciesGenes, species: str, names: Mapping[str, str] | None = None
) -> SymbolMatch:
    """Find the genes of the columns; each column by its Ensembl id where a table translates it, else by its symbol.

    Symbols are compared in upper case, as in the authors' code. Columns of one gene stay apart.

    Parameters
    ----------
    var
        Describes the columns; ids and symbols are looked for in its index and in usual columns.
    known, species
        The genes, and what they are of.
    names
        Symbol -> Ensembl id.

    Raises
    ------
    ValueError
        When no column is a gene of the species, or names are those of another one.
    """
    candidates = {"index": pd.Index(var.index)}
    candidates |= {name: pd.Index(var[name]) for name in COLUMNS if name in var.columns}
    _refuse_other_ids(candidates, species)
    number = {symbol: n for n, symbol in enumerate(known.symbols)}
    by_id = {
        gene: number[symbol.upper()] for symbol, gene in (names or {}).items() if symbol.upper() in number
    }

    ids = {source: _numbers(_versionless(column), by_id) for source, column in candidates.items()}
    symbols = {
        source: _numbers([str(name).upper() for name in column], number)
        for source, column in candidates.items()
    }
    id_source, symbol_source = (
        max(found, key=lambda s: int((found[s] >= 0).sum())) for found in (ids, symbols)
    )
    has_id = ids[id_source] >= 0
    gene = np.where(has_id, ids[id_source], symbols[symbol_source])
    if not (gene >= 0).any():
        shown = "; ".join(
            f"{_where(source)} holds {', '.join(map(str, column[:3]))}"
            for source, column in candidates.items()
        )
        raise ValueError(
            f"no gene of the data is one of the model's {species} genes: {shown}; the model has symbols such as"
            f" {', '.join(known.symbols[:3])}. Give var a column 'symbol', or a table of Ensembl ids: load(...,"
            " gene_names=PATH)"
        )
    if not has_id.any() and species in SPECIES and SPECIES[species].upper:
        _refuse_other_spelling(candidates[symbol_source][gene >= 0], species)
    by_symbol = int((gene >= 0).sum() - has_id.sum())
    sources = (id_source if has_id.any() else None, symbol_source if by_symbol else None)
    return SymbolMatch(gene, int(has_id.sum()), by_symbol, sources)


def _where(source: str | None) -> str:
    return "the index of var" if source == "index" else f"var[{source!r}]"


def _numbers(names: list[str], number: Mapping[str, int]) -> np.ndarray:
    return np.array([number.get(name, -1) for name in names], dtype=np.int64)


def _versionless(column: pd.Index) -> list[str]:
    return [str(name).partition(".")[0] if _ENSEMBL.fullmatch(str(name)) else str(name) for name in column]


def _refuse_other_ids(candidates: Mapping[str, pd.Index], species: str) -> None:
    if species not in SPECIES:
        return
    for source, column in candidates.items():
        prefixes = pd.Series([match[1] for name in column if (match := _ENSEMBL.fullmatch(str(name)))])
        prefix = "" if prefixes.empty else str(prefixes.mode()[0])
        if prefix and prefix != SPECIES[species].ensembl:
            theirs = next((name for name, other in SPECIES.items() if other.ensembl == prefix), None)
            remedy = f"load(..., species={theirs!r})" if theirs else "UCE was not published for it"
            raise ValueError(
                f"{_where(source)} holds Ensembl ids of another species"
                f" ({prefix}..., where {species} has {SPECIES[species].ensembl}...): {remedy}"
            )


def _refuse_other_spelling(names: pd.Index, species: str) -> None:
    """Symbols of mouse are Cd3d where those of human are CD3D: compared in upper case they would pass."""
    other = [name for name in map(str, names) if name[:1].isupper() and name[1:] != name[1:].upper()]
    if len(other) >= _ENOUGH and len(other) > _MOST * len(names):
        raise ValueError(
            f"{len(other)} of {len(names)} symbols are spelled as in mouse ({', '.join(other[:3])}), not as in"
            f" {species}: load(..., species='mouse'), or put them in upper case if they are right"
        )
