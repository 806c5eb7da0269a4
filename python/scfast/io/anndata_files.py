"""AnnData from and to disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anndata import AnnData

    from scfast.io.carried import CellsOnDisk


def read(path: str | Path) -> AnnData:
    """Read an AnnData from ``.h5ad`` or ``.zarr``.

    Parameters
    ----------
    path
        The file or folder.

    Returns
    -------
    AnnData
        All of it, in memory. :func:`scfast.io.open` leaves the counts on disk.

    Raises
    ------
    FileNotFoundError
        If nothing is there.
    ValueError
        If it is neither h5ad nor zarr.

    Examples
    --------
    >>> import tempfile, pathlib, scfast
    >>> adata, _ = scfast.datasets.toy()
    >>> path = scfast.io.write_h5ad(adata, pathlib.Path(tempfile.mkdtemp()) / "cells.h5ad")
    >>> scfast.io.read(path).shape
    (60, 40)
    """
    import anndata as ad

    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no file {path}")
    if path.suffix == ".h5ad":
        return ad.read_h5ad(path)
    if path.name.endswith(".zarr"):
        return ad.read_zarr(path)
    raise ValueError(
        f"{path} is neither .h5ad nor .zarr: convert it once, for example with scanpy.read_10x_h5 or "
        "scanpy.read_10x_mtx and adata.write_h5ad"
    )


def write_h5ad(adata: AnnData, path: str | Path, *, cells: CellsOnDisk | None = None) -> Path:
    """Write ``adata`` in one atomic step: ``path`` holds all of it or what it held before.

    Parameters
    ----------
    adata
        What to write, with gzip compression.
    path
        Where; folders are created.
    cells
        Where the rest of ``obs``, ``obsm`` and ``uns`` is, when ``adata`` was opened with some columns of obs alone:
        it is carried into the file without being held in memory.

    Returns
    -------
    pathlib.Path
        The file.

    Examples
    --------
    >>> import tempfile, pathlib, scfast
    >>> adata, _ = scfast.datasets.toy()
    >>> scfast.io.write_h5ad(adata, pathlib.Path(tempfile.mkdtemp()) / "results" / "cells.h5ad").name
    'cells.h5ad'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.part.h5ad")
    with _set_aside(adata) as on_disk:
        adata.write_h5ad(part, compression="gzip")
    if on_disk or cells is not None:
        import h5py

        with h5py.File(part, "r+") as file:
            if cells is not None:
                cells.add_to(file)
            for (slot, key), stored in on_disk.items():
                file.copy(getattr(stored, "group", stored), file[slot], name=key)
    part.replace(path)
    return path


@contextmanager
def _set_aside(adata: AnnData) -> Iterator[dict[tuple[str, str], Any]]:
    """Results that lie in an HDF5 file: AnnData would read them as a whole, HDF5 copies them chunk by chunk."""
    import h5py

    on_disk = {
        (slot, key): value
        for slot in ("layers", "obsm")
        for key, value in getattr(adata, slot).items()
        if isinstance(getattr(value, "group", value), (h5py.Group, h5py.Dataset))
        and not hasattr(value, "whole")
    }
    for slot, key in on_disk:
        del getattr(adata, slot)[key]
    try:
        yield on_disk
    finally:
        for (slot, key), value in on_disk.items():
            getattr(adata, slot)[key] = value
