"""Mean states of genes: which genes, what they take, and how alike they are."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch

from scfast import ops
from scfast.analyses.gene_states import GeneStatesResult
from scfast.models.base import AttentionSource, TokenKind, Tokens
from scfast.run import Counts, TokenSurvey, granted_memory
from scfast.run.memory import MB
from scfast.tl._several import get_genes
from scfast.tl._tokens import token_blocks

if TYPE_CHECKING:
    from anndata import AnnData

#: The share of the granted memory that the states and similarities of genes may take.
SHARE = 0.5


@dataclass(frozen=True)
class GeneChoice:
    """The genes whose states are compared.

    Attributes
    ----------
    columns
        int64 [G], ascending.
    layers
        Their states, after so many layers.
    mapped
        Whether all similarities are kept, beside the nearest genes.
    n_neighbors
        Nearest genes of each.
    """

    columns: np.ndarray
    layers: list[int]
    mapped: bool
    n_neighbors: int

    def bytes_of_sums(self, width: int) -> int:
        """Sums, and those of one batch beside them, in float64."""
        return 2 * 8 * len(self.columns) * len(self.layers) * width

    def bytes_of_results(self, width: int) -> int:
        """Sums, mean states in float32, similarities and nearest genes."""
        n = len(self.columns)
        each = 12 * n * width + 12 * n * min(self.n_neighbors, n - 1) + (4 * n * n if self.mapped else 0)
        return each * len(self.layers)


def choose_genes(
    adata: AnnData, source: AttentionSource, counts: Counts, found: TokenSurvey, rows: np.ndarray,
    genes: Sequence[str] | Literal["all"], gene_symbols: str | None, layers: list[int], min_cells: int,
    n_neighbors: int,
) -> GeneChoice:  # fmt: skip
    """The genes that a user names, or all, as far as enough cells have a token of them.

    Raises
    ------
    KeyError
        When a gene is not there.
    ValueError
        When fewer than two are left.
    """
    named = not (isinstance(genes, str) and genes == "all")
    if not adata.var_names.is_unique:
        raise ValueError(
            "adata.var_names are not unique, so genes cannot be told apart: call adata.var_names_make_unique()"
        )
    columns = (
        np.sort(list(get_genes(adata, genes, gene_symbols).values())) if named else np.arange(adata.n_vars)
    )
    cells = np.zeros(adata.n_vars, dtype=np.int64)
    if found.tokens is None:
        for _, tokens in token_blocks(source, counts, rows):
            cells += cells_with_gene(tokens, adata.n_vars)
    else:
        cells += cells_with_gene(found.tokens, adata.n_vars)
    often = columns[cells[columns] >= min_cells]
    if len(often) < 2:
        raise ValueError(
            f"{len(often)} of {len(columns)} genes have a token in min_cells={min_cells} cells or more, and similarity"
            " needs two: name others with genes=, or lower min_cells="
        )
    if named and len(often) < len(columns):
        rare = adata.var_names[np.setdiff1d(columns, often)].astype(str).tolist()
        some = ", ".join(rare[:3]) + (", ..." if len(rare) > 3 else "")
        warnings.warn(
            f"{len(rare)} of {len(columns)} genes ({some}) have a token in fewer than min_cells={min_cells} cells"
            " and are left out",
            UserWarning,
            stacklevel=3,
        )
    return GeneChoice(often, layers, named, n_neighbors)


def cells_with_gene(tokens: Tokens, n_genes: int) -> np.ndarray:
    """int64 [genes]: cells that have a token of each gene."""
    gene = tokens.gene_index.numpy()
    real = (tokens.kind.numpy() == TokenKind.GENE) & (gene >= 0)
    cell = np.repeat(np.arange(tokens.n_cells), tokens.lengths)[real]
    return np.bincount(np.unique(cell * n_genes + gene[real]) % n_genes, minlength=n_genes)


def check_gene_memory(chosen: GeneChoice, source: AttentionSource, memory: str | int | None) -> None:
    """Refuse more states and similarities than their share of the memory holds."""
    granted = granted_memory(memory, source.device)
    room, width = int(granted * SHARE), source.hidden_size
    needed = max(chosen.bytes_of_sums(width), chosen.bytes_of_results(width))
    if needed > room:
        n, k = len(chosen.columns), len(chosen.layers)
        maps = f" and {k} maps of {n} x {n} similarities" if chosen.mapped else ""
        fewer = "genes='all' (the nearest genes only)" if chosen.mapped else "a larger min_cells="
        raise ValueError(
            f"mean states of {n} genes x {k} layers x {width} numbers{maps} take {needed / MB:,.1f} MB and may take"
            f" half of memory={granted / MB:,.1f}MB: name fewer genes= or layers=, {fewer}, or pass"
            f" memory='{-(-2 * needed // MB)}MB' or more"
        )


def gene_results(adata: AnnData, chosen: GeneChoice, found: GeneStatesResult) -> dict[str, Any]:
    """``uns["similarity"]["genes"]`` of :func:`scfast.tl.similarity`."""
    names = adata.var_names[chosen.columns].astype(str).to_numpy()
    n, k = len(names), min(chosen.n_neighbors, len(names) - 1)
    states = np.ascontiguousarray(found.mean.swapaxes(0, 1).astype(np.float32))  # [L, G, d]
    maps = np.empty((len(chosen.layers), n, n), dtype=np.float32) if chosen.mapped else None
    parts, zeros = [], []
    for number, layer in enumerate(chosen.layers):
        rows = torch.from_numpy(states[number])
        if maps is not None:
            ops.cosine_matrix(rows, out=torch.from_numpy(maps[number]))
        nearest = ops.cosine_topk(rows, k)
        zeros.append(int(nearest.n_zero[0]))
        parts.append(
            pd.DataFrame(
                {
                    "layer": layer,
                    "gene": pd.Categorical.from_codes(np.repeat(np.arange(n), k), categories=names),
                    "neighbor": pd.Categorical.from_codes(nearest.indices.numpy().ravel(), categories=names),
                    "rank": np.tile(np.arange(1, k + 1), n),
                    "similarity": nearest.values.numpy().ravel(),
                }
            )
        )
    return {
        "names": names.astype(str),
        "cells": found.cells,
        "layers": np.array(chosen.layers),
        "zeros": np.array(zeros),
        "states": states,
        "neighbors": pd.concat(parts, ignore_index=True),
        **({} if maps is None else {"similarity": maps}),
    }
