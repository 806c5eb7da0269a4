"""The encoder of a BERT (post-LN, learned positions) over packed cells, its weights, and the logits of its heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from scfast.models.bert_shape import ACTIVATIONS, HEAD, BertShape
from scfast.models.checkpoint import check_tensors

if TYPE_CHECKING:
    from scfast.attention import Recorder
    from scfast.attention.blocks import Block
    from scfast.models.base import Tokens

#: May be in a checkpoint without being used: an index buffer, and parts of heads.
TOLERATED = (
    "bert.embeddings.position_ids",
    *(f"bert.pooler.dense.{part}" for part in ("weight", "bias")),
    *(f"cls.seq_relationship.{part}" for part in ("weight", "bias")),
    *(f"classifier.{part}" for part in ("weight", "bias")),
)

#: Takes the name of a norm and its input [T, d].
Report: TypeAlias = Callable[[str, torch.Tensor], None]


def _nobody(norm: str, x: torch.Tensor) -> None:
    """The report where nobody wants one."""


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


class BertEncoder:
    """Weights ready to run, and the packed forward.

    Attributes
    ----------
    shape
        Sizes and options.
    tensors
        Every weight under its name in BertForMaskedLM; q and k are views of the fused matrices.
    has_head
        Whether the masked-gene head is among them.
    n_classes
        Classes of the sequence classifier among them; 0 when there is none.
    """

    def __init__(self, shape: BertShape, tensors: dict[str, torch.Tensor]) -> None:
        self.shape = shape
        self.tensors = dict(tensors)
        self.has_head = f"{HEAD}bias" in tensors
        self.n_classes = len(tensors["classifier.weight"]) if "classifier.weight" in tensors else 0
        self.layers = [self._layer(f"bert.encoder.layer.{layer}.") for layer in range(shape.n_layers)]

    @classmethod
    def from_checkpoint(
        cls, shape: BertShape, tensors: dict[str, torch.Tensor], dtype: torch.dtype, origin: str
    ) -> BertEncoder:
        """Check names and shapes, refuse what does not fit, and cast to ``dtype``.

        Checkpoints of BertForMaskedLM, BertModel and the BERT classifiers are read.
        """
        if not any(name.startswith("bert.") for name in tensors):
            tensors = {
                f"bert.{name}" if not name.startswith("cls") else name: t for name, t in tensors.items()
            }
        expected = shape.encoder_weights()
        tolerated = list(TOLERATED)
        if any(name.startswith(HEAD) for name in tensors):
            expected |= shape.head_weights()
            # Tied to the token table and to the head's bias; a .bin file stores them twice.
            tolerated += [f"{HEAD}decoder.weight", f"{HEAD}decoder.bias"]
            if f"{HEAD}bias" not in tensors and f"{HEAD}decoder.bias" in tensors:
                tensors = tensors | {f"{HEAD}bias": tensors[f"{HEAD}decoder.bias"]}
        if {"bert.pooler.dense.weight", "classifier.weight"} <= tensors.keys():
            expected |= shape.classifier_weights(len(tensors["classifier.weight"]))
        check_tensors(tensors, expected, tolerated, origin)
        return cls(shape, {name: tensors[name].to(dtype).contiguous() for name in expected})

    @classmethod
    def initialised(cls, shape: BertShape, dtype: torch.dtype, seed: int) -> BertEncoder:
        """Fresh weights as transformers initialises them: normal, biases 0, norms 1, the pad row 0."""
        generator = torch.Generator().manual_seed(seed)
        tensors: dict[str, torch.Tensor] = {}
        for name, size in (shape.encoder_weights() | shape.head_weights()).items():
            if name.endswith("bias"):
                tensors[name] = torch.zeros(size, dtype=dtype)
            elif name.endswith("LayerNorm.weight"):
                tensors[name] = torch.ones(size, dtype=dtype)
            else:
                weight = torch.empty(size).normal_(0.0, shape.initializer_range, generator=generator)
                if name.endswith("word_embeddings.weight"):
                    weight[shape.pad] = 0
                tensors[name] = weight.to(dtype)
        return cls(shape, tensors)

    def to(self, device: torch.device | str) -> BertEncoder:
        """The same encoder with its weights on ``device``, itself where they are there already; else a copy."""
        moved = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        here = all(moved[name] is tensor for name, tensor in self.tensors.items())
        return self if here else BertEncoder(self.shape, moved)

    @property
    def dtype(self) -> torch.dtype:
        """Of weights and activations."""
        return self.tensors["bert.embeddings.word_embeddings.weight"].dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.tensors["bert.embeddings.word_embeddings.weight"].device

    def _affine(self, name: str) -> Affine:
        return Affine(self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"])

    def _layer(self, prefix: str) -> Layer:
        query, key = (
            self._affine(f"{prefix}attention.self.query"),
            self._affine(f"{prefix}attention.self.key"),
        )
        qk = Affine(torch.cat([query.weight, key.weight]), torch.cat([query.bias, key.bias]))
        for row, part in enumerate(("query", "key")):
            for kind, fused in zip(("weight", "bias"), qk, strict=True):
                self.tensors[f"{prefix}attention.self.{part}.{kind}"] = fused.chunk(2)[row]
        return Layer(
            qk=qk,
            v=self._affine(f"{prefix}attention.self.value"),
            output=self._affine(f"{prefix}attention.output.dense"),
            attention_norm=self._affine(f"{prefix}attention.output.LayerNorm"),
            up=self._affine(f"{prefix}intermediate.dense"),
            down=self._affine(f"{prefix}output.dense"),
            output_norm=self._affine(f"{prefix}output.LayerNorm"),
        )

    def _norm(self, states: torch.Tensor, norm: Affine) -> torch.Tensor:
        return functional.layer_norm(states, (self.shape.hidden,), norm.weight, norm.bias, self.shape.eps)

    def embed(self, tokens: Tokens) -> torch.Tensor:
        """States [T, d] that enter the first layer."""
        states = functional.embedding(tokens.ids, self.tensors["bert.embeddings.word_embeddings.weight"])
        states += self.tensors["bert.embeddings.token_type_embeddings.weight"][0]
        states += functional.embedding(
            tokens.positions, self.tensors["bert.embeddings.position_embeddings.weight"]
        )
        return self._norm(states, self._affine("bert.embeddings.LayerNorm"))

    def classify(self, states: torch.Tensor) -> torch.Tensor:
        """Logits [B, K] of the classes, from the last hidden state [B, d] of each cell's first token.

        As BertForSequenceClassification computes them: a dense layer, tanh, a linear map. Differentiable, so
        that a class logit can be the target of a gradient.

        Raises
        ------
        ValueError
            When the checkpoint came without a classifier.
        """
        if not self.n_classes:
            raise ValueError(
                "the checkpoint has no sequence classifier: fine-tune one with scfast.tl.finetune"
            )
        pooled = torch.tanh(functional.linear(states, *self._affine("bert.pooler.dense")))
        return functional.linear(pooled, *self._affine("classifier"))

    def gene_logits(self, states: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Logits [m] that the masked-gene head gives the tokens ``ids`` [m] at last states [m, d].

        The same numbers as BertForMaskedLM's, without those of the other tokens. Differentiable.
        """
        changed = functional.linear(states, *self._affine(f"{HEAD}transform.dense"))
        changed = self._norm(
            ACTIVATIONS[self.shape.activation](changed), self._affine(f"{HEAD}transform.LayerNorm")
        )
        table = self.tensors["bert.embeddings.word_embeddings.weight"]
        return (changed * table[ids]).sum(-1) + self.tensors[f"{HEAD}bias"][ids]

    def forward(
        self, tokens: Tokens, recorder: Recorder, block_tokens: int | None = None
    ) -> torch.Tensor | None:
        """Run all layers over packed cells; ``recorder`` computes the attention of each.

        Returns the last states [T, d], or None where it stopped because nobody wants them. With ``block_tokens`` only
        k, v and the states around a layer are whole: queries, attention output and feed-forward part exist for so many
        tokens at a time.
        """
        shape = self.shape
        options = ScoreOptions(scale=shape.head_dim**-0.5)
        blocks = query_blocks(tokens.packing, block_tokens) if block_tokens else None
        states = self.embed(tokens)
        for number, layer in enumerate(self.layers):
            if recorder.wants_hidden(number):
                recorder.hidden(number, states)
            last = number == shape.n_layers - 1
            stop = last and not recorder.needs_output and not recorder.wants_hidden(shape.n_layers)
            if blocks is not None:
                attention = self._attention_in_blocks(number, layer, states, blocks, options, not stop)
                states = self._layer_in_blocks(layer, attention, states, recorder)
                if stop:
                    return None
                continue
            out = recorder.attend(self._attention(number, layer, states, tokens, options, with_v=not stop))
            if stop:
                return None
            if out is None:
                raise RuntimeError(
                    f"the recorder returned no attention output for layer {number}, though v was given"
                )
            if out.requires_grad and not recorder.needs_parts:
                # the backward pass computes this anew from the attention: half the memory for a third more time
                states = checkpoint(
                    self._rest, layer, out, states, use_reentrant=False, preserve_rng_state=False
                )
                del out
                continue
            report = partial(recorder.norm_input, number) if recorder.needs_parts else _nobody
            states = self._attended(layer, out, states, report)
            del out
            states = self._fed(layer, states, report)
        if recorder.wants_hidden(shape.n_layers):
            recorder.hidden(shape.n_layers, states)
        return states

    def _attended(
        self, layer: Layer, out: torch.Tensor, states: torch.Tensor, report: Report
    ) -> torch.Tensor:
        """States [T, d] after the attention, whose heads gave ``out`` [T, H, D], and its norm."""
        attended = functional.linear(out.flatten(1), *layer.output)
        attended += states
        report("attention", attended)
        return self._norm(attended, layer.attention_norm)

    def _fed(self, layer: Layer, states: torch.Tensor, report: Report) -> torch.Tensor:
        """States [T, d] after the feed-forward part and its norm."""
        activation = ACTIVATIONS[self.shape.activation]
        fed = functional.linear(activation(functional.linear(states, *layer.up)), *layer.down)
        fed += states
        report("output", fed)
        return self._norm(fed, layer.output_norm)

    def _rest(self, layer: Layer, out: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        return self._fed(layer, self._attended(layer, out, states, _nobody), _nobody)

    def _attention(
        self,
        number: int,
        layer: Layer,
        states: torch.Tensor,
        tokens: Tokens,
        options: ScoreOptions,
        with_v: bool,
    ) -> LayerAttention:
        per_head = (self.shape.n_heads, self.shape.head_dim)
        q, k = functional.linear(states, *layer.qk).unflatten(-1, (2, *per_head)).unbind(1)  # [T, 2, H, D]
        v = functional.linear(states, *layer.v).unflatten(-1, per_head) if with_v else None
        return LayerAttention(
            layer=number, q=q, k=k, v=v, packing=tokens.packing, options=options,
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
        per_head = (self.shape.n_heads, self.shape.head_dim)
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
            attention_norm=LayerNorm(*layer.attention_norm, self.shape.eps),
            output_norm=LayerNorm(*layer.output_norm, self.shape.eps),
        )
