"""States between the layers of a torch model, taken from the modules whose outputs they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from scfast.attention.session import Session


def watch_blocks(
    session: Session,
    blocks: Sequence[nn.Module],
    stack: ExitStack,
    cells_first: Callable[[torch.Tensor], torch.Tensor] | None,
) -> None:
    """Report the input of the first block, and the output of each, as states.

    Parameters
    ----------
    session
        Of the recording; block i must end after the attention of layer i and before that of layer i + 1.
    blocks
        Each returns its states, or a tuple that begins with them.
    stack
        Takes the removal of the hooks.
    cells_first
        Turns states into [B, L, d]; None: they are so already.
    """

    def report(layer: int, states: torch.Tensor) -> None:
        if session.is_active:
            session.hidden(layer, states if cells_first is None else cells_first(states))

    def after(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if session.layer == 1:
            report(0, args[0] if args else next(iter(kwargs.values())))
        report(session.layer, output[0] if isinstance(output, tuple) else output)

    for block in blocks:
        stack.callback(block.register_forward_hook(after, with_kwargs=True).remove)
