"""A batch of tokens as torch modules take it: padded rows, or one packed row."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch

from scfast.models.base import Tokens


@dataclass(frozen=True)
class ModelBatch:
    """What a wrapped model is called with: B cells padded on the right to [B, L], or all in one row [1, T].

    Attributes
    ----------
    tokens
        The same cells, packed.
    ids
        int64 [B, L]: rows of the token table; ``pad`` on pads.
    positions
        int64 [B, L]: from 0 in each cell, also in a packed row; 0 on pads.
    mask
        bool [B, L]: True on tokens.
    is_packed
        Whether all cells lie in one row, which has no pads.

    Examples
    --------
    >>> import torch
    >>> from scfast.models import pack_cells
    >>> batch = ModelBatch.padded(pack_cells([[7, 9], [4]]), pad=1)
    >>> batch.ids.tolist(), batch.pads.tolist()
    ([[7, 9], [4, 1]], [[False, False], [False, True]])
    >>> ModelBatch.packed(batch.tokens).positions.tolist()
    [[0, 1, 0]]
    """

    tokens: Tokens
    ids: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
    is_packed: bool

    @classmethod
    def padded(cls, tokens: Tokens, pad: int = 0) -> ModelBatch:
        """Every cell in a row of its own."""
        lengths = torch.tensor(tokens.lengths, device=tokens.device)
        places = torch.arange(max(tokens.lengths, default=0), device=tokens.device)
        mask = places < lengths[:, None]
        return cls(tokens, _rows(tokens.ids, mask, pad), _rows(tokens.positions, mask, 0), mask, False)

    @classmethod
    def packed(cls, tokens: Tokens) -> ModelBatch:
        """All cells in one row, one after another."""
        ids = tokens.ids[None]
        return cls(tokens, ids, tokens.positions[None], torch.ones_like(ids, dtype=torch.bool), True)

    @property
    def pads(self) -> torch.Tensor:
        """Which of [B, L] are pads, bool, as ``key_padding_mask`` of torch's modules."""
        return ~self.mask

    @cached_property
    def values(self) -> torch.Tensor:
        """float32 [B, L]: the values that the tokeniser gave beside the ids; 0 on pads.

        Raises
        ------
        ValueError
            When it gave none.
        """
        if self.tokens.values is None:
            raise ValueError("the tokeniser gave no values: return {'ids': ..., 'values': ...} from it")
        return _rows(self.tokens.values, self.mask, 0)

    @cached_property
    def external(self) -> torch.Tensor:
        """int64 [B, L]: what the tokeniser gave as ``external``; 0 on pads.

        Raises
        ------
        ValueError
            When it gave nothing.
        """
        if self.tokens.external is None:
            raise ValueError(
                "the tokeniser gave no external tokens: return {'ids': ..., 'external': ...} from it"
            )
        return _rows(self.tokens.external, self.mask, 0)


def _rows(packed: torch.Tensor, mask: torch.Tensor, fill: int) -> torch.Tensor:
    return packed.new_full(mask.shape, fill).index_put((mask,), packed)
