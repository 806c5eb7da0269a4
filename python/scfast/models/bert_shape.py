"""The shape of a BERT: what its ``config.json`` says, and the names and shapes of its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scfast.models.checkpoint import check_sizes
from scfast.models.encoder import ACTIVATIONS
from scfast.models.text_files import shown

#: What the names of the masked-gene head start with.
HEAD = "cls.predictions."


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
        check_sizes(config, needed.split()[:-1], origin, "config.json of a BERT")
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
                raise ValueError(f"{origin} has {key}={shown(got)}; {names} can be run")
        numbers = {
            "type_vocab_size": 2,
            "layer_norm_eps": 1e-12,
            "initializer_range": 0.02,
            "pad_token_id": 0,
        }
        for key, usual in numbers.items():
            got = config.get(key, usual)
            if isinstance(got, bool) or (not isinstance(got, int | float) and (got is not None or usual)):
                raise ValueError(f"{origin} has {key}={shown(got)}, which is no number")
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
            f"{HEAD}bias": (self.vocabulary,),
            **_linear(f"{HEAD}transform.dense", self.hidden, self.hidden),
            **_norm(f"{HEAD}transform.LayerNorm", self.hidden),
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
