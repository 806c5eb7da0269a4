"""AnnData whose counts stay on disk."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scfast.io.columns import Condition, column_names, read_columns

if TYPE_CHECKING:
    from anndata import AnnData

#: What is read of the cells; layers, raw and graphs stay where they are.
_OF_CELLS = ("obs", "obsm", "uns")

#: Values of a zarr chunk, and of a shard, which is a file: 1 MB and 64 MB of float32.
CHUNK, SHARD = 2**18, 2**24


def open(
    path: str | Path, *, counts: str = "X", obs: Sequence[str] | None = None, where: str | None = None
) -> AnnData:
    """Open an ``.h5ad`` or ``.zarr`` whose counts are read block by block as they are needed.

    For data that do not fit into memory: every tool takes the result, and visits the cells in the order in which they
    lie on the disk, 2,048 at a time.

    Parameters
    ----------
    path
        The file or folder.
    counts
        Where the counts are: ``"X"``, ``"layers/NAME"``, or ``"raw"`` with the genes of ``raw``.
    obs
        Columns of obs that are read, beside ``n_counts``, which tokenisers use; texts become categories, the cells are
        numbered, and ``obsm`` and ``uns`` stay on disk. Default: all of these, with the names of the cells, which take
        more than a hundred bytes each.
    where
        Which cells: a condition on columns of obs, as ``pandas.DataFrame.query`` takes it, such as
        ``"cell_type == 'B' and n_genes > 500"``, in which nothing can be called. Default: all.

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
        by cell (CSR); the message names the command that converts them. If a column is not there, or ``where`` is no
        condition, holds for no cell, or holds what is more than comparisons, such as a call.

    Examples
    --------
    >>> import tempfile, pathlib, scfast
    >>> adata, model = scfast.datasets.toy()
    >>> path = scfast.io.write_h5ad(adata, pathlib.Path(tempfile.mkdtemp()) / "atlas.h5ad")
    >>> stored = scfast.io.open(path)
    >>> scfast.tl.rollout(stored, model, groupby="cell_type", store_cells=False)
    >>> stimulated = scfast.io.open(path, obs=["cell_type"], where="condition == 'stim'")
    >>> stored.n_obs, stimulated.n_obs
    (60, 30)
    """
    import anndata as ad

    path = Path(path)
    root = root_of(path)
    place = "raw/X" if counts == "raw" else counts
    with _reading(path):
        encoding = root[place].attrs.get("encoding-type", "array") if place in root else None
        layers = [f"layers/{name}" for name in root["layers"]] if "layers" in root else []
        there = ", ".join([name for name in ("X", "raw") if name in root] + layers)
    if encoding is None:
        raise KeyError(f"counts={counts!r} is not in {path}, which has {there}")
    if encoding != "csr_matrix":
        raise ValueError(
            f"{path}:{place} is stored as {encoding}, not cell by cell (csr_matrix), so that one cell is read with all:"
            f" convert it once with `scfast convert {path} {path.stem}_csr.zarr`"
        )
    with _reading(path):
        parts: dict[str, Any] = {
            part: ad.io.read_elem(root[part]) for part in ("var", "varm") if part in root
        }
        if counts == "raw":
            parts |= {"var": ad.io.read_elem(root["raw/var"]), "varm": {}}
        matrix = ad.io.sparse_dataset(root[place])
        columns = column_names(root["obs"]) if "obs" in root else []
    condition = None if where is None else Condition(where, columns)
    wanted = [*dict.fromkeys([*(obs or []), *(name for name in ("n_counts",) if name in columns)])]
    if absent := [name for name in wanted if name not in columns]:
        raise KeyError(f"obs of {path} has no column {', '.join(absent)}; there are {columns}")
    with _reading(path):
        if obs is None:
            parts |= {part: ad.io.read_elem(root[part]) for part in _OF_CELLS if part in root}
        else:
            needed = [*dict.fromkeys(wanted + (condition.columns if condition else []))]
            parts["obs"] = (
                read_columns(root["obs"], needed) if needed else pd.DataFrame(index=range(matrix.shape[0]))
            )
    if condition is not None:
        rows = condition.rows(parts["obs"])
        matrix, parts["obs"] = select_rows(matrix, rows), parts["obs"].iloc[rows]
        for name, values in parts.get("obsm", {}).items():
            parts["obsm"][name] = values.iloc[rows] if hasattr(values, "iloc") else values[rows]
    with _reading(path):
        return (
            ad.AnnData(X=matrix, **parts)
            if obs is None
            else _numbered(matrix, parts.pop("obs")[wanted], parts)
        )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Whatever a reader makes of bytes that are not what they should be is one error."""
    try:
        yield
    except Exception as error:
        raise OSError(f"{path} is damaged, perhaps cut off: {error}") from error


def _numbered(matrix: Any, obs: pd.DataFrame, parts: dict[str, Any]) -> AnnData:
    """AnnData whose cells have numbers, not names: AnnData would make a text of each."""
    import anndata as ad

    # told that they are objects, pandas does not look for numbers among them, in arrays of every type
    nameless = pd.DataFrame(index=pd.Index(np.full(matrix.shape[0], "", dtype=object), dtype=object))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Observation names are not unique", category=UserWarning)
        adata = ad.AnnData(X=matrix, obs=nameless, **parts)
    adata.obs.index = pd.RangeIndex(adata.n_obs)
    for name in obs:
        adata.obs[name] = obs[name].array
    return adata


def select_rows(matrix: Any, rows: np.ndarray) -> Any:
    """A matrix on disk, as :func:`anndata.io.sparse_dataset` gives it, of some of its rows alone; none is read.

    Its attribute ``whole`` is the matrix of all rows, ``rows`` int64 [n] those that it has.
    """
    chosen = copy(matrix)
    chosen.__class__ = _selected_class(type(matrix))
    chosen.whole, chosen.rows = matrix, np.asarray(rows, dtype=np.int64)
    return chosen


def _selected_class(whole: type) -> type:
    def shape(self: Any) -> tuple[int, int]:
        return len(self.rows), self.whole.shape[1]

    def items(self: Any, index: Any) -> Any:
        row, column = index if isinstance(index, tuple) else (index, slice(None))
        return self.whole[self.rows[row]][:, column]

    def to_memory(self: Any) -> Any:
        return self.whole[self.rows]

    own = {"shape": property(shape), "__getitem__": items, "to_memory": to_memory, "__module__": __name__}
    return type(f"{whole.__name__}Rows", (whole,), own)


def root_of(path: Path) -> Any:
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
    >>> import tempfile, pathlib, scfast
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> adata, _ = scfast.datasets.toy()
    >>> adata.X = adata.X.tocsc()  # gene by gene
    >>> by_gene = scfast.io.write_h5ad(adata, folder / "by_gene.h5ad")
    >>> by_cell = scfast.io.convert(by_gene, folder / "by_cell.zarr")
    >>> scfast.io.open(by_cell).shape
    (60, 40)
    """
    from scipy import sparse

    from scfast.io.anndata_files import read

    target = Path(target)
    check_target(target)
    adata = read(source)
    adata.X = sparse.csr_matrix(adata.X)
    for name, layer in adata.layers.items():
        adata.layers[name] = sparse.csr_matrix(layer)
    part = target.with_name(f".{target.name}.part.zarr")
    shutil.rmtree(part, ignore_errors=True)
    _write_sharded(adata, part)
    part.rename(target)
    return target


def check_target(target: Path) -> None:
    """Raise what :func:`convert` does where it cannot write to ``target``."""
    if not target.name.endswith(".zarr"):
        raise ValueError(f"{target} must end in .zarr")
    if target.exists():
        raise FileExistsError(f"{target} is there already: give another name, or remove it")


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
