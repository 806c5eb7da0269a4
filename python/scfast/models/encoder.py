"""Post-norm transformer layers over packed cells: the part that BERT and nn.TransformerEncoder models share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from scfast.attention import (
    LayerAttention,
    LayerBlocks,
    LayerNorm,
    LayerParts,
    ScoreOptions,
    query_blocks,
)
from scfast.models.base import TokenBytes

if TYPE_CHECKING:
    from scfast.attention import Recorder
    from scfast.attention.blocks import Block
    from scfast.packing import Packing

#: Name of an activation, as checkpoints have it -> the function; relu works in place.
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": torch.relu_,
    "gelu": functional.gelu,
    "gelu_new": partial(functional.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(functional.gelu, approximate="tanh"),
}

#: Takes the name of a norm and its input [T, d].
Report: TypeAlias = Callable[[str, torch.Tensor], None]


def _nobody(norm: str, x: torch.Tensor) -> None:
    """The report where nobody wants one."""


def _added(x: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """Their sum: in place of ``x`` where it has their dtype; under autocast x is bfloat16, and the sum is not."""
    return x.add_(states) if x.dtype == states.dtype else x + states


class Affine(NamedTuple):
    """Weight and bias of a linear map or a layer norm."""

    weight: torch.Tensor
    bias: torch.Tensor


class Layer(NamedTuple):
    """One layer, with q and k in one matrix product.

    v stays apart: q and k of every layer are kept for a backward sweep, and a view into a common q, k, v
    tensor would keep v alive with them, half as much memory again. Splitting
    costs about 3 % of the q, k, v product (d = 256, 8192 tokens, one thread).
    """

    qk: Affine
    v: Affine
    output: Affine
    attention_norm: Affine
    up: Affine
    down: Affine
    output_norm: Affine


@dataclass(frozen=True, eq=False)
class PackedEncoder:
    """Layers of x <- norm(x + attention(x)); x <- norm(x + feed-forward(x)), ready to run on packed cells.

    Embeddings and heads are the model's own: it hands in the states that enter the first layer.

    Attributes
    ----------
    layers
        Weights, first layer first.
    n_heads
        Heads of every layer; they divide the width.
    activation
        Of the feed-forward part: a name in :data:`ACTIVATIONS`.
    eps
        Added to the variance in every layer norm.
    recompute
        Where gradients flow, the backward pass computes everything but the attention anew: half the memory for a third
        more time.

    Examples
    --------
    >>> import scfast
    >>> from scfast.models import torch_layers
    >>> module = torch.nn.TransformerEncoder(torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 3)
    >>> layers = torch_layers.from_tensors(module.state_dict(), "layers.", n_layers=3)
    >>> encoder = PackedEncoder(layers, n_heads=2, activation="relu", eps=1e-5)
    >>> cells, x = scfast.Packing.from_lengths([3, 2]), torch.randn(5, 8)
    >>> recorder = scfast.attention.Recorder([scfast.observables.HiddenStates()])
    >>> with torch.no_grad():
    ...     recorder.begin(encoder.n_layers, cells)
    ...     ours = encoder.forward(x, cells, recorder)
    ...     recorder.finish()
    ...     theirs = module.eval()(x[None, 3:])[0]
    >>> torch.allclose(ours[3:], theirs, atol=1e-5)
    True
    """

    layers: Sequence[Layer]
    n_heads: int
    activation: str
    eps: float
    recompute: bool = True

    @property
    def n_layers(self) -> int:
        """Number of layers."""
        return len(self.layers)

    @property
    def hidden(self) -> int:
        """Width of the states, d."""
        return self.layers[0].v.weight.shape[1]

    @property
    def head_dim(self) -> int:
        """Width of one head, D."""
        return self.hidden // self.n_heads

    def forward(
        self,
        states: torch.Tensor,
        packing: Packing,
        recorder: Recorder,
        options: ScoreOptions | None = None,
        block_tokens: int | None = None,
        rows: torch.Tensor | None = None,
    ) -> torch.Tensor | None:
        """Run all layers over packed cells; ``recorder`` computes the attention of each.

        Parameters
        ----------
        states
            [T, d]: what enters the first layer.
        packing
            Where the cells lie.
        recorder
            Has begun.
        options
            Of every layer's scores, such as a bias [T] of the keys, or causal. Default: scaled products.
        block_tokens
            Only k, v and the states around a layer are whole: queries, attention output and feed-forward part exist
            for so many tokens at a time.
        rows
            int64 [M], rising: tokens whose last states are wanted. The last layer then has no other queries: where a
            tenth of the tokens is guessed, a tenth of its work, but for k and v. Not with causal scores, which count
            queries by their place, nor in blocks, nor where the last states are observed.

        Returns
        -------
        The last states [T, d], or [M, d] of ``rows``; None where it stopped because nobody wants them.
        """
        options = options or ScoreOptions()
        if rows is not None and (options.causal or block_tokens or recorder.wants_hidden(self.n_layers)):
            raise ValueError("rows= is not for causal scores, blocks or observed last states: leave it out")
        if options.scale is None:
            options = replace(options, scale=self.head_dim**-0.5)
        blocks = query_blocks(packing, block_tokens) if block_tokens else None
        for number, layer in enumerate(self.layers):
            if recorder.wants_hidden(number):
                recorder.hidden(number, states)
            last = number == self.n_layers - 1
            stop = last and not recorder.needs_output and not recorder.wants_hidden(self.n_layers)
            if blocks is not None:
                attention = self._attention_in_blocks(number, layer, states, blocks, options, not stop)
                states = self._layer_in_blocks(layer, attention, states, recorder)
                if stop:
                    return None
                continue
            chosen = rows if last else None
            out = recorder.attend(
                self._attention(number, layer, states, packing, options, with_v=not stop, rows=chosen)
            )
            states = states if chosen is None else states[chosen]
            if stop:
                return None
            if out is None:
                raise RuntimeError(
                    f"the recorder returned no attention output for layer {number}, though v was given"
                )
            if self.recompute and out.requires_grad and not recorder.needs_parts:
                states = checkpoint(
                    self._rest, layer, out, states, use_reentrant=False, preserve_rng_state=False
                )
                del out
                continue
            report = partial(recorder.norm_input, number) if recorder.needs_parts else _nobody
            states = self._attended(layer, out, states, report)
            del out
            states = self._fed(layer, states, report)
        if recorder.wants_hidden(self.n_layers):
            recorder.hidden(self.n_layers, states)
        return states

    def bytes_per_token(self, block_tokens: int | None = None) -> TokenBytes:
        """What one token costs in memory; the activations are the wider of attention and feed-forward.

        In blocks: the states around a layer, k and v are whole; a kept layer is what entered it; of a block there are
        its queries, attention output, feed-forward part, and three states between them.
        """
        size, d, heads = self.layers[0].v.weight.dtype.itemsize, self.hidden, 8 * self.n_heads
        up = len(self.layers[0].up.bias) * (1 if self.activation == "relu" else 2)
        if block_tokens is None:
            return TokenBytes(
                activations=size * max(6 * d, 2 * d + up) + heads, qk_per_layer=size * 2 * d, hidden=size * d,
                graph_per_layer=size * 4 * d + heads,  # values, output, its gradient, state
            )  # fmt: skip
        block = block_tokens * (size * (5 * d + up) + heads)
        return TokenBytes(
            activations=size * 4 * d + heads, qk_per_layer=size * d, hidden=size * d, block=block
        )

    def _norm(self, states: torch.Tensor, norm: Affine) -> torch.Tensor:
        return functional.layer_norm(states, (self.hidden,), norm.weight, norm.bias, self.eps)

    def _attended(
        self, layer: Layer, out: torch.Tensor, states: torch.Tensor, report: Report
    ) -> torch.Tensor:
        """States [T, d] after the attention, whose heads gave ``out`` [T, H, D], and its norm."""
        attended = _added(functional.linear(out.flatten(1), *layer.output), states)
        report("attention", attended)
        return self._norm(attended, layer.attention_norm)

    def _fed(self, layer: Layer, states: torch.Tensor, report: Report) -> torch.Tensor:
        """States [T, d] after the feed-forward part and its norm."""
        activation = ACTIVATIONS[self.activation]
        fed = functional.linear(activation(functional.linear(states, *layer.up)), *layer.down)
        fed = _added(fed, states)
        report("output", fed)
        return self._norm(fed, layer.output_norm)

    def _rest(self, layer: Layer, out: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        return self._fed(layer, self._attended(layer, out, states, _nobody), _nobody)

    def _attention(
        self,
        number: int,
        layer: Layer,
        states: torch.Tensor,
        packing: Packing,
        options: ScoreOptions,
        with_v: bool,
        rows: torch.Tensor | None = None,
    ) -> LayerAttention:
        per_head = (self.n_heads, self.head_dim)
        if rows is None:
            q, k = (
                functional.linear(states, *layer.qk).unflatten(-1, (2, *per_head)).unbind(1)
            )  # [T, 2, H, D]
        else:
            (wq, wk), (bq, bk) = (part.chunk(2) for part in layer.qk)
            q = functional.linear(states[rows], wq, bq).unflatten(-1, per_head)  # [M, H, D]
            k = functional.linear(states, wk, bk).unflatten(-1, per_head)
            packing = packing.of_queries(rows)
        v = functional.linear(states, *layer.v).unflatten(-1, per_head) if with_v else None
        return LayerAttention(
            layer=number, q=q, k=k, v=v, packing=packing, options=options,
            hidden_in=states, parts=self._parts(layer),
        )  # fmt: skip

    def _attention_in_blocks(
        self,
        number: int,
        layer: Layer,
        states: torch.Tensor,
        blocks: Sequence[Block],
        options: ScoreOptions,
        with_v: bool,
    ) -> LayerBlocks:
        per_head = (self.n_heads, self.head_dim)
        (wq, wk), (bq, bk) = (part.chunk(2) for part in layer.qk)
        return LayerBlocks(
            layer=number,
            queries=lambda rows: functional.linear(states[rows], wq, bq).unflatten(-1, per_head),
            keys=lambda: functional.linear(states, wk, bk).unflatten(-1, per_head),
            v=functional.linear(states, *layer.v).unflatten(-1, per_head) if with_v else None,
            blocks=blocks,
            options=options,
        )

    def _layer_in_blocks(
        self, layer: Layer, attention: LayerBlocks, states: torch.Tensor, recorder: Recorder
    ) -> torch.Tensor:
        """States [T, d] after the layer; those before it where no output is wanted."""
        following = states if attention.v is None else torch.empty_like(states)
        for rows, out in recorder.attend_blocks(attention):
            if out is not None:
                following[rows] = self._rest(layer, out, states[rows])
        return following

    def _parts(self, layer: Layer) -> LayerParts:
        return LayerParts(
            projection=layer.output.weight,
            attention_norm=LayerNorm(*layer.attention_norm, self.eps),
            output_norm=LayerNorm(*layer.output_norm, self.eps),
        )
