"""What commands call DATA."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anndata import AnnData


def scored_groups(adata: AnnData, key: str, groupby: str | None) -> int:
    """How many groups scores are compared in.

    Raises
    ------
    KeyError
        When there are no such scores, or no such column.
    """
    if "groups" not in adata.uns.get(key, {}):
        there = ", ".join(map(str, adata.uns)) or "nothing"
        raise KeyError(f"--key {key} names no scores; there are results named {there}: run scfast run first")
    if groupby is None:
        return len(adata.uns[key]["groups"])
    if groupby not in adata.obs:
        raise KeyError(f"--groupby {groupby} is no column of obs; there are {', '.join(adata.obs.columns)}")
    return int(adata.obs[groupby].nunique())


def load(
    data: Path,
    *,
    stream: bool = False,
    counts_layer: str | None = None,
    where: str | None = None,
    obs: Sequence[str] | None = None,
) -> AnnData:
    """The AnnData at a path, or the data set of that name where no such file exists.

    With ``stream``, its X is what ``counts_layer`` names, and stays on disk; of obs, only the columns ``obs`` are read
    where they are given. ``where`` is a condition on obs.
    """
    from scfast import datasets, io
    from scfast.io.columns import Condition

    named = str(data) == "pbmc68k" and not data.exists()
    if stream and not named:
        counts = "X" if counts_layer is None else f"layers/{counts_layer}"
        return io.open(data, counts=counts, obs=obs, where=where)
    adata = datasets.pbmc68k() if named else io.read(data)
    return adata if where is None else adata[Condition(where, list(adata.obs)).rows(adata.obs)].copy()
