"""What commands call DATA."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anndata import AnnData


def load(
    data: Path, *, stream: bool = False, counts_layer: str | None = None, where: str | None = None
) -> AnnData:
    """The AnnData at a path, or the data set of that name where no such file exists.

    With ``stream``, its X is what ``counts_layer`` names, and stays on disk. ``where`` is a condition on obs.
    """
    from scfast import datasets, io
    from scfast.io.columns import Condition

    named = str(data) == "pbmc68k" and not data.exists()
    if stream and not named:
        return io.open(data, counts="X" if counts_layer is None else f"layers/{counts_layer}", where=where)
    adata = datasets.pbmc68k() if named else io.read(data)
    return adata if where is None else adata[Condition(where, list(adata.obs)).rows(adata.obs)].copy()
