"""A BERT (post-LN, learned positions) over packed cells: its weights, its embeddings, the logits of its heads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from scfast.models.bert_shape import HEAD, BertShape
from scfast.models.checkpoint import check_tensors
from scfast.models.encoder import ACTIVATIONS, Affine, Layer, PackedEncoder

if TYPE_CHECKING:
    from scfast.attention import Recorder
    from scfast.models.base import Tokens

#: May be in a checkpoint without being used: an index buffer, and parts of heads.
TOLERATED = (
    "bert.embeddings.position_ids",
    *(f"bert.pooler.dense.{part}" for part in ("weight", "bias")),
    *(f"cls.seq_relationship.{part}" for part in ("weight", "bias")),
    *(f"classifier.{part}" for part in ("weight", "bias")),
)


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
    packed
        The layers, ready to run.
    """

    def __init__(self, shape: BertShape, tensors: dict[str, torch.Tensor]) -> None:
        self.shape = shape
        self.tensors = dict(tensors)
        self.has_head = f"{HEAD}bias" in tensors
        self.n_classes = len(tensors["classifier.weight"]) if "classifier.weight" in tensors else 0
        layers = [self._layer(f"bert.encoder.layer.{layer}.") for layer in range(shape.n_layers)]
        self.packed = PackedEncoder(layers, shape.n_heads, shape.activation, shape.eps)

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
    def layers(self) -> Sequence[Layer]:
        """Weights of the layers."""
        return self.packed.layers

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
        """Run all layers over packed cells, as :meth:`PackedEncoder.forward` does: the last states [T, d], if any."""
        return self.packed.forward(self.embed(tokens), tokens.packing, recorder, block_tokens=block_tokens)
