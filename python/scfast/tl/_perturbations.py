"""Perturbations of cells as they stand in ``adata.obs``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scfast.train.perturbed_cells import Design

if TYPE_CHECKING:
    from anndata import AnnData


def parts_of_name(name: str, control: str, separator: str) -> tuple[str, ...]:
    """The single perturbations that a name is made of, sorted; the control is none.

    Examples
    --------
    >>> [parts_of_name(name, "ctrl", "+") for name in ("MAP2K6+KLF1", "KLF1+ctrl", "ctrl")]
    [('KLF1', 'MAP2K6'), ('KLF1',), ()]
    """
    parts = {part.strip() for part in name.split(separator)} if separator else {name.strip()}
    return tuple(sorted(parts - {control, ""}))


def get_design(
    adata: AnnData, perturbation: str, control: str, within: Sequence[str], separator: str
) -> Design:
    """Which cell was perturbed how, and where.

    Raises
    ------
    KeyError
        When a column is not in ``adata.obs``.
    ValueError
        When a cell has no perturbation or context, no cell is perturbed, or a context has no control cells.
    """
    for argument, column in [("perturbation", perturbation), *(("within", column) for column in within)]:
        if column not in adata.obs:
            raise KeyError(f"{argument}={column!r} is not in adata.obs, which has {list(adata.obs.columns)}")
        if missing := int(adata.obs[column].isna().sum()):
            raise ValueError(
                f"adata.obs[{column!r}] is empty for {missing} cells: fill it or remove those cells"
            )
    labels = adata.obs[perturbation].astype(str).to_numpy()
    named: dict[tuple[str, ...], str] = {(): control}
    for name in pd.unique(labels):
        named.setdefault(parts_of_name(name, control, separator), name)
    order = {parts: number for number, parts in enumerate(named)}
    number_of = {name: order[parts_of_name(name, control, separator)] for name in pd.unique(labels)}
    numbers = np.array([number_of[name] for name in labels], dtype=np.int64)
    if not (numbers == 0).any():
        raise ValueError(
            f"no cell of adata.obs[{perturbation!r}] is {control!r}: name the unperturbed cells with control=; "
            f"there are {', '.join(map(repr, pd.unique(labels)[:5]))}"
        )
    if not (numbers > 0).any():
        raise ValueError(
            f"every cell of adata.obs[{perturbation!r}] is {control!r}: there is nothing to predict"
        )
    where = (
        adata.obs[list(within)].astype(str).agg(" / ".join, axis=1)
        if within
        else pd.Series(["all"] * adata.n_obs)
    )
    context, contexts = pd.factorize(where)
    design = Design(
        tuple(named.values()), tuple(named), tuple(map(str, contexts)), numbers, context.astype(np.int64)
    )
    if lacking := [contexts[number] for number in np.flatnonzero(~design.present()[0])]:
        raise ValueError(
            f"{len(lacking)} of {len(contexts)} contexts, such as {lacking[0]!r}, have no cell that is {control!r}: "
            "changes are measured against control cells of the same context; remove those cells, or change within="
        )
    return design
