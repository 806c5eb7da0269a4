"""Recording models built on torch.nn.MultiheadAttention, such as nn.TransformerEncoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.functional import linear

from scfast import ops
from scfast.attention import parts
from scfast.attention.layer import ScoreOptions
from scfast.attention.layout import Layout
from scfast.attention.recorder import Recorder
from scfast.attention.session import (
    Session,
    active,
    check_dropout,
    check_packed,
    refuse,
    session_of,
)
from scfast.attention.states import watch_blocks

if TYPE_CHECKING:
    from scfast.models.base import Tokens


def attention_modules(model: nn.Module) -> list[nn.MultiheadAttention]:
    """The multi-head attention layers of a model, in the order of definition."""
    return [module for module in model.modules() if isinstance(module, nn.MultiheadAttention)]


@contextmanager
def recording(
    model: nn.Module,
    recorder: Recorder,
    cls_position: int | None,
    *,
    tokens: Tokens | None = None,
    packed: bool = False,
    blocks: Sequence[nn.Module] | None = None,
) -> Iterator[None]:
    """Record a model of nn.MultiheadAttention layers; every change to it is undone on exit.

    Parameters
    ----------
    model, recorder, cls_position, tokens, packed
        See :class:`Session`.
    blocks
        Modules whose outputs are the states after each layer. Default: the nn.TransformerEncoderLayer in ``model``.
    """
    modules = attention_modules(model)
    for module in modules:
        if type(module).forward is not nn.MultiheadAttention.forward or "forward" in vars(module):
            raise TypeError(f"{type(module).__name__} has a forward of its own, so it cannot be recorded")
    if blocks is None:
        blocks = [module for module in model.modules() if isinstance(module, nn.TransformerEncoderLayer)]
    if any(observable.needs_hidden for observable in recorder.observables) and len(blocks) != len(modules):
        raise NotImplementedError(
            f"hidden states are recorded of nn.TransformerEncoderLayer only; {type(model).__name__} has "
            f"{len(blocks)} of them and {len(modules)} attention layers: name the modules that give the states "
            "with scfast.models.wrap(..., blocks=[...])"
        )
    session = Session(recorder, model, len(modules), cls_position, tokens=tokens, packed=packed)
    with ExitStack() as stack:
        stack.enter_context(active(session))
        for module in modules:
            # an attribute of the instance hides the method of the class
            module.forward = partial(_forward, module)  # type: ignore[method-assign]
            stack.callback(delattr, module, "forward")
            # any hook on self_attn takes nn.TransformerEncoderLayer off its fused path, which calls no
            # attention
            stack.callback(module.register_forward_pre_hook(lambda *_: None).remove)
        for encoder in (module for module in model.modules() if isinstance(module, nn.TransformerEncoder)):
            stack.callback(setattr, encoder, "use_nested_tensor", encoder.use_nested_tensor)
            encoder.use_nested_tensor = False
        stack.callback(model.register_forward_pre_hook(lambda *_: session.start(), prepend=True).remove)
        arrange = partial(_cells_first, modules[0]) if modules else None
        watch_blocks(session, blocks, stack, arrange)
        if recorder.needs_parts:
            parts.watch(session, model, stack, _cells_first)
        stack.callback(model.register_forward_hook(session.stop, with_kwargs=True).remove)
        yield


def _cells_first(module: nn.MultiheadAttention, x: torch.Tensor) -> torch.Tensor:
    """[B, L, d] of whatever layout the module takes."""
    if x.dim() == 2:
        return x[None]
    return x if module.batch_first else x.transpose(0, 1)


def _forward(
    module: nn.MultiheadAttention,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    key_padding_mask: torch.Tensor | None = None,
    need_weights: bool = True,
    attn_mask: torch.Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> tuple[torch.Tensor, None]:
    """nn.MultiheadAttention.forward on packed tokens.

    The second value is None whatever ``need_weights`` says, since True is merely its default: there are no
    maps.
    """
    session = session_of(module)
    if session is None:  # another thread's or context's call
        return type(module).forward(  # type: ignore[return-value]
            module,
            query,
            key,
            value,
            key_padding_mask,
            need_weights,
            attn_mask,
            average_attn_weights,
            is_causal,
        )
    _check_call(module, query, key, value)
    x = _cells_first(module, query)
    n_cells, length = x.shape[:2]
    causal = _is_causal(module, attn_mask, is_causal, length)
    layout = session.given
    if layout is None:
        mask = _tokens(module, key_padding_mask, n_cells, length)
        layout = Layout.padded(n_cells, length, length, mask, x.device)
    else:
        check_packed(module, session, (n_cells, length))
    tokens = layout.pack_queries(x)
    width = module.embed_dim
    # q and k apart from v: recorders keep q and k, and a view of all three would keep v with them
    bias = module.in_proj_bias
    qk = linear(tokens, module.in_proj_weight[: 2 * width], None if bias is None else bias[: 2 * width])
    v = linear(tokens, module.in_proj_weight[2 * width :], None if bias is None else bias[2 * width :])
    q, k = qk.unflatten(1, (2, module.num_heads, module.head_dim)).unbind(1)
    v = v.unflatten(1, (module.num_heads, module.head_dim))
    options = ScoreOptions(causal=causal)
    out = session.attend(module, q, k, v, layout, options)
    if out is None:
        backend = session.recorder.backend
        out = ops.attention_forward(q, k, v, layout.packing, **options.kwargs(), backend=backend).out
    padded = layout.unpack(module.out_proj(out.flatten(1)), (n_cells, length))
    if query.dim() == 2:
        return padded[0], None
    return (padded if module.batch_first else padded.transpose(0, 1)), None


def _check_call(
    module: nn.MultiheadAttention, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> None:
    if not (query is key and key is value):
        refuse(module, "cross-attention", "query, key and value must be one tensor; record the encoder alone")
    if query.is_nested:
        refuse(module, "nested tensors", "pass a padded tensor and key_padding_mask")
    if module.bias_k is not None or module.bias_v is not None or module.add_zero_attn:
        refuse(module, "add_bias_kv and add_zero_attn", "build the layer without them")
    if not module._qkv_same_embed_dim:
        refuse(module, "kdim and vdim", "build the layer with one width")
    check_dropout(module, module.dropout if module.training else 0.0)


def _tokens(
    module: nn.MultiheadAttention, mask: torch.Tensor | None, n_cells: int, length: int
) -> torch.Tensor | None:
    """key_padding_mask -> bool [B, L], True on tokens."""
    if mask is None:
        return None
    mask = mask.reshape(n_cells, length)
    if mask.dtype == torch.bool:
        return ~mask
    # nn.TransformerEncoder turns its bool mask into 0 and -inf
    hidden = mask.isneginf()
    if not bool((hidden | (mask == 0)).all()):
        refuse(
            module, "float masks that add to the scores",
            "pass a bool key_padding_mask, True on pads (a float mask of 0 and 1 is added to scores, not "
            "applied)",
        )  # fmt: skip
    return ~hidden


def _is_causal(
    module: nn.MultiheadAttention, mask: torch.Tensor | None, is_causal: bool, length: int
) -> bool:
    """Whether attn_mask is the causal mask; every other mask is refused."""
    if mask is None:
        return is_causal
    future = torch.ones((length, length), dtype=torch.bool, device=mask.device).triu(1)
    hidden = mask if mask.dtype == torch.bool else mask.isneginf()
    plain = mask.dtype == torch.bool or bool((hidden | (mask == 0)).all())
    if tuple(mask.shape) == (length, length) and plain:
        if torch.equal(hidden, future):
            return True
        if not bool(hidden.any()):
            return False
    refuse(module, "attention masks other than the causal one", "leave attn_mask out")
    return False
