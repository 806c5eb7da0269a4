"""Recording: what a model's attention says, taken while it runs.

:func:`record` wraps a model; :class:`Recorder` is what an adapter of scfast's own models reports to;
importing this package makes ``attn_implementation="scfast"`` known to transformers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from scfast.attention import huggingface, multihead
from scfast.attention.blocks import LayerBlocks, query_blocks
from scfast.attention.layer import LayerAttention, LayerNorm, LayerParts, ScoreOptions
from scfast.attention.recorder import Recorder
from scfast.attention.registration import register_with_transformers
from scfast.observables.base import Observable

if TYPE_CHECKING:
    from scfast.models.base import AttentionSource

__all__ = [
    "LayerAttention",
    "LayerBlocks",
    "LayerNorm",
    "LayerParts",
    "Recorder",
    "ScoreOptions",
    "query_blocks",
    "record",
]

register_with_transformers()


@contextmanager
def record(
    model: torch.nn.Module | AttentionSource,
    *observables: Observable,
    backend: str = "auto",
    cls_position: int | None = 0,
    gene_names: Sequence[str] | None = None,
    keep: bool = True,
) -> Iterator[Recorder]:
    """Record what observables want, of every forward of a model inside the block.

    Parameters
    ----------
    model
        A Hugging Face model that takes an attention interface (or a module that holds one), a module made of
        ``nn.MultiheadAttention`` layers, or an :class:`~scfast.models.AttentionSource`, whose ``forward`` is
        then called with the recorder. Its attention is switched for the time of the block and restored on
        exit.
    *observables
        What to compute, such as ``Rollout()``, ``Received()``, ``Entropy()``, ``HiddenStates()``; one visit
        per layer serves all of them.
    backend
        Of the ops: ``"auto"``, ``"cpu"`` or ``"reference"``.
    cls_position
        Token of each cell that ``"cls"`` means; -1 for models that put it last; None if there is none.
        Sources know theirs.
    gene_names
        Names of the counts' columns, for readouts such as ``"gene:CD3D"`` of a source.
    keep
        False: results of earlier batches are let go; read ``rec.batch`` after each forward.

    Yields
    ------
    Recorder
        ``rec[name]`` is a list of one tensor per cell, pads left out, over all forwards in the block.

    Raises
    ------
    TypeError
        A model whose attention cannot be recorded.
    NotImplementedError
        Features that are not implemented, named: dropout in training, sliding windows, sinks,
        cross-attention, masks other than padding and causal ones.

    Notes
    -----
    A batch is one forward of ``model`` itself. Which model is recorded is known to the calling context only:
    threads with a context of their own run it unrecorded. Replays of gradient checkpointing are not recorded
    again. Every token of these models counts as a gene for the readout ``"mean"``; pass weights to leave some
    out.

    Examples
    --------
    >>> import torch, scfast
    >>> from scfast.observables import Received, Rollout
    >>> layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    >>> model = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    >>> pads = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    >>> with torch.no_grad(), scfast.record(model, Rollout("cls"), Received()) as rec:
    ...     _ = model(torch.randn(2, 5, 8), src_key_padding_mask=pads)
    >>> [len(scores) for scores in rec["rollout"]]
    [5, 3]
    """
    from scfast.models.base import AttentionSource

    recorder = Recorder(observables, backend=backend, gene_names=gene_names, keep=keep)
    if isinstance(model, AttentionSource):
        yield recorder
    elif not isinstance(model, torch.nn.Module):
        raise TypeError(f"record takes a torch.nn.Module or an AttentionSource, got {type(model).__name__}")
    elif huggingface.pretrained_modules(model):
        with huggingface.recording(model, recorder, cls_position):
            yield recorder
    elif multihead.attention_modules(model):
        with multihead.recording(model, recorder, cls_position):
            yield recorder
    else:
        raise TypeError(
            f"{type(model).__name__} holds neither a Hugging Face model nor nn.MultiheadAttention layers, so "
            "its attention cannot be recorded; write an AttentionSource for it"
        )
