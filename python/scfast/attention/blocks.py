"""A layer whose queries come in blocks of tokens: for cells that do not fit into memory as a whole.

Keys and values are whole, because every query sees them; queries, the attention's output and what a model makes of it
exist for one block at a time. A layer that a sweep will visit is kept by what enters it, half the size of its q and
k, which are computed again. No result depends on it beyond the rounding of sums over blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from scfast import ops
from scfast.attention.layer import LayerAttention, ScoreOptions
from scfast.ops import AttentionOutput
from scfast.packing import Packing

#: Tokens of a batch, and the packing of their queries with all keys.
Block = tuple[slice, Packing]


def query_blocks(packing: Packing, tokens: int) -> tuple[Block, ...]:
    """Blocks of so many queries each, the last one shorter; one without queries for an empty batch.

    Parameters
    ----------
    packing
        The cells.
    tokens
        Queries of a block, 1 or more.

    Returns
    -------
    tuple of (slice, Packing)
        The rows of each block among all queries, and its packing: its queries against all keys of their cells.

    Raises
    ------
    ValueError
        When a block should hold no token.

    Examples
    --------
    >>> import scfast
    >>> packing = scfast.Packing.from_lengths([3, 2])
    >>> [(rows.start, part.lengths_q, part.lengths_k) for rows, part in query_blocks(packing, 4)]
    [(0, (3, 1), (3, 2)), (4, (0, 1), (3, 2))]
    """
    if tokens < 1:
        raise ValueError(f"a block must hold a token or more, got {tokens}")
    offsets = packing.causal_offset.tolist()
    blocks = []
    for start in range(0, max(packing.total_q, 1), tokens):
        rows = slice(start, min(start + tokens, packing.total_q))
        cells = [
            (min(max(rows.start - first, 0), n), min(max(rows.stop - first, 0), n))
            for first, n in zip(packing.starts_q, packing.lengths_q, strict=True)
        ]
        part = Packing.from_lengths(
            [last - first for first, last in cells],
            packing.lengths_k,
            device=packing.device,
            causal_offset=[offset + first for offset, (first, _) in zip(offsets, cells, strict=True)],
        )
        blocks.append((rows, part))
    return tuple(blocks)


@dataclass(frozen=True)
class LayerBlocks:
    """The attention of one layer, its queries made block by block.

    Attributes
    ----------
    layer
        Number of the layer, from 0.
    queries
        Gives q [rows, H, D] of a block; called again where the layer is swept.
    keys
        Gives k [T, Hkv, D]; called again too.
    v
        [T, Hkv, Dv]; None when no output is wanted.
    blocks
        From :func:`query_blocks`.
    options
        Score options of the layer.
    """

    layer: int
    queries: Callable[[slice], torch.Tensor]
    keys: Callable[[], torch.Tensor]
    v: torch.Tensor | None
    blocks: Sequence[Block]
    options: ScoreOptions = field(default_factory=ScoreOptions)

    def parts(self) -> Iterator[tuple[slice, LayerAttention]]:
        """The attention of every block, in order."""
        k = self.keys()
        for rows, packing in self.blocks:
            yield rows, LayerAttention(self.layer, self.queries(rows), k, self.v, packing, self.options)


class BlockStatistics:
    """Statistics of a layer from those of its blocks: sums over queries are added, rows laid end to end."""

    def __init__(self) -> None:
        self._outputs: list[AttentionOutput] = []
        self._received: torch.Tensor | None = None

    def add(self, output: AttentionOutput | None) -> None:
        """Take those of the next block; its attention output is not kept."""
        if output is None:
            return
        if output.received is not None:
            self._received = (
                output.received if self._received is None else self._received.add_(output.received)
            )
        self._outputs.append(output._replace(out=output.out.new_empty(0), received=None))

    def merged(self) -> AttentionOutput | None:
        """Those of the layer; None where there were none."""
        if not self._outputs:
            return None
        rows = {
            name: None if getattr(self._outputs[0], name) is None
            else torch.cat([getattr(output, name) for output in self._outputs])
            for name in ("lse", "entropy", "max")
        }  # fmt: skip
        assert rows["lse"] is not None
        return AttentionOutput(
            self._outputs[0].out, rows["lse"], self._received, rows["entropy"], rows["max"]
        )


def column_sums(
    kept: LayerAttention | LayerBlocks,
    weights: torch.Tensor,
    backend: str,
    *,
    heads: str = "mean",
    residual: float | None = None,
    **more: Any,
) -> torch.Tensor:
    """``attention_colsum`` of a layer, whole or in blocks: float32 [R, T] for heads fused.

    In blocks the rollout step ``residual=a`` is put together here: a (r'^T A) + (1 - a) r' with
    r' = r / (a rho + 1 - a). The row sums rho are 1 for a mean of heads and H for a sum, else taken block by block.
    """
    options: dict[str, Any] = {**kept.options.kwargs(), **more, "heads": heads, "backend": backend}
    if isinstance(kept, LayerAttention):
        sums = ops.attention_colsum(kept.q, kept.k, kept.packing, weights, residual=residual, **options)
        assert isinstance(sums, torch.Tensor)
        return sums[:, 0]
    total = torch.zeros(weights.shape, device=weights.device)
    own = torch.empty_like(total)
    for rows, part in kept.parts():
        own[:, rows] = _shares(part, weights[:, rows], residual, options)
        sums = ops.attention_colsum(part.q, part.k, part.packing, own[:, rows], **options)
        assert isinstance(sums, torch.Tensor)
        total += sums[:, 0]
    return total if residual is None else total.mul_(residual).add_(own, alpha=1 - residual)


def _shares(
    part: LayerAttention, weights: torch.Tensor, residual: float | None, options: dict[str, Any]
) -> torch.Tensor:
    """The weights r' of a block's rows."""
    if residual is None:
        return weights
    rho: torch.Tensor | float = {"mean": 1.0, "sum": float(part.q.shape[1])}.get(options["heads"], 0.0)
    if not rho:
        _, row_sums = ops.attention_colsum(part.q, part.k, part.packing, weights, row_sums=True, **options)
        rho = row_sums[:, 0]
    return weights / (residual * rho + 1 - residual)
