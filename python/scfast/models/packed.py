"""A model over packed cells: what its forward and its memory have in common, whatever its embeddings are."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING

import torch

from scfast.models.base import AttentionSource, Tokens
from scfast.observables.target import Target

if TYPE_CHECKING:
    from scfast.attention import Recorder


class PackedSource(AttentionSource):
    """A source that embeds packed tokens and runs layers over them: subclasses say how, in :meth:`encode`."""

    @abc.abstractmethod
    def encode(self, tokens: Tokens, recorder: Recorder) -> torch.Tensor | None:
        """Embed tokens, which are on the model's device, and run the layers: the last states [T, d], if any."""

    def target_values(self, target: Target, tokens: Tokens, states: torch.Tensor) -> torch.Tensor:
        """The target of every cell, float32 [B], from the last states [T, d]."""
        raise ValueError(f"target={str(target)!r}: {self.name} cannot be differentiated")

    def forward(self, tokens: Tokens, recorder: Recorder) -> None:
        """Run the encoder over all cells at once; the recorder computes the attention.

        Tokens on another device are copied to that of the model; what is recorded stays there. Gradients flow only
        where the recorder has a target, and never to the weights.

        Raises
        ------
        ValueError
            When a cell is longer than the model's context.
        """
        longest = max(tokens.lengths, default=0)
        if longest > self.max_tokens:
            raise ValueError(
                f"a cell has {longest} tokens; {self.name} takes {self.max_tokens}: tokenise with it"
            )
        tokens = tokens.to(self.device)
        target = None if recorder.target is None else self.check_target(recorder.target, recorder.gene_names)
        for _ in range(recorder.passes(self.n_layers)):
            with torch.set_grad_enabled(target is not None):
                recorder.begin(
                    self.n_layers,
                    tokens.packing,
                    kind=tokens.kind,
                    gene_index=tokens.gene_index,
                    cls_position=self.cls_position,
                )
                states = self.encode(tokens, recorder)
                if target is not None:
                    assert states is not None
                    recorder.differentiate(self.target_values(target, tokens, states))
                recorder.finish()
