"""The recorder: what a model reports its layers to, and what answers with their attention."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from scfast import ops
from scfast.attention.blocks import BlockStatistics, LayerBlocks, column_sums
from scfast.attention.gradients import Gradients
from scfast.attention.layer import LayerAttention
from scfast.observables.base import NORMS, BatchInfo, Observable
from scfast.observables.target import TargetLike
from scfast.ops import AttentionOutput
from scfast.packing import Packing


class Recorder:
    """Runs the attention of a model's layers and hands what it yields to observables.

    A model's adapter does, for each batch of cells::

        recorder.begin(n_layers, packing, kind=..., gene_index=..., cls_position=...)
        if recorder.wants_hidden(0): recorder.hidden(0, embeddings)          # [T, d]
        for layer in range(n_layers):                                        # in order
            stop = layer == n_layers - 1 and not recorder.needs_output
            out = recorder.attend(LayerAttention(layer, q, k, None if stop else v, packing, options))
            if stop: break
            ...                                                              # rest of the layer
            if recorder.needs_parts: recorder.norm_input(layer, "attention", x)  # before each norm
            if recorder.wants_hidden(layer + 1): recorder.hidden(layer + 1, states)
        if recorder.target is not None: recorder.differentiate(values)       # [B], with gradients enabled
        recorder.finish()

    all of it ``recorder.passes(n_layers)`` times, which is once for all but integrated gradients.

    Then ``recorder.batch[name]`` is the packed result of this batch, and ``recorder[name]`` a list of one
    tensor per cell over all batches so far. A batch that an exception broke off is dropped by the next
    ``begin``.

    Parameters
    ----------
    observables
        What to compute. Each is copied, so one description can serve several recorders; names must differ.
    backend
        Of the ops: ``"auto"``, ``"cpu"`` or ``"reference"``.
    gene_names
        Names of the columns that ``gene_index`` counts, for readouts such as ``"gene:CD3D"``.
    keep
        False: only ``batch`` is filled, nothing accumulates over batches.
    check
        False: results are not checked as they come; call :meth:`check` once they are on the host.

    Raises
    ------
    ValueError
        Two observables of one name.

    Examples
    --------
    >>> import torch, scfast
    >>> from scfast.attention import LayerAttention, Recorder
    >>> from scfast.observables import Rollout
    >>> packing = scfast.Packing.from_lengths([3, 2])
    >>> recorder = Recorder([Rollout("mean")])
    >>> recorder.begin(1, packing)
    >>> q, k = torch.randn(2, 5, 4, 8).unbind(0)
    >>> recorder.attend(LayerAttention(0, q, k, None, packing))
    >>> recorder.finish()
    >>> [scores.shape for scores in recorder["rollout"]]
    [torch.Size([3]), torch.Size([2])]
    """

    def __init__(
        self,
        observables: Sequence[Observable],
        *,
        backend: str = "auto",
        gene_names: Sequence[str] | None = None,
        keep: bool = True,
        check: bool = True,
    ) -> None:
        names = [observable.name for observable in observables]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two observables are called {name!r}: give one of them another name=")
        self.observables = [copy.copy(observable) for observable in observables]
        self.backend = backend
        self.gene_names = gene_names
        self.keep = keep
        self.checks_itself = check
        #: Packed results of the last finished batch.
        self.batch: dict[str, torch.Tensor] = {}
        self._cells: dict[str, list[torch.Tensor]] = {name: [] for name in names}
        self._info: BatchInfo | None = None
        self._kept: dict[int, LayerAttention | LayerBlocks] = {}
        self._next_layer = self._pass = 0
        self._gradients = Gradients(self.observables)

    def __getitem__(self, name: str) -> list[torch.Tensor]:
        if name not in self._cells:
            raise KeyError(
                f"nothing called {name!r} is recorded; there is {', '.join(self._cells) or 'nothing'}"
            )
        return self._cells[name]

    def begin(
        self,
        n_layers: int,
        packing: Packing,
        *,
        kind: torch.Tensor | None = None,
        gene_index: torch.Tensor | None = None,
        cls_position: int | None = None,
        gene_names: Sequence[str] | None = None,
    ) -> None:
        """Start a batch.

        Parameters
        ----------
        n_layers
            Layers of the model.
        packing
            Where the cells lie; T tokens.
        kind
            uint8 [T], 0 for gene tokens. None: all are.
        gene_index
            int64 [T], column of the counts that a token stands for, -1 for none.
        cls_position
            Position of the cls token in each cell, negative from the end; None if there is none.
        gene_names
            Names of the columns; default: those given to the recorder.
        """
        for name, values in (("kind", kind), ("gene_index", gene_index)):
            if values is not None and tuple(values.shape) != (packing.total_q,):
                raise ValueError(f"{name} must have shape ({packing.total_q},), got {tuple(values.shape)}")
        names = self.gene_names if gene_names is None else gene_names
        info = BatchInfo(n_layers, packing, self.backend, kind, gene_index, names, cls_position)
        if self.passes(n_layers) > 1 and len(self.observables) > 1:
            several = next(o for o in self.observables if o.passes(n_layers) > 1)
            raise ValueError(
                f"{type(several).__name__} runs the model several times over a batch: record it alone"
            )
        if self._info is not None:  # broken off
            self._pass = 0
        self._info, self._kept, self._next_layer = None, {}, 0
        self._gradients.begin()
        if self._pass == 0:
            for observable in self.observables:
                observable.begin(info)
        self._info = info

    @property
    def needs_output(self) -> bool:
        """Whether the last layer's output is used; if not, the model may stop at that layer's q and k."""
        n_layers = None if self._info is None else self._info.n_layers
        return any(observable.needs_output(n_layers) for observable in self.observables)

    @property
    def needs_parts(self) -> bool:
        """Whether ``hidden_in`` and ``parts`` of the layers, and :meth:`norm_input`, are wanted."""
        return any(observable.needs_parts for observable in self.observables)

    @property
    def takes_blocks(self) -> bool:
        """Whether :meth:`attend_blocks` may be called in the place of :meth:`attend`."""
        return all(observable.takes_blocks for observable in self.observables)

    @property
    def target(self) -> TargetLike | None:
        """What :meth:`differentiate` must be given; None: nothing is differentiated."""
        return self._gradients.target

    def passes(self, n_layers: int) -> int:
        """How often the model must run over each batch, from begin() to finish()."""
        return max((observable.passes(n_layers) for observable in self.observables), default=1)

    def wants_hidden(self, layer: int) -> bool:
        """Whether anyone wants the state after ``layer`` layers (0: the embeddings)."""
        return any(observable.wants_hidden(layer) for observable in self.observables)

    def hidden(self, layer: int, states: torch.Tensor) -> None:
        """Report the state [T, d] after ``layer`` layers."""
        self._check_packed("hidden states", states)
        for observable in self.observables:
            if observable.wants_hidden(layer):
                observable.on_hidden(layer, states)

    def norm_input(self, layer: int, norm: str, x: torch.Tensor) -> None:
        """Report what enters a layer's norm, ``"attention"`` or ``"output"``: [T, d]."""
        if norm not in NORMS:
            raise ValueError(f"norm={norm!r} is unknown; a layer has {' and '.join(map(repr, NORMS))}")
        self._check_packed("inputs of norms", x)
        with torch.no_grad():
            for observable in self.observables:
                if observable.needs_parts:
                    observable.on_norm_input(layer, norm, x.detach())

    def _check_packed(self, what: str, states: torch.Tensor) -> None:
        total = self._batch().packing.total_q
        if states.dim() != 2 or states.shape[0] != total:
            raise ValueError(f"{what} must be packed as [{total}, d], got {tuple(states.shape)}")

    def attend(self, attention: LayerAttention) -> torch.Tensor | None:
        """Visit one layer once, with the statistics that the observables want between them.

        Returns
        -------
        torch.Tensor | None
            The attention output [Tq, H, Dv]; None where ``attention.v`` is None. Then the visit runs only
            if someone wants statistics.
        """
        sinks = self._next(attention.layer)
        output = self._visit(attention, sinks)
        seen = _detached(attention, output)
        out = None if output is None or attention.v is None else output.out
        if self.target is not None:
            out = self._gradients.connect(attention.layer, out)
        with torch.no_grad():
            for observable in self.observables:
                observable.on_layer(seen, output)
        if any(observable.keeps(attention.layer) for observable in self.observables):
            v = None if self.target is None else seen.v
            self._kept[attention.layer] = replace(seen, v=v, hidden_in=None, parts=None, out=None)
        return out

    def attend_blocks(self, layer: LayerBlocks) -> Iterator[tuple[slice, torch.Tensor | None]]:
        """Visit one layer, its queries in blocks; to be gone through to the end.

        Yields
        ------
        slice, torch.Tensor | None
            Tokens of the batch, and their attention output [rows, H, Dv]; None where ``layer.v`` is None.

        Raises
        ------
        ValueError
            When an observable needs whole layers.
        """
        if whole := [type(o).__name__ for o in self.observables if not o.takes_blocks]:
            raise ValueError(
                f"{whole[0]} needs whole layers, not blocks of queries: grant the run more memory"
            )
        sinks = self._next(layer.layer)
        statistics = BlockStatistics()
        for rows, attention in layer.parts():
            output = self._visit(attention, sinks)
            statistics.add(output)
            yield rows, None if output is None or layer.v is None else output.out
        merged = statistics.merged()
        with torch.no_grad():
            for observable in self.observables:
                observable.on_layer(attention, merged)
        if any(observable.keeps(layer.layer) for observable in self.observables):
            self._kept[layer.layer] = replace(layer, v=None)

    def _next(self, layer: int) -> frozenset[str]:
        """Take the turn of a layer; the statistics that are wanted of it."""
        info = self._batch()
        if layer != self._next_layer or layer >= info.n_layers:
            raise RuntimeError(
                f"layer {layer} of {info.n_layers} was reported where layer {self._next_layer} was "
                "due: adapters report every layer once, in order, after begin()"
            )
        self._next_layer += 1
        return frozenset[str]().union(*(observable.sinks for observable in self.observables))

    def differentiate(self, values: torch.Tensor, *, retain_graph: bool = False) -> None:
        """Report the target, of which the observables want gradients: one value per cell, [B], or their sum.

        Parameters
        ----------
        values
            Part of the graph of the layers' outputs, which is freed unless ``retain_graph``.
        retain_graph
            Leave the graph for others.
        """
        self._batch()
        for layer, d_out in self._gradients.of(values, retain_graph=retain_graph).items():
            kept = self._kept[layer]
            assert isinstance(kept, LayerAttention)  # what wants gradients takes no blocks
            self._kept[layer] = replace(kept, d_out=d_out)

    def _visit(self, attention: LayerAttention, sinks: frozenset[str]) -> AttentionOutput | None:
        q, k, v, packing = attention.q, attention.k, attention.v, attention.packing
        options = attention.options.kwargs()
        if v is not None:
            return ops.attention_forward(
                q, k, v, packing, **options, backend=self.backend,
                received="received" in sinks, entropy="entropy" in sinks, max="max" in sinks,
            )  # fmt: skip
        received = entropy = largest = None
        with torch.no_grad():
            if "received" in sinks:
                ones = torch.ones(packing.total_q, device=q.device)
                received = _colsum(q, k, packing, ones, heads="none", **options, backend=self.backend)[0]
            if sinks & {"entropy", "max"}:
                stats = ops.attention_rowstats(q, k, packing, heads="none", **options, backend=self.backend)
                entropy, largest = stats.entropy, stats.max
        if not sinks:
            return None
        empty = q.new_empty(0)
        return AttentionOutput(empty, empty, received, entropy, largest)

    def finish(self) -> None:
        """End the batch: the reverse sweep, and the results."""
        info = self._batch()
        needs_layers = any(o.sinks or any(map(o.keeps, range(info.n_layers))) for o in self.observables)
        if needs_layers and self._next_layer != info.n_layers:
            raise RuntimeError(
                f"{self._next_layer} of the model's {info.n_layers} layers were reported before finish()"
            )
        if self._gradients.pending:
            raise RuntimeError(
                "the target was not differentiated: adapters call differentiate() before finish()"
            )
        self._pass += 1
        with torch.no_grad():
            self._sweep(info)
        if self._pass < self.passes(info.n_layers):
            self._info = None
            return
        self._pass = 0
        with torch.no_grad():
            self.batch = {observable.name: observable.finish() for observable in self.observables}
        if self.checks_itself:
            self.check(self.batch)
        if self.keep:
            for observable in self.observables:
                packed = self.batch[observable.name]
                self._cells[observable.name].extend(observable.split(packed, info.packing))
        self._info = None

    def check(self, results: Mapping[str, torch.Tensor]) -> None:
        """Refuse results of the last batch that cannot be right, such as rollout scores that do not sum to 1.

        Parameters
        ----------
        results
            What ``batch`` held after :meth:`finish`, there or copied to the host.
        """
        for observable in self.observables:
            observable.check(results[observable.name])

    def _sweep(self, info: BatchInfo) -> None:
        groups: dict[tuple[tuple[str, object], ...], list[Observable]] = defaultdict(list)
        for observable in self.observables:
            if observable.sweep_options is not None:
                groups[observable.sweep_options].append(observable)
        for layer in reversed(range(info.n_layers)):
            kept = self._kept.pop(layer, None)
            if kept is None:
                continue
            for observable in self.observables:
                if observable.keeps(layer) and isinstance(kept, LayerAttention):
                    observable.on_sweep(kept)
            for options, members in groups.items():
                rows = [
                    (member, weights)
                    for member in members
                    if (weights := member.sweep_rows(layer)) is not None
                ]
                if not rows:
                    continue
                weights = torch.cat([weights for _, weights in rows])
                sums = column_sums(kept, weights, self.backend, **dict(options))  # type: ignore[arg-type]
                for (member, _), part in zip(rows, sums.split([len(w) for _, w in rows]), strict=True):
                    member.sweep_step(layer, part)

    def _batch(self) -> BatchInfo:
        if self._info is None:
            raise RuntimeError("no batch has begun: call begin() before reporting layers, and once per batch")
        return self._info


def _colsum(
    q: torch.Tensor, k: torch.Tensor, packing: Packing, weights: torch.Tensor, **options: Any
) -> torch.Tensor:
    sums = ops.attention_colsum(q, k, packing, weights, **options)
    assert isinstance(sums, torch.Tensor)
    return sums


def _detached(attention: LayerAttention, output: AttentionOutput | None) -> LayerAttention:
    tensors: dict[str, Any] = {name: getattr(attention, name) for name in ("q", "k", "v", "hidden_in")}
    if output is not None and attention.v is not None:
        tensors |= {"out": output.out, "lse": output.lse}
    detached: dict[str, Any] = {name: None if x is None else x.detach() for name, x in tensors.items()}
    return replace(attention, **detached)
