"""AnnData whose counts stay on disk."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anndata import AnnData

#: Parts of a file that are read; others (layers, raw, graphs of cells) stay where they are.
_IN_MEMORY = ("obs", "var", "uns", "obsm", "varm")

#: Values of a zarr chunk, and of a shard, which is a file: 1 MB and 64 MB of float32.
CHUNK, SHARD = 2**18, 2**24


def open(path: str | Path, *, counts: str = "X") -> AnnData:
    """Open an ``.h5ad`` or ``.zarr`` whose counts are read block by block as they are needed.

    For data that do not fit into memory: every tool takes the result, and visits the cells in the order in which they
    lie on the disk, 4,096 at a time.

    Parameters
    ----------
    path
        The file or folder.
    counts
        Where the counts are: ``"X"``, ``"layers/NAME"``, or ``"raw"`` with the genes of ``raw``.

    Returns
    -------
    AnnData
        ``X`` on disk; ``obs``, ``var``, ``uns``, ``obsm`` and ``varm`` in memory. Layers, ``raw`` and graphs are not
        read.

    Raises
    ------
    FileNotFoundError
        If nothing is there.
    ValueError, KeyError, OSError
        If it is neither h5ad nor zarr, or damaged, if there are no counts of that name, or if they are not stored cell
        by cell (CSR); the message names the command that converts them.

    Examples
    --------
    >>> import scfast
    >>> adata = scfast.io.open("atlas.h5ad", counts="layers/counts")  # doctest: +SKIP
    >>> scfast.tl.rollout(adata, "geneformer:my_model", groupby="cell_type", store_cells=False)  # doctest: +SKIP
    """
    import anndata as ad

    path = Path(path)
    root = _root(path)
    where = "raw/X" if counts == "raw" else counts
    if where not in root:
        layers = [f"layers/{name}" for name in root["layers"]] if "layers" in root else []
        there = ", ".join([name for name in ("X", "raw") if name in root] + layers)
        raise KeyError(f"counts={counts!r} is not in {path}, which has {there}")
    encoding = root[where].attrs.get("encoding-type", "array")
    if encoding != "csr_matrix":
        raise ValueError(
            f"{path}:{where} is stored as {encoding}, not cell by cell (csr_matrix), so that one cell is read with all:"
            f" convert it once with `scfast convert {path} {path.stem}_csr.zarr`"
        )
    try:
        parts: dict[str, Any] = {name: ad.io.read_elem(root[name]) for name in _IN_MEMORY if name in root}
        if counts == "raw":
            parts |= {"var": ad.io.read_elem(root["raw/var"]), "varm": {}}
        return ad.AnnData(X=ad.io.sparse_dataset(root[where]), **parts)
    except Exception as error:  # whatever a reader makes of bytes that are not what they should be
        raise OSError(f"{path} is damaged, perhaps cut off: {error}") from error


def _root(path: Path) -> Any:
    """The file, open for reading."""
    if not path.exists():
        raise FileNotFoundError(f"no file {path}")
    try:
        if path.suffix == ".h5ad":
            import h5py

            return h5py.File(path, "r")
        if path.name.endswith(".zarr"):
            import zarr

            return zarr.open_group(str(path), mode="r")
    except Exception as error:  # as above
        raise OSError(f"{path} cannot be opened, perhaps because it is cut off: {error}") from error
    raise ValueError(f"{path} is neither .h5ad nor .zarr")


def convert(source: str | Path, target: str | Path) -> Path:
    """Write a data set as sharded zarr (version 3) with its matrices stored cell by cell, the cells in their order.

    Parameters
    ----------
    source
        ``.h5ad`` or ``.zarr``, read into memory.
    target
        A ``.zarr`` folder that is not there yet; it appears when all is written.

    Returns
    -------
    Path
        The target.

    Raises
    ------
    FileExistsError
        When the target is there.
    ValueError
        When the target is no ``.zarr``.

    Examples
    --------
    >>> import scfast
    >>> scfast.io.convert("by_gene.h5ad", "by_cell.zarr")  # doctest: +SKIP
    """
    from scipy import sparse

    from scfast.io.anndata_files import read

    target = Path(target)
    if not target.name.endswith(".zarr"):
        raise ValueError(f"{target} must end in .zarr")
    if target.exists():
        raise FileExistsError(f"{target} is there already: give another name, or remove it")
    adata = read(source)
    adata.X = sparse.csr_matrix(adata.X)
    for name, layer in adata.layers.items():
        adata.layers[name] = sparse.csr_matrix(layer)
    part = target.with_name(f".{target.name}.part.zarr")
    shutil.rmtree(part, ignore_errors=True)
    _write_sharded(adata, part)
    part.rename(target)
    return target


def _write_sharded(adata: AnnData, path: Path) -> None:
    import zarr

    root = zarr.open_group(str(path), mode="w", zarr_format=3)
    root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*autosharding", category=UserWarning)
        _write_parts(root, adata)


def _write_parts(root: Any, adata: AnnData) -> None:
    import anndata as ad

    sharded = {"chunks": (CHUNK,), "shards": (SHARD,)}
    for part in ("obs", "var", "uns", "obsm", "varm", "obsp", "varp"):
        ad.io.write_elem(
            root, part, getattr(adata, part) if part in ("obs", "var") else dict(getattr(adata, part))
        )
    ad.io.write_elem(root, "X", adata.X, dataset_kwargs=sharded)
    ad.io.write_elem(root, "layers", {})
    for name, layer in adata.layers.items():
        ad.io.write_elem(root["layers"], name, layer, dataset_kwargs=sharded)
