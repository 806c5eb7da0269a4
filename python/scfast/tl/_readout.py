"""What the user names as readout and layers, resolved for one model and one set of genes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from scfast.models.base import AttentionSource, TokenKind, Tokens
from scfast.run import TokenSurvey

#: Fusions of the heads of a layer.
HEADS = ("mean", "max", "min")


@dataclass(frozen=True)
class Readout:
    """A readout: ``"cls"``, ``"mean"`` or ``"gene:NAME"``, and the column of that gene."""

    name: str
    gene: int | None = None

    def keep(self, rows: np.ndarray, found: TokenSurvey) -> np.ndarray:
        """The rows that can be read out; an error when there are none."""
        if self.gene is None:
            return rows
        rows = rows[found.holds[rows]]
        if not len(rows):
            raise ValueError(
                f"readout={self.name!r}: no cell has a token of that gene; it is not expressed, not in"
                " the model's"
                " vocabulary, or cut off by the model's context"
            )
        return rows

    def weights(self, tokens: Tokens) -> str | torch.Tensor:
        """What :class:`scfast.observables.Rollout` takes: a name, or weights [T] with sum 1 in each cell."""
        if self.gene is None:
            return self.name
        chosen = (tokens.gene_index == self.gene) & (tokens.kind == int(TokenKind.GENE))
        cell = tokens.packing.cell_of_query()
        per_cell = torch.bincount(cell[chosen], minlength=tokens.n_cells).clamp(min=1)
        return chosen.to(torch.float32) / per_cell[cell]


def resolve_readout(readout: str | None, source: AttentionSource, names: pd.Index) -> Readout:
    """The readout that ``readout`` names, or the model's own.

    Raises
    ------
    ValueError
        When it is unknown, or the model has no cls token.
    KeyError
        When the gene is not among ``names``.
    """
    readout = source.default_readout if readout is None else readout
    if not isinstance(readout, str):
        raise TypeError(
            f"readout must be 'cls', 'mean' or 'gene:NAME', got {type(readout).__name__}; for weights of"
            " your own use scfast.record with Rollout(readout=weights)"
        )
    if readout == "cls" and source.cls_position is None:
        raise ValueError(f"readout='cls': {source.name} has no cls token; use readout='mean'")
    if readout in ("cls", "mean"):
        return Readout(readout)
    if not readout.startswith("gene:"):
        raise ValueError(f"readout={readout!r} is unknown; use 'cls', 'mean' or 'gene:NAME'")
    found = np.flatnonzero(names == readout.removeprefix("gene:"))
    if len(found) != 1:
        problem = (
            f"stands there {len(found)} times" if len(found) else f"is not there ({list(names[:3])}, ...)"
        )
        raise KeyError(f"readout={readout!r}: a gene is looked up in adata.var_names, and this one {problem}")
    return Readout(readout, int(found[0]))


def resolve_layers(layers: tuple[int, int] | str | None, source: AttentionSource) -> tuple[int, int]:
    """First and last layer, inclusive, from 0; negative numbers count from the end.

    Raises
    ------
    ValueError
        When the model has no such layers.
    """
    if layers is None or layers in ("prefix", "suffix"):
        return 0, source.n_layers - 1
    if isinstance(layers, tuple) and len(layers) == 2 and all(isinstance(x, int) for x in layers):
        first, last = (layer + source.n_layers if layer < 0 else layer for layer in layers)
        if 0 <= first <= last < source.n_layers:
            return first, last
    raise ValueError(
        f"layers={layers!r}: use 'prefix', 'suffix' or (first, last) with 0 <= first <= last <="
        f" {source.n_layers - 1}, the layers of {source.name}"
    )


def resolve_states(layers: Sequence[int] | None, source: AttentionSource) -> list[int]:
    """States after so many layers, from 0, the output of the embeddings; negative numbers count from the end.

    Raises
    ------
    ValueError
        When the model has no such states, or one is named twice.
    """
    n = source.n_layers + 1
    wanted = list(range(n)) if layers is None else [layers] if isinstance(layers, int) else list(layers)
    bad = [layer for layer in wanted if not isinstance(layer, int | np.integer) or not -n <= layer < n]
    found = [int(layer) % n for layer in wanted if layer not in bad]
    if bad or not found or len(set(found)) < len(found):
        raise ValueError(
            f"layers={wanted}: {source.name} has states 0 (embeddings) to {source.n_layers}; name at least one, and"
            " none twice"
        )
    return found


def check_rollout(heads: str, residual: float) -> None:
    """Refuse heads and a residual that no rollout has."""
    if heads not in HEADS:
        raise ValueError(f"heads={heads!r} is not a fusion for a rollout; use one of {', '.join(HEADS)}")
    if not 0.0 <= residual <= 1.0:
        raise ValueError(f"residual must lie in [0, 1], got {residual}")
