"""Where the layers of a torch model keep their projection and norms: declared, never guessed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import nn

from scfast.attention.layer import LayerNorm, LayerParts
from scfast.attention.session import Session


class Places(NamedTuple):
    """Names of submodules of a layer, relative to it, and whether its norms come after the sums."""

    attention: str
    projection: str
    attention_norm: str
    output_norm: str
    post_norm: bool


_BERT = Places(
    "attention.self", "attention.output.dense", "attention.output.LayerNorm", "output.LayerNorm", True
)
_ESM = Places("attention.self", "attention.output.dense", "attention.LayerNorm", "LayerNorm", False)
_TORCH = Places("self_attn", "self_attn.out_proj", "norm1", "norm2", True)
#: Class of a layer of transformers -> where its parts are.
_DECLARED = {
    "BertLayer": _BERT,
    "CamembertLayer": _BERT,
    "ElectraLayer": _BERT,
    "EsmLayer": _ESM,
    "RobertaLayer": _BERT,
    "XLMRobertaLayer": _BERT,
}


def watch(
    session: Session, model: nn.Module, stack: ExitStack, cells_first: Callable[..., Any] | None
) -> None:
    """Tell the session of every declared layer's parts, its input and the inputs of its norms.

    Parameters
    ----------
    session
        Of the recording.
    model
        Holds the layers.
    stack
        Takes the removal of the hooks.
    cells_first
        Turns states of a layer into [B, L, d], given the layer's attention module; None: they are so already.
    """
    for layer in model.modules():
        places = _places(layer)
        if places is None:
            continue
        attention = layer.get_submodule(places.attention)
        projection: Any = layer.get_submodule(places.projection)
        norms = [layer.get_submodule(name) for name in (places.attention_norm, places.output_norm)]
        session.parts[id(attention)] = LayerParts(
            projection.weight, _norm(norms[0]), _norm(norms[1]), places.post_norm
        )

        def arrange(x: torch.Tensor, attention: nn.Module = attention) -> torch.Tensor:
            return x if cells_first is None else cells_first(attention, x)

        def enter(_: nn.Module, args: Any, kwargs: Any, arrange: Callable[..., Any] = arrange) -> None:
            session.hidden_in = arrange(args[0] if args else kwargs.get("hidden_states", kwargs.get("src")))

        stack.callback(layer.register_forward_pre_hook(enter, with_kwargs=True).remove)
        for name, norm in zip(("attention", "output"), norms, strict=True):

            def report(
                _: nn.Module, args: Any, name: str = name, arrange: Callable[..., Any] = arrange
            ) -> None:
                session.norm_input(name, arrange(args[0]))

            if places.post_norm:
                stack.callback(norm.register_forward_pre_hook(report).remove)


def _places(layer: nn.Module) -> Places | None:
    if isinstance(layer, nn.TransformerEncoderLayer):
        return _TORCH._replace(post_norm=not layer.norm_first)
    return _DECLARED.get(type(layer).__name__)


def _norm(module: nn.Module) -> LayerNorm:
    if not isinstance(module, nn.LayerNorm):
        raise NotImplementedError(
            f"norm-based analysis needs nn.LayerNorm; this model has a {type(module).__name__}"
        )
    return LayerNorm(module.weight, module.bias, module.eps)
