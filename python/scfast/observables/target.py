"""Targets: the scalar of each cell whose gradient weighs attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch


@dataclass(frozen=True)
class Target:
    """A logit of the model's head.

    Attributes
    ----------
    kind
        ``"class"``: the logit of a class, from the classifier of a fine-tuned model. ``"gene"``: the logit that the
        masked-gene head gives a gene at the gene's own token, added up where a cell has several.
    name
        Of the class or the gene.
    gene
        The gene's column of the counts, where it is known already.
    """

    kind: str
    name: str
    gene: int | None = None

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}"


#: A target; or, for :func:`scfast.record`, a function of what the model returns, giving [B] or their sum.
TargetLike: TypeAlias = Target | Callable[[Any], torch.Tensor]


def parse_target(target: str | TargetLike) -> TargetLike:
    """The target that ``"class:NAME"`` or ``"gene:NAME"`` names; others as they are.

    Raises
    ------
    ValueError
        When it is neither.

    Examples
    --------
    >>> parse_target("gene:CD3D")
    Target(kind='gene', name='CD3D', gene=None)
    """
    if isinstance(target, Target) or (callable(target) and not isinstance(target, str)):
        return target
    kind, _, name = target.partition(":") if isinstance(target, str) else ("", "", "")
    if kind not in ("class", "gene") or not name:
        raise ValueError(
            f"target={target!r} is unknown; use 'class:NAME', 'gene:NAME' or, with scfast.record, a function of the "
            "model's output"
        )
    return Target(kind, name)
