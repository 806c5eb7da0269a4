"""One ``with scfast.record(...)`` block: which modules it watches and when a batch is running."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch

from scfast.attention.layer import LayerAttention, LayerParts, ScoreOptions
from scfast.attention.layout import Layout
from scfast.attention.recorder import Recorder
from scfast.observables.target import Target, TargetLike

if TYPE_CHECKING:
    from scfast.models.base import Tokens


class EnoughSeen(Exception):  # noqa: N818 - nothing went wrong
    """Ends a forward whose rest nobody wants; whoever gave the session its tokens catches it."""


class Session:
    """Counts the attention calls of one model's forward and reports them to a recorder.

    A batch runs from the model's forward pre-hook to its forward hook. Attention that runs at another time,
    such as the replays of gradient checkpointing in the backward pass, is computed but not recorded.

    Parameters
    ----------
    recorder
        Receives the layers.
    model
        The module whose forward is one batch.
    n_layers
        Attention calls of one forward.
    cls_position
        Handed to :meth:`Recorder.begin`.
    tokens
        Of the batch that the model is called with, where it is known: their cells must be those that the
        attention sees, their genes are handed to :meth:`Recorder.begin`. Whoever calls the model so has no use for its
        output, and catches :class:`EnoughSeen`.
    packed
        Whether that batch is one row of all tokens, in which only attention tells cells apart.
    """

    def __init__(
        self,
        recorder: Recorder,
        model: torch.nn.Module,
        n_layers: int,
        cls_position: int | None,
        *,
        tokens: Tokens | None = None,
        packed: bool = False,
    ) -> None:
        self.recorder = recorder
        self.model = model
        self.n_layers = n_layers
        self.cls_position = cls_position
        self.tokens = tokens
        self.layout: Layout | None = None
        #: Of a packed batch, which no mask describes.
        self.given = Layout(tokens.packing, None, None) if packed and tokens is not None else None
        #: What surrounds each attention module, by its id, and the layer input that was seen last, [B, L, d].
        self.parts: dict[int, LayerParts] = {}
        self.hidden_in: torch.Tensor | None = None
        self._modules = {id(module) for module in model.modules()}
        self._running = self._repeating = False
        # attention calls so far in this forward
        self.layer = 0

    @property
    def is_active(self) -> bool:
        """Whether this context records; another thread may run the same model, with the same hooks."""
        return self in _SESSIONS.get()

    def owns(self, module: torch.nn.Module) -> bool:
        """Whether ``module`` is part of the recorded model."""
        return id(module) in self._modules

    def attend(
        self,
        module: torch.nn.Module,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layout: Layout,
        options: ScoreOptions,
    ) -> torch.Tensor | None:
        """The attention output [Tq, H, Dv], recorded; None when no batch runs (a replay)."""
        if not self._running:
            return None
        if self.layer == 0:
            self._begin(module, layout)
        assert self.layout is not None
        first = self.layout.packing
        if (first.lengths_q, first.lengths_k) != (layout.packing.lengths_q, layout.packing.lengths_k):
            raise ValueError(
                f"layer {self.layer} ({type(module).__name__}) sees other cell lengths than layer 0: "
                "recording needs one packing for all layers"
            )
        if self.layer >= self.n_layers:
            raise ValueError(
                f"the model called attention more often than its {self.n_layers} layers: record the "
                "submodule whose layers you want (an encoder-decoder's encoder, for example)"
            )
        enough = self.layer == self.n_layers - 1 and self._nothing_follows
        attention = LayerAttention(
            self.layer, q, k, None if enough else v, first, options, **self._surroundings(module, layout)
        )
        self.layer += 1
        out = self.recorder.attend(attention)
        if enough:
            self._running = False
            self.recorder.finish()
            raise EnoughSeen
        return out

    @property
    def _nothing_follows(self) -> bool:
        """Whether all that is wanted of this forward is known once the last layer's q and k are."""
        recorder = self.recorder
        wanted = recorder.needs_output or recorder.needs_parts or recorder.target is not None
        states = any(observable.needs_hidden for observable in recorder.observables)
        return self.tokens is not None and not wanted and not states

    def _begin(self, module: torch.nn.Module, layout: Layout) -> None:
        about: dict[str, Any] = {"cls_position": self.cls_position}
        if self.tokens is not None:
            seen, given = layout.packing.lengths_k, self.tokens.lengths
            if seen != given or layout.packing.lengths_q != given:
                raise ValueError(
                    f"{type(module).__name__} sees cells of {_some(seen)} tokens, but the batch has cells of "
                    f"{_some(given)}: hand the batch's pads to the model (batch.pads, True on pads)"
                )
            about |= {"kind": self.tokens.kind, "gene_index": self.tokens.gene_index}
        self.layout = layout
        self.recorder.begin(self.n_layers, layout.packing, **about)

    def _surroundings(self, module: torch.nn.Module, layout: Layout) -> dict[str, Any]:
        if not self.recorder.needs_parts:
            return {}
        if id(module) not in self.parts or self.hidden_in is None:
            refuse(
                module,
                "norm-based analysis of this layer",
                "where its projection and norms are is declared for BERT-like layers and "
                "nn.TransformerEncoderLayer (scfast.attention.parts)",
            )
        assert self.hidden_in is not None
        return {"hidden_in": layout.pack_queries(self.hidden_in), "parts": self.parts[id(module)]}

    def norm_input(self, norm: str, x: torch.Tensor) -> None:
        """Report the padded input [B, L, d] of a norm of the layer whose attention was computed last."""
        if self._running and self.is_active and self.layout is not None:
            self.recorder.norm_input(self.layer - 1, norm, self.layout.pack_queries(x))

    def start(self) -> None:
        """The model's forward begins; a batch that an exception broke off is dropped."""
        if not self.is_active:
            return
        self._running, self.layer, self.layout = True, 0, None

    def hidden(self, layer: int, states: torch.Tensor) -> None:
        """Report padded states [B, L, d]."""
        if self.is_active and self.layout is not None and self.recorder.wants_hidden(layer):
            self.recorder.hidden(layer, self.layout.pack_queries(states))

    def stop(self, model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """The model's forward has ended: a forward hook. Returns what the caller is to get, if another output.

        Where an observable needs several passes the model is called again; the caller gets the output of the last.
        """
        if not self.is_active:
            return None
        self._running = False
        if self.layer != self.n_layers:
            raise RuntimeError(
                f"{self.layer} of {self.n_layers} attention layers of {type(self.model).__name__} reached "
                "scfast: the others do not go through an attention that can be recorded"
            )
        if (target := self.recorder.target) is not None:
            self.recorder.differentiate(_target_values(self.model, target, output), retain_graph=True)
        self.recorder.finish()
        if self._repeating:
            return None
        self._repeating = True
        try:
            for _ in range(1, self.recorder.passes(self.n_layers)):
                output = model(*args, **kwargs)
        finally:
            self._repeating = False
        return output


_SESSIONS: ContextVar[tuple[Session, ...]] = ContextVar("scfast_recording_sessions", default=())


def session_of(module: torch.nn.Module) -> Session | None:
    """The session of this context that records ``module``, if any."""
    return next((session for session in reversed(_SESSIONS.get()) if session.owns(module)), None)


@contextmanager
def active(session: Session) -> Iterator[None]:
    """Make a session known in this context."""
    if any(session_of(module) for module in session.model.modules()):
        raise RuntimeError(
            f"{type(session.model).__name__} is being recorded already: give all observables to one "
            "scfast.record"
        )
    token = _SESSIONS.set((*_SESSIONS.get(), session))
    try:
        yield
    finally:
        _SESSIONS.reset(token)


def _target_values(model: torch.nn.Module, target: TargetLike, output: Any) -> torch.Tensor:
    """What the target makes of the model's output, [B] or a sum."""
    if not isinstance(target, Target):
        return target(output)
    labels = getattr(getattr(model, "config", None), "label2id", None)
    if target.kind != "class" or labels is None or getattr(output, "logits", None) is None:
        raise ValueError(
            f"target='{target}' cannot be found in what {type(model).__name__} returns: give a function of its output, "
            "such as lambda output: output.logits[:, 0]"
        )
    if target.name not in labels:
        raise ValueError(f"target='{target}': {type(model).__name__} has the classes {', '.join(labels)}")
    return output.logits[:, labels[target.name]]


def _some(lengths: tuple[int, ...]) -> str:
    return ", ".join(map(str, lengths[:5])) + (", ..." if len(lengths) > 5 else "")


def refuse(module: torch.nn.Module, what: str, remedy: str) -> None:
    """Raise for a feature that scfast's attention does not have."""
    raise NotImplementedError(
        f"scfast attention does not implement {what} ({type(module).__name__}): {remedy}"
    )


def check_packed(module: torch.nn.Module, session: Session, shape: tuple[int, int]) -> None:
    """Refuse states of a packed batch that are no single row of all its tokens."""
    assert session.given is not None
    expected = (1, session.given.packing.total_q)
    if shape != expected:
        raise ValueError(
            f"{type(module).__name__} sees {shape[0]} rows of {shape[1]} tokens, but the batch is packed: 1 row "
            f"of {expected[1]}; hand it batch.ids as they are, or wrap the model with packed=False"
        )


def check_dropout(module: torch.nn.Module, dropout: Any) -> None:
    """Refuse dropout of attention probabilities."""
    if dropout:
        refuse(
            module,
            f"attention dropout ({dropout:g}) in training",
            "call model.eval() or set that dropout to 0",
        )
