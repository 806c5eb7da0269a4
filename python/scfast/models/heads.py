"""Heads on a BERT encoder, as models of transformers: masked genes, classes of whole cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from scfast.models.bert import BertEncoder

if TYPE_CHECKING:
    from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification


def sequence_classes(config: dict[str, Any], n_classes: int) -> list[str]:
    """Class names of a ``config.json``, in order; LABEL_0, ... where it names none, as in transformers."""
    named = {int(code): str(name) for code, name in (config.get("id2label") or {}).items()}
    return [named.get(code, f"LABEL_{code}") for code in range(n_classes)]


def to_transformers(
    encoder: BertEncoder, config: dict[str, Any], name: str
) -> BertForMaskedLM | BertForSequenceClassification:
    """The encoder with the head that it has, in eval mode, with weights of its own, on the same device.

    Raises
    ------
    ValueError
        When it has none.
    """
    from transformers import BertForMaskedLM, BertForSequenceClassification

    state = dict(encoder.tensors)
    model: BertForMaskedLM | BertForSequenceClassification
    if encoder.n_classes:
        classes = sequence_classes(config, encoder.n_classes)
        model = BertForSequenceClassification(_classifier_config(config, classes))
        state = {key: tensor for key, tensor in state.items() if not key.startswith("cls.")}
    elif encoder.has_head:
        model = BertForMaskedLM(_bert_config(config))
        state["cls.predictions.decoder.weight"] = state["bert.embeddings.word_embeddings.weight"]
        state["cls.predictions.decoder.bias"] = state["cls.predictions.bias"]
    else:
        raise ValueError(
            f"{name} has no masked-gene head (cls.predictions.*) and no sequence classifier (classifier.*), so it"
            " is neither a BertForMaskedLM nor a BertForSequenceClassification"
        )
    torch.nn.Module.to(model, encoder.device, encoder.dtype).load_state_dict(state)
    model.eval()
    return model


def new_classifier(
    encoder: BertEncoder, config: dict[str, Any], classes: Sequence[str], seed: int
) -> BertForSequenceClassification:
    """A ``BertForSequenceClassification`` on a copy of the encoder, with a fresh seeded head.

    Attention runs through scfast, without dropout of its probabilities (it holds none to drop).

    Parameters
    ----------
    encoder
        float32 weights on the CPU; a head of its own is not taken over.
    config
        Content of the checkpoint's ``config.json``.
    classes
        Names, two or more.
    seed
        Of the head.
    """
    from transformers import BertForSequenceClassification

    settings = _classifier_config({**config, "attention_probs_dropout_prob": 0.0}, classes)
    settings._attn_implementation = "scfast"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = BertForSequenceClassification(settings)
    wanted = encoder.shape.encoder_weights()
    missing, extra = model.load_state_dict({name: encoder.tensors[name] for name in wanted}, strict=False)
    head = set(encoder.shape.classifier_weights(len(classes)))
    if extra or set(missing) != head:
        raise RuntimeError(f"the head is {sorted(head)}, but transformers left {missing} and {extra} aside")
    return model


def _classifier_config(config: dict[str, Any], classes: Sequence[str]) -> BertConfig:
    names = dict(enumerate(classes))
    return _bert_config(
        {**config, "id2label": names, "label2id": {name: code for code, name in names.items()}}
    )


def _bert_config(config: dict[str, Any]) -> BertConfig:
    from transformers import BertConfig

    return BertConfig(**{key: value for key, value in config.items() if key not in ("torch_dtype", "dtype")})
