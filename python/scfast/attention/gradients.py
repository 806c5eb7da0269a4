"""Gradients at the attention outputs of a differentiated forward, without a map and without trained weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from scfast.observables.base import Observable
from scfast.observables.target import TargetLike


class Gradients:
    """The layers' outputs as parts of a graph, and the gradient of a target at each of them.

    Parameters
    ----------
    observables
        Of the recorder; their targets must be one.

    Attributes
    ----------
    target
        What is differentiated; None: nothing.
    """

    def __init__(self, observables: Sequence[Observable]) -> None:
        self.observables = observables
        self.target = _one_target(observables)
        self._outs: dict[int, torch.Tensor] = {}

    def begin(self) -> None:
        """Forget the last forward."""
        self._outs = {}

    @property
    def pending(self) -> bool:
        """Whether the gradient is still to be taken."""
        return bool(self._outs)

    def connect(self, layer: int, out: torch.Tensor | None) -> torch.Tensor:
        """The output [Tq, H, Dv] of a layer as part of the graph, scaled if an observable asks for that.

        Where nothing below has weights that are trained, the graph starts here.
        """
        if out is None or not torch.is_grad_enabled() or torch.is_inference_mode_enabled():
            raise RuntimeError(
                "gradient-weighted attention needs the outputs of all layers with gradients enabled: run the model "
                "outside torch.no_grad() and torch.inference_mode()"
            )
        if not out.requires_grad:
            out.requires_grad_()
        for observable in self.observables:
            factor = observable.scale(layer)
            out = out if factor is None else out * factor
        if any(observable.target is not None and observable.keeps(layer) for observable in self.observables):
            self._outs[layer] = out
        return out

    def of(self, values: torch.Tensor, *, retain_graph: bool = False) -> dict[int, torch.Tensor]:
        """Gradient of the sum of ``values`` at the output of each layer that an observable keeps.

        Parameters
        ----------
        values
            [B] or their sum, part of the graph; cells do not see each other.
        retain_graph
            Leave the graph for others.

        Raises
        ------
        ValueError
            Values that do not depend on the attention.
        """
        if not values.requires_grad:
            raise ValueError(
                "the target does not depend on the model's attention: it was detached, or computed without gradients"
            )
        outs, self._outs = self._outs, {}
        found = torch.autograd.grad(
            values.sum(), list(outs.values()), retain_graph=retain_graph, allow_unused=True
        )
        return {
            layer: torch.zeros_like(out) if d_out is None else d_out
            for (layer, out), d_out in zip(outs.items(), found, strict=True)
        }


def _one_target(observables: Sequence[Observable]) -> TargetLike | None:
    targets = [observable.target for observable in observables if observable.target is not None]
    for target in targets[1:]:
        if target != targets[0]:
            raise ValueError(
                f"one forward has one gradient, and there are the targets {targets[0]} and {target}: record them one "
                "after the other"
            )
    return targets[0] if targets else None
