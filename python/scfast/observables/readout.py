"""Readouts: which tokens stand for a cell, as row weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from scfast.observables.base import GENE, BatchInfo


def readout_weights(readout: str | torch.Tensor, batch: BatchInfo) -> torch.Tensor:
    """Weights of a readout over the packed tokens.

    Parameters
    ----------
    readout
        ``"cls"``: one at the cell's cls token. ``"mean"``: even over its gene tokens. ``"gene:NAME"``: even
        over the tokens of that gene, all zero in cells without it. Or weights, [T] or [R, T].
    batch
        The batch that runs.

    Returns
    -------
    torch.Tensor
        float32 [R, T]; everything that is not read is exactly zero, which lets kernels skip it.

    Raises
    ------
    ValueError
        The batch has no such readout, or weights of another shape or that are not finite.
    """
    if isinstance(readout, torch.Tensor):
        return _given(readout, batch)
    if readout == "cls":
        return _cls(batch)[None]
    if readout == "mean":
        return _even(_gene_tokens(batch), batch)[None]
    return _even(_tokens_of(readout.removeprefix("gene:"), batch), batch)[None]


def check_readout(readout: str | torch.Tensor) -> None:
    """Refuse what is not a readout, before a model runs."""
    named = isinstance(readout, str) and (readout in ("cls", "mean") or readout.startswith("gene:"))
    if not named and not isinstance(readout, torch.Tensor):
        raise ValueError(
            f"readout={readout!r} is unknown; use 'cls', 'mean', 'gene:NAME' or a tensor [R, T] of weights"
        )


def _given(weights: torch.Tensor, batch: BatchInfo) -> torch.Tensor:
    rows = weights[None] if weights.dim() == 1 else weights
    total = batch.packing.total_q
    if rows.dim() != 2 or rows.shape[1] != total:
        raise ValueError(f"readout weights must be [R, {total}] for this batch, got {tuple(weights.shape)}")
    if not torch.isfinite(rows).all():
        raise ValueError("readout weights must be finite; replace NaN and infinity")
    return rows.to(device=batch.packing.device, dtype=torch.float32)


def _cls(batch: BatchInfo) -> torch.Tensor:
    position = batch.cls_position
    if position is None:
        raise ValueError("this model has no cls token: use readout='mean', 'gene:NAME' or weights")
    weights = torch.zeros(batch.packing.total_q, device=batch.packing.device)
    at = []
    for cell, (start, length) in enumerate(zip(batch.packing.starts_q, batch.packing.lengths_q, strict=True)):
        if length == 0:
            continue
        if not -length <= position < length:
            raise ValueError(f"cls_position={position} lies outside cell {cell}, which has {length} tokens")
        at.append(start + position % length)
    return weights.index_fill_(0, torch.tensor(at, dtype=torch.int64, device=weights.device), 1.0)


def _gene_tokens(batch: BatchInfo) -> torch.Tensor:
    if batch.kind is None:
        return torch.ones(batch.packing.total_q, dtype=torch.bool, device=batch.packing.device)
    return (batch.kind == GENE).to(batch.packing.device)


def _tokens_of(name: str, batch: BatchInfo) -> torch.Tensor:
    names: Sequence[str] | None = batch.gene_names
    if batch.gene_index is None or names is None:
        raise ValueError(
            f"readout='gene:{name}' needs to know which token is which gene: give gene_names to the recorder "
            "and gene_index with the batch, or pass weights [R, T] as the readout"
        )
    columns = [column for column, other in enumerate(names) if other == name]
    if len(columns) != 1:
        raise ValueError(
            f"readout gene {name!r} occurs {len(columns)} times in gene_names; it must occur once"
        )
    return (batch.gene_index == columns[0]).to(batch.packing.device)


def _even(chosen: torch.Tensor, batch: BatchInfo) -> torch.Tensor:
    """float32 [T]: 1/n on each of a cell's n chosen tokens."""
    cell = batch.packing.cell_of_query()
    count = torch.zeros(batch.packing.n_cells, device=cell.device).index_add_(0, cell, chosen.float())
    return torch.where(chosen, 1.0 / count.clamp(min=1.0)[cell], 0.0)
