"""``attn_implementation="scfast"`` for Hugging Face models, and recording them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch

from scfast import ops
from scfast.attention import parts
from scfast.attention.layer import ScoreOptions
from scfast.attention.layout import Layout
from scfast.attention.recorder import Recorder
from scfast.attention.session import Session, active, check_dropout, refuse, session_of

if TYPE_CHECKING:
    from scfast.models.base import Tokens

NAME = "scfast"
#: dtype of a mask that holds 1 where a cell of a packed row starts; padding masks are bool.
CELL_STARTS = torch.int32

#: Keyword of the attention call -> what it would ask for, and what to do instead. None and False ask for
#: nothing.
_REFUSED = {
    "sliding_window": ("sliding windows", "use attn_implementation='sdpa' for this model"),
    "s_aux": ("attention sinks", "use attn_implementation='eager' for this model"),
    "head_mask": ("head masks", "scale the heads' output weights instead"),
    "position_bias": ("position biases", "use attn_implementation='sdpa' for this model"),
    "cache": ("paged caches", "use attn_implementation='sdpa' to generate"),
}


def attention_forward(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """What ``attn_implementation="scfast"`` runs: packs the tokens, attends, puts the padding back.

    Parameters
    ----------
    module
        The attention layer; its ``is_causal`` counts.
    query, key, value
        [B, H, Lq, D], [B, Hkv, Lk, D], [B, Hkv, Lk, Dv].
    attention_mask
        None or bool [B, Lk], True on tokens (what :func:`padding_mask` hands through).
    dropout, scaling, is_causal, softcap
        As transformers passes them.
    **kwargs
        ``cu_seq_lens_q``, ``cu_seq_lens_k`` (packed calls) and ``position_ids`` are read; what would change
        the attention and is not implemented is refused; the rest is ignored.

    Returns
    -------
    tuple[torch.Tensor, None]
        [B, Lq, H, Dv], zero on pads; there are no attention maps to return.

    Raises
    ------
    NotImplementedError
        Dropout in training, sliding windows, sinks, cross-attention, head masks, position biases, 4-D masks.
    ValueError
        ``output_attentions=True``.
    """
    causal = getattr(module, "is_causal", True) if is_causal is None else bool(is_causal)
    # a decoder run as an encoder says so in its config only
    causal = causal and getattr(getattr(module, "config", None), "is_causal", True) is not False
    n_queries, n_keys = query.shape[2], key.shape[2]
    check_dropout(module, dropout)
    _check_call(module, kwargs, causal, n_queries, n_keys)
    layout = _layout(module, query, n_keys, attention_mask, kwargs)
    options = ScoreOptions(scale=scaling, softcap=softcap, causal=causal and n_queries > 1)
    q = layout.pack_queries(query.transpose(1, 2))
    k, v = (layout.pack_keys(x.transpose(1, 2)) for x in (key, value))
    session = session_of(module)
    out = session.attend(module, q, k, v, layout, options) if session else None
    if out is None:
        backend = session.recorder.backend if session else "auto"
        out = ops.attention_forward(q, k, v, layout.packing, **options.kwargs(), backend=backend).out
    return layout.unpack(out, (query.shape[0], n_queries)), None


def _check_call(
    module: torch.nn.Module, kwargs: dict[str, Any], causal: bool, n_queries: int, n_keys: int
) -> None:
    if kwargs.get("output_attentions"):
        raise ValueError(
            "output_attentions=True asks for attention maps, which scfast never holds: record what you want "
            "of them with `with scfast.record(model, Rollout(), Received(), Entropy()) as rec: model(...)`, "
            "or load the model with attn_implementation='eager'"
        )
    for name, (what, remedy) in _REFUSED.items():
        if kwargs.get(name) is not None:
            refuse(module, what, remedy)
    decoder = getattr(getattr(module, "config", None), "is_encoder_decoder", False) and getattr(
        module, "is_decoder", False
    )
    named = "Cross" in type(module).__name__ or getattr(module, "is_cross_attention", False)
    if named or (not causal and (decoder or n_queries != n_keys)):
        refuse(
            module,
            "cross-attention",
            "use attn_implementation='sdpa' for this model, or run its encoder alone",
        )


def _layout(
    module: torch.nn.Module,
    query: torch.Tensor,
    n_keys: int,
    mask: torch.Tensor | None,
    kwargs: dict[str, Any],
) -> Layout:
    n_cells, n_queries = query.shape[0], query.shape[2]
    if (cu_seqlens := kwargs.get("cu_seq_lens_q")) is not None:
        return Layout.from_cu_seqlens(cu_seqlens, kwargs.get("cu_seq_lens_k"), n_cells, query.device)
    if mask is not None:
        if mask.dim() != 2:
            refuse(
                module,
                f"{mask.dim()}-D masks",
                "pass a 2-D attention_mask [batch, tokens], 1 on tokens and 0 on pads",
            )
        if mask.dtype == CELL_STARTS:
            return Layout.from_starts(mask, query.device)
        return Layout.padded(n_cells, n_queries, n_keys, mask.bool(), query.device)
    positions = kwargs.get("position_ids")
    if positions is not None and n_queries == n_keys == positions.shape[-1]:
        return Layout.from_positions(positions, n_cells, query.device)
    return Layout.padded(n_cells, n_queries, n_keys, None, query.device)


def padding_mask(
    *,
    batch_size: int,
    q_length: int,
    kv_length: int,
    mask_function: Callable[..., torch.Tensor],
    attention_mask: torch.Tensor | None = None,
    q_offset: int = 0,
    kv_offset: int = 0,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> torch.Tensor | None:
    """Hand the padding mask [B, Lk] through; for packed rows, the starts of their cells.

    Without a registered mask function transformers passes no mask at all, and pads are attended silently.

    Raises
    ------
    NotImplementedError
        The model asks for more than causality and padding: sliding windows, chunks, prefixes, its own masks.
    """
    if use_vmap or kv_offset or int(q_offset) + q_length != kv_length:
        raise NotImplementedError(
            "scfast attention does not implement this model's mask (a custom mask function or a static "
            "cache): use attn_implementation='sdpa'"
        )
    starts = _cell_starts(mask_function, batch_size, q_length, int(q_offset), device)
    if attention_mask is None and int(starts.sum()) > batch_size:
        return starts.to(CELL_STARTS)
    return attention_mask


def _cell_starts(
    mask_function: Callable[..., torch.Tensor],
    n_cells: int,
    n_queries: int,
    offset: int,
    device: torch.device | str,
) -> torch.Tensor:
    """Bool [B, Lq]: where the cells of packed rows start, by O(B L) probes; other masks are refused.

    A cell starts at a query that does not see the key before it. Every query must see back to the start of
    its cell.
    """
    cell = torch.arange(n_cells, device=device)[:, None].expand(-1, n_queries)
    query = torch.arange(offset, offset + n_queries, device=device).expand(n_cells, -1)
    head = torch.zeros_like(query)

    def sees(key: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(mask_function(cell, head, query, key), device=device).expand(query.shape)

    starts = ~sees((query - 1).clamp(min=0))
    starts[:, 0] = True
    first = torch.where(starts, query, 0).cummax(1).values
    if not bool(sees(torch.where(first == offset, 0, first)).all()):
        raise NotImplementedError(
            "scfast attention does not implement this model's mask: its queries do not see their whole cell "
            "(a sliding window or a pattern of its own); use attn_implementation='sdpa'"
        )
    return starts


def register() -> None:
    """Make ``attn_implementation="scfast"`` and its mask known to transformers."""
    from transformers.masking_utils import AttentionMaskInterface
    from transformers.modeling_utils import AttentionInterface

    AttentionInterface.register(NAME, attention_forward)
    AttentionMaskInterface.register(NAME, padding_mask)


def pretrained_modules(model: torch.nn.Module) -> list[Any]:
    """The Hugging Face models within ``model``, outermost first; none if transformers was never imported."""
    transformers = sys.modules.get("transformers.modeling_utils")
    if transformers is None:
        return []
    return [module for module in model.modules() if isinstance(module, transformers.PreTrainedModel)]


@contextmanager
def recording(
    model: torch.nn.Module, recorder: Recorder, cls_position: int | None, *, tokens: Tokens | None = None
) -> Iterator[None]:
    """Record a model that holds one Hugging Face model: switch its attention, restore it on exit.

    ``tokens`` are those of the batch, where it is known (:class:`Session`).
    """
    register()
    pretrained = pretrained_modules(model)
    outer = pretrained[0]
    if any(not _inside(other, outer) for other in pretrained[1:]):
        raise TypeError(f"{type(model).__name__} holds several Hugging Face models: record one of them")
    config = outer.config
    if getattr(config, "is_encoder_decoder", False):
        raise NotImplementedError(
            f"{type(outer).__name__} is an encoder-decoder: record its encoder, "
            "scfast.record(model.get_encoder(), ...)"
        )
    session = Session(
        recorder, model, config.get_text_config().num_hidden_layers, cls_position, tokens=tokens
    )
    with ExitStack() as stack:
        for one in {id(module.config): module.config for module in pretrained}.values():
            stack.callback(setattr, one, "_attn_implementation", one._attn_implementation)
        outer.set_attn_implementation(NAME)
        for module in pretrained:
            if module.config._attn_implementation != NAME:
                raise TypeError(
                    f"{type(module).__name__} does not take an attention interface (it computes attention in "
                    "its own code), so it cannot be recorded"
                )
        stack.enter_context(active(session))
        # runs before hooks of the user, so that these see what the model sees
        before = model.register_forward_pre_hook(lambda *_: session.start(), prepend=True)
        stack.callback(before.remove)
        states = _HiddenStateCapture(session)
        for hook in (
            outer.register_forward_pre_hook(states.ask, with_kwargs=True),
            outer.register_forward_hook(states.take),
            model.register_forward_hook(session.stop, with_kwargs=True),
        ):
            stack.callback(hook.remove)
        if recorder.needs_parts:
            parts.watch(session, model, stack, None)
        yield


def _inside(module: torch.nn.Module, outer: torch.nn.Module) -> bool:
    return any(module is other for other in outer.modules())


class _HiddenStateCapture:
    """Asks the model for its hidden states where they are wanted, and takes them out of its answer."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.added = False

    @property
    def wanted(self) -> bool:
        observables = self.session.recorder.observables
        return self.session.is_active and any(observable.needs_hidden for observable in observables)

    def ask(
        self, module: torch.nn.Module, args: Any, kwargs: dict[str, Any]
    ) -> tuple[Any, dict[str, Any]] | None:
        self.added = False
        if not self.wanted:
            return None
        if kwargs.get("return_dict") is False:
            raise ValueError("recording hidden states needs return_dict=True: leave it out of the call")
        self.added = not kwargs.get("output_hidden_states")
        return args, {**kwargs, "output_hidden_states": True}

    def take(self, module: torch.nn.Module, args: Any, output: Any) -> Any:
        if not self.wanted:
            return None
        for layer, states in enumerate(output.hidden_states):
            self.session.hidden(layer, states)
        if not self.added:
            return None
        return type(output)(**{name: value for name, value in output.items() if name != "hidden_states"})
