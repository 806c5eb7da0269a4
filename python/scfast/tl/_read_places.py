"""The places of a cell that states are read at: cls, mean, single positions, single genes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from scfast.models.base import AttentionSource, TokenKind, Tokens
from scfast.observables import BatchInfo
from scfast.observables.readout import readout_weights
from scfast.tl._readout import Readout
from scfast.tl._several import get_genes

if TYPE_CHECKING:
    from anndata import AnnData


@dataclass(frozen=True)
class Place:
    """A place by name; ``weights`` gives float32 [T] over a batch's tokens; ``single``: one token of a cell."""

    name: str
    weights: Callable[[Tokens], torch.Tensor]
    single: bool = False


def resolve_places(
    adata: AnnData,
    source: AttentionSource,
    readouts: Sequence[str] | None,
    positions: Sequence[int],
    genes: Sequence[str],
    gene_symbols: str | None,
) -> list[Place]:
    """The places that a user names; by default what the model has of cls and mean.

    Raises
    ------
    ValueError
        For a readout or position that there is not, none at all, or one twice.
    KeyError
        For a gene that is not there.
    """
    own = ["cls", "mean"] if source.cls_position is not None else ["mean"]
    chosen = own if readouts is None else [readouts] if isinstance(readouts, str) else list(readouts)
    unknown = [name for name in chosen if name not in own]
    if unknown:
        raise ValueError(f"readouts={unknown}: {source.name} has {' and '.join(own)}")
    bad = [at for at in positions if not isinstance(at, int | np.integer) or not 1 <= at <= source.max_tokens]
    if bad:
        raise ValueError(
            f"positions={bad}: places in the encoding are whole numbers from 1 to {source.max_tokens}, the longest cell"
            f" of {source.name}"
        )
    places = [
        *(Place(name, _named(source, name)) for name in chosen),
        *(Place(f"position {at}", _at(int(at)), True) for at in positions),
        *(
            Place(f"gene {gene}", Readout(gene, column).weights, True)  # type: ignore[arg-type]
            for gene, column in get_genes(adata, genes, gene_symbols).items()
        ),
    ]
    names = [place.name for place in places]
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"readouts, positions and genes must name at least one place, and none twice: {names}"
        )
    return places


def _named(source: AttentionSource, name: str) -> Callable[[Tokens], torch.Tensor]:
    def weights(tokens: Tokens) -> torch.Tensor:
        batch = BatchInfo(
            source.n_layers, tokens.packing, kind=tokens.kind, gene_index=tokens.gene_index,
            cls_position=source.cls_position,
        )  # fmt: skip
        return readout_weights(name, batch)[0]

    return weights


def _at(position: int) -> Callable[[Tokens], torch.Tensor]:
    def weights(tokens: Tokens) -> torch.Tensor:
        gene = tokens.kind.numpy() == TokenKind.GENE
        before = np.cumsum(gene)
        starts = np.asarray(tokens.packing.starts_q, dtype=np.int64)
        earlier = np.concatenate([[0], before])[np.repeat(starts[: tokens.n_cells], tokens.lengths)]
        return torch.from_numpy((gene & (before - earlier == position)).astype(np.float32))

    return weights
