"""What commands call DATA."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anndata import AnnData


def load(data: Path) -> AnnData:
    """The AnnData at a path, or the data set of that name where no such file exists."""
    from scfast import datasets, io

    if str(data) == "pbmc68k" and not data.exists():
        return datasets.pbmc68k()
    return io.read(data)
