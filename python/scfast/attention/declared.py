"""Recording attention of any layout: its author says where q, k and v come from and where the output goes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from scfast import ops
from scfast.attention.layer import ScoreOptions
from scfast.attention.layout import Layout
from scfast.attention.recorder import Recorder
from scfast.attention.session import Session, active, session_of
from scfast.attention.states import watch_blocks

if TYPE_CHECKING:
    from scfast.models.calls import ModelBatch


@dataclass(frozen=True)
class AttentionLayers:
    """Where a model keeps attention that scfast does not know, declared layer by layer.

    While it is recorded, ``module(*args)`` of every layer becomes ``output(module, heads, *args)``, with ``heads`` the
    attention of what ``qkv(module, batch, *args)`` returns. So a layer may be a module that is attention alone, or one
    that holds norms, residual and feed-forward part as well.

    Attributes
    ----------
    modules
        One per layer, in the order in which they run; each is called once in a forward.
    qkv
        Function of module, batch (:class:`~scfast.models.ModelBatch`) and the arguments of the module's forward.
        Returns q [B, L, H, D], k [B, L, Hkv, D] and v [B, L, Hkv, Dv] with rotations and the like applied; Hkv
        divides H.
    output
        Function of module, heads [B, L, H, Dv] and the arguments of the module's forward; returns what the forward
        returns. Heads are 0 on pads.
    n_heads, head_dim, hidden_size
        H, D and the width of the states.
    options
        How scores come from q and k: scale, softcap, causal.
    key_bias
        Function of the batch that returns what is added to the score of each key, after the softcap: [B, L] or
        [B, L, H], finite.
    n_key_heads
        Hkv. Default: H.
    """

    modules: Sequence[nn.Module]
    qkv: Callable[..., tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
    output: Callable[..., Any]
    n_heads: int
    head_dim: int
    hidden_size: int
    options: ScoreOptions = field(default_factory=ScoreOptions)
    key_bias: Callable[[ModelBatch], torch.Tensor] | None = None
    n_key_heads: int | None = None

    def __post_init__(self) -> None:
        if not self.modules:
            raise ValueError("modules is empty: name the attention module of every layer")
        for module in self.modules:
            if not isinstance(module, nn.Module):
                raise TypeError(f"modules must hold torch modules, got a {type(module).__name__}")
        if len({id(module) for module in self.modules}) < len(self.modules):
            raise ValueError("modules names a module twice: weights that layers share cannot be told apart")
        if self.options.key_bias is not None:
            raise ValueError(
                "a key bias differs from batch to batch: give key_bias=, a function of the batch"
            )


@contextmanager
def recording(
    model: nn.Module,
    layers: AttentionLayers,
    recorder: Recorder,
    cls_position: int | None,
    batch: ModelBatch,
    blocks: Sequence[nn.Module] | None = None,
) -> Iterator[None]:
    """Record one forward of a model over ``batch``; every change to it is undone on exit.

    Parameters
    ----------
    model, recorder, cls_position
        See :class:`Session`.
    layers
        Its attention.
    batch
        What the model is called with inside the block.
    blocks
        Modules whose outputs [B, L, d] are the states after each layer.
    """
    if any(observable.needs_hidden for observable in recorder.observables) and blocks is None:
        raise NotImplementedError(
            f"nothing is said of the states of {type(model).__name__}: name the modules that give those after each "
            "layer with scfast.models.wrap(..., blocks=[...])"
        )
    session = Session(recorder, model, len(layers.modules), cls_position, tokens=batch.tokens)
    layout = Layout(batch.tokens.packing, None if batch.is_packed else batch.mask, None)
    options = layers.options
    if layers.key_bias is not None:
        options = _with_bias(layers, layout, batch)
    with ExitStack() as stack:
        stack.enter_context(active(session))
        for module in layers.modules:
            if not session.owns(module):
                raise ValueError(
                    f"a {type(module).__name__} among the attention layers is no part of {type(model).__name__}"
                )
            forward = partial(_forward, module, layers, layout, options, batch)
            if "forward" in vars(module):
                raise TypeError(
                    f"forward of a {type(module).__name__} is replaced already, so it cannot be recorded"
                )
            # an attribute of the instance hides the method of the class
            module.forward = forward  # type: ignore[method-assign]
            stack.callback(delattr, module, "forward")
        stack.callback(model.register_forward_pre_hook(lambda *_: session.start(), prepend=True).remove)
        watch_blocks(session, blocks or (), stack, None)
        stack.callback(model.register_forward_hook(session.stop, with_kwargs=True).remove)
        yield


def _with_bias(layers: AttentionLayers, layout: Layout, batch: ModelBatch) -> ScoreOptions:
    assert layers.key_bias is not None
    bias, old = layers.key_bias(batch), layers.options
    if tuple(bias.shape[:2]) != tuple(batch.ids.shape):
        raise ValueError(
            f"key_bias must return {list(batch.ids.shape)} or [..., heads], as batch.ids, got {list(bias.shape)}"
        )
    return ScoreOptions(old.scale, old.softcap, layout.pack_queries(bias).float(), old.causal)


def _forward(
    module: nn.Module,
    layers: AttentionLayers,
    layout: Layout,
    options: ScoreOptions,
    batch: ModelBatch,
    *args: Any,
    **kwargs: Any,
) -> Any:
    session = session_of(module)
    if session is None:  # another thread's or context's call
        return type(module).forward(module, *args, **kwargs)
    declared = next(place for place, other in enumerate(layers.modules) if other is module)
    if session.layer < session.n_layers and session.layer != declared:
        raise ValueError(
            f"a {type(module).__name__} runs as layer {session.layer}, but is declared as layer {declared}: list the "
            "modules in the order in which they run, each once"
        )
    padded = layers.qkv(module, batch, *args, **kwargs)
    for name, x, heads in zip(
        "qkv", padded, (layers.n_heads, *[layers.n_key_heads or layers.n_heads] * 2), strict=True
    ):
        if x.dim() != 4 or tuple(x.shape[:3]) != (*batch.ids.shape, heads):
            raise ValueError(
                f"qkv must return {name} of shape [{batch.ids.shape[0]}, {batch.ids.shape[1]}, {heads}, head dim] for "
                f"this batch, got {list(x.shape)} ({type(module).__name__})"
            )
    q, k, v = map(layout.pack_queries, padded)
    out = session.attend(module, q, k, v, layout, options)
    if out is None:
        out = ops.attention_forward(
            q, k, v, layout.packing, **options.kwargs(), backend=session.recorder.backend
        ).out
    return layers.output(
        module, layout.unpack(out, (batch.ids.shape[0], batch.ids.shape[1])), *args, **kwargs
    )
