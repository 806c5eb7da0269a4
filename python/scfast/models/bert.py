"""The encoder of a BERT (post-LN, learned positions) over packed cells; its weights and their names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn import functional

from scfast.attention import LayerAttention, LayerNorm, LayerParts, ScoreOptions
from scfast.models.checkpoint import check_tensors

if TYPE_CHECKING:
    from scfast.attention import Recorder
    from scfast.models.base import Tokens

#: ``hidden_act`` of config.json -> the function; relu works in place.
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": torch.relu_,
    "gelu": functional.gelu,
    "gelu_new": partial(functional.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(functional.gelu, approximate="tanh"),
}
_HEAD = "cls.predictions."
#: May be in a checkpoint without being used: an index buffer, and parts of heads.
TOLERATED = (
    "bert.embeddings.position_ids",
    *(f"bert.pooler.dense.{part}" for part in ("weight", "bias")),
    *(f"cls.seq_relationship.{part}" for part in ("weight", "bias")),
    *(f"classifier.{part}" for part in ("weight", "bias")),
)


@dataclass(frozen=True)
class BertShape:
    """What ``config.json`` says about the encoder."""

    n_layers: int
    n_heads: int
    hidden: int
    intermediate: int
    vocabulary: int
    positions: int
    token_types: int
    eps: float
    activation: str
    initializer_range: float
    pad: int

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.hidden // self.n_heads

    @classmethod
    def from_config(cls, config: dict[str, Any], origin: str) -> BertShape:
        """Read a BertConfig, and refuse what the packed forward does not compute.

        Raises
        ------
        ValueError
            When a needed key is missing, or the model is of another kind.
        """
        needed = (
            "num_hidden_layers num_attention_heads hidden_size intermediate_size vocab_size "
            "max_position_embeddings hidden_act"
        )
        missing = [key for key in needed.split() if key not in config]
        if missing:
            raise ValueError(f"{origin} lacks {', '.join(missing)}: it is not the config.json of a BERT")
        refused = {
            "model_type": (config.get("model_type", "bert"), ("bert",)),
            "hidden_act": (config["hidden_act"], tuple(ACTIVATIONS)),
            "position_embedding_type": (
                config.get("position_embedding_type", "absolute"),
                ("absolute", None),
            ),
            "is_decoder": (config.get("is_decoder", False), (False,)),
            "add_cross_attention": (config.get("add_cross_attention", False), (False,)),
        }
        for key, (got, allowed) in refused.items():
            if got not in allowed:
                names = ", ".join(repr(value) for value in allowed if value is not None)
                raise ValueError(f"{origin} has {key}={got!r}; {names} can be run")
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        if hidden % heads:
            raise ValueError(f"{origin}: hidden_size {hidden} is not divisible by {heads} attention heads")
        return cls(
            n_layers=config["num_hidden_layers"],
            n_heads=heads,
            hidden=hidden,
            intermediate=config["intermediate_size"],
            vocabulary=config["vocab_size"],
            positions=config["max_position_embeddings"],
            token_types=config.get("type_vocab_size", 2),
            eps=config.get("layer_norm_eps", 1e-12),
            activation=config["hidden_act"],
            initializer_range=config.get("initializer_range", 0.02),
            pad=config.get("pad_token_id", 0) or 0,
        )

    def encoder_weights(self) -> dict[str, tuple[int, ...]]:
        """Name (as BertForMaskedLM saves it) -> shape of every weight of embeddings and encoder."""
        d, f = self.hidden, self.intermediate
        shapes: dict[str, tuple[int, ...]] = {
            "bert.embeddings.word_embeddings.weight": (self.vocabulary, d),
            "bert.embeddings.position_embeddings.weight": (self.positions, d),
            "bert.embeddings.token_type_embeddings.weight": (self.token_types, d),
        }
        shapes |= _norm("bert.embeddings.LayerNorm", d)
        for layer in range(self.n_layers):
            prefix = f"bert.encoder.layer.{layer}."
            for part in ("query", "key", "value"):
                shapes |= _linear(f"{prefix}attention.self.{part}", d, d)
            shapes |= _linear(f"{prefix}attention.output.dense", d, d)
            shapes |= _norm(f"{prefix}attention.output.LayerNorm", d)
            shapes |= _linear(f"{prefix}intermediate.dense", f, d)
            shapes |= _linear(f"{prefix}output.dense", d, f)
            shapes |= _norm(f"{prefix}output.LayerNorm", d)
        return shapes

    def head_weights(self) -> dict[str, tuple[int, ...]]:
        """The same for the masked-gene head; its decoder shares the token table."""
        return {
            f"{_HEAD}bias": (self.vocabulary,),
            **_linear(f"{_HEAD}transform.dense", self.hidden, self.hidden),
            **_norm(f"{_HEAD}transform.LayerNorm", self.hidden),
        }

    def classifier_weights(self, n_classes: int) -> dict[str, tuple[int, ...]]:
        """The same for the head of BertForSequenceClassification."""
        return {
            **_linear("bert.pooler.dense", self.hidden, self.hidden),
            **_linear("classifier", n_classes, self.hidden),
        }


def _linear(name: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def _norm(name: str, size: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (size,), f"{name}.bias": (size,)}


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
        self.has_head = f"{_HEAD}bias" in tensors
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
        if any(name.startswith(_HEAD) for name in tensors):
            expected |= shape.head_weights()
            # Tied to the token table and to the head's bias; a .bin file stores them twice.
            tolerated += [f"{_HEAD}decoder.weight", f"{_HEAD}decoder.bias"]
            if f"{_HEAD}bias" not in tensors and f"{_HEAD}decoder.bias" in tensors:
                tensors = tensors | {f"{_HEAD}bias": tensors[f"{_HEAD}decoder.bias"]}
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

    def forward(self, tokens: Tokens, recorder: Recorder) -> None:
        """Run all layers over packed cells; ``recorder`` computes the attention of each."""
        shape, n = self.shape, tokens.n_tokens
        options = ScoreOptions(scale=shape.head_dim**-0.5)
        activation = ACTIVATIONS[shape.activation]
        states = self.embed(tokens)
        for number, layer in enumerate(self.layers):
            if recorder.wants_hidden(number):
                recorder.hidden(number, states)
            last = number == shape.n_layers - 1
            stop = last and not recorder.needs_output and not recorder.wants_hidden(shape.n_layers)
            out = recorder.attend(self._attention(number, layer, states, tokens, options, with_v=not stop))
            if stop:
                return
            if out is None:
                raise RuntimeError(
                    f"the recorder returned no attention output for layer {number}, though v was given"
                )
            attended = functional.linear(out.reshape(n, shape.hidden), *layer.output)
            del out
            attended += states
            if recorder.needs_parts:
                recorder.norm_input(number, "attention", attended)
            states = self._norm(attended, layer.attention_norm)
            del attended
            fed = functional.linear(activation(functional.linear(states, *layer.up)), *layer.down)
            fed += states
            if recorder.needs_parts:
                recorder.norm_input(number, "output", fed)
            states = self._norm(fed, layer.output_norm)
            del fed
        if recorder.wants_hidden(shape.n_layers):
            recorder.hidden(shape.n_layers, states)

    def _attention(
        self,
        number: int,
        layer: Layer,
        states: torch.Tensor,
        tokens: Tokens,
        options: ScoreOptions,
        with_v: bool,
    ) -> LayerAttention:
        per_head = (tokens.n_tokens, -1, self.shape.n_heads, self.shape.head_dim)
        q, k = functional.linear(states, *layer.qk).view(per_head).unbind(1)  # [T, 2, H, D]
        v = functional.linear(states, *layer.v).view(per_head)[:, 0] if with_v else None
        return LayerAttention(
            layer=number, q=q, k=k, v=v, packing=tokens.packing, options=options,
            hidden_in=states, parts=self._parts(layer),
        )  # fmt: skip

    def _parts(self, layer: Layer) -> LayerParts:
        return LayerParts(
            projection=layer.output.weight,
            attention_norm=LayerNorm(*layer.attention_norm, self.shape.eps),
            output_norm=LayerNorm(*layer.output_norm, self.shape.eps),
        )
