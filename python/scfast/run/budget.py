"""Which part of the memory of a run goes where."""

from __future__ import annotations

from collections.abc import Mapping
from types import FunctionType, ModuleType
from typing import Any, NamedTuple

import torch

from scfast.models.base import AttentionSource
from scfast.run.memory import USABLE_SHARE, token_parts

#: Ids, positions, gene columns (int64), kinds (uint8), values (float32) and the matrix entry behind a token.
BYTES_AHEAD = 3 * 8 + 1 + 4 + 8


class Budget(NamedTuple):
    """What batches share.

    Attributes
    ----------
    granted
        Bytes in all.
    results
        Those that the results take in the end; 0 where that is other memory than the model's.
    """

    granted: int
    results: int

    def parts(
        self, source: AttentionSource, tokens: int, kept: Mapping[str, int], ahead: int = 0
    ) -> dict[str, int]:
        """Bytes of every part, which are those that were granted when they are added up.

        Parameters
        ----------
        source
            The model, in the form in which it runs.
        tokens
            Of the largest batch.
        kept
            Of a token: what :func:`~scfast.run.memory.bytes_per_token` takes.
        ahead
            Tokens that are made before the model needs them.

        Returns
        -------
        dict
            Name of a part -> bytes, without those of which there is nothing. ``"reserve"``: what allocators round up
            and keep, and the rows that are being read. ``"not needed"``: left over, because larger batches would not
            be faster.
        """
        parts = {name: tokens * each for name, each in token_parts(source, **kept).items()}
        parts["one block of tokens"] = source.bytes_per_token().get("block", 0)
        parts["results"] = self.results
        reserve = self.granted - int(self.granted * USABLE_SHARE)
        on_host = source.device.type == "cpu"
        parts["tokens made ahead"] = min(ahead * BYTES_AHEAD, reserve) if on_host else 0
        parts["reserve"] = reserve - parts["tokens made ahead"]
        parts["not needed"] = self.granted - sum(parts.values())
        return {name: size for name, size in parts.items() if size}


def weights_bytes(source: AttentionSource) -> int:
    """Bytes of the tensors that a model holds: they are loaded already, and stand beside the budget.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> layer = torch.nn.Linear(4, 2)
    >>> weights_bytes(SimpleNamespace(layers=[layer, layer], scale=torch.ones(3)))
    52
    """
    storages: dict[int, int] = {}
    seen: set[int] = set()
    waiting: list[Any] = [source]
    while waiting:
        x = waiting.pop()
        if id(x) in seen:
            continue
        seen.add(id(x))
        if isinstance(x, torch.Tensor):
            storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        elif isinstance(x, torch.nn.Module):
            waiting += [*x.parameters(), *x.buffers()]
        elif isinstance(x, Mapping):
            waiting += x.values()
        elif isinstance(x, (list, tuple)):
            waiting += x
        elif not isinstance(x, (type, FunctionType, ModuleType)):
            waiting += getattr(x, "__dict__", {}).values()
    return sum(storages.values())
