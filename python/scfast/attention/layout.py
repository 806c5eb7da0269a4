"""From padded batches to packed tokens and back."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from scfast.packing import Packing


@dataclass(frozen=True)
class Layout:
    """Where the tokens of a padded batch [B, L] lie once packed.

    Attributes
    ----------
    packing
        Of the packed tokens.
    queries, keys
        Bool [B, Lq] and [B, Lk], False on pads; None when there are no pads.
    """

    packing: Packing
    queries: torch.Tensor | None
    keys: torch.Tensor | None

    def pack_queries(self, x: torch.Tensor) -> torch.Tensor:
        """[B, Lq, ...] -> [Tq, ...]; a view where there are no pads and strides allow."""
        return _pack(x, self.queries)

    def pack_keys(self, x: torch.Tensor) -> torch.Tensor:
        """[B, Lk, ...] -> [Tk, ...]."""
        return _pack(x, self.keys)

    def unpack(self, x: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
        """[Tq, ...] -> [B, Lq, ...], zero on pads."""
        if self.queries is None:
            return x.unflatten(0, shape)
        padded = x.new_zeros((*shape, *x.shape[1:]))
        return padded.index_put((self.queries,), x)

    @classmethod
    def padded(
        cls, n_cells: int, n_queries: int, n_keys: int, mask: torch.Tensor | None, device: torch.device
    ) -> Layout:
        """Of a batch [B, L]; ``mask`` [B, Lk] is True on tokens; queries are the last Lq of the keys."""
        if mask is None or bool(mask.all()):
            keys = None if n_keys == n_queries else [n_keys] * n_cells
            return cls(Packing.from_lengths([n_queries] * n_cells, keys, device=device), None, None)
        if tuple(mask.shape) != (n_cells, n_keys):
            raise ValueError(f"the padding mask must be [{n_cells}, {n_keys}], got {tuple(mask.shape)}")
        queries = mask[:, n_keys - n_queries :]
        lengths_k = None if n_keys == n_queries else mask.sum(1)
        return cls(Packing.from_lengths(queries.sum(1), lengths_k, device=device), queries, mask)

    @classmethod
    def from_cu_seqlens(
        cls, cu_seqlens_q: torch.Tensor, cu_seqlens_k: torch.Tensor | None, n_cells: int, device: torch.device
    ) -> Layout:
        """Of a batch that is packed already, as [1, T] with cumulative lengths."""
        if n_cells != 1:
            raise ValueError(
                f"cu_seq_lens_q describes one packed row [1, T], but the batch has {n_cells} rows"
            )
        lengths_q = cu_seqlens_q.diff()
        lengths_k = lengths_q if cu_seqlens_k is None else cu_seqlens_k.diff()
        keys = None if torch.equal(lengths_q, lengths_k) else lengths_k
        return cls(Packing.from_lengths(lengths_q, keys, device=device), None, None)

    @classmethod
    def from_positions(cls, position_ids: torch.Tensor, n_cells: int, device: torch.device) -> Layout:
        """Of a batch whose rows hold several cells each, told apart by positions that start anew."""
        positions = position_ids.reshape(-1, position_ids.shape[-1]).expand(n_cells, -1)
        starts = torch.ones(positions.shape, dtype=torch.bool, device=positions.device)
        starts[:, 1:] = positions.diff() != 1
        if not bool((positions[starts] == positions[0, 0]).all()):
            raise ValueError(
                "position_ids neither run through nor start anew at their first value, so they do not say "
                "where cells begin: pass an attention_mask (position_ids are then left alone) or "
                "cu_seq_lens_q"
            )
        return cls.from_starts(starts, device)

    @classmethod
    def from_starts(cls, starts: torch.Tensor, device: torch.device) -> Layout:
        """Of rows [B, L] that hold several cells each; ``starts`` is not zero where a cell begins."""
        begins = starts.flatten().nonzero()[:, 0]
        lengths = begins.diff(append=begins.new_tensor([starts.numel()]))
        return cls(Packing.from_lengths(lengths, device=device), None, None)


def _pack(x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    return x.flatten(0, 1) if mask is None else x[mask]
