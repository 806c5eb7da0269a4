"""What every tool does with its AnnData: check first, compute, write last and all at once."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from scfast import models
from scfast.analyses import Strata
from scfast.models.base import AttentionSource
from scfast.run import Counts, StoredCounts, TokenSurvey, current_store, default_device, resolve_device

if TYPE_CHECKING:
    from anndata import AnnData

#: log1p of counts per ten thousand stays under log1p(1e4) = 9.2; counts of real cells do not.
LARGEST_LOG = 15.0
#: Values looked at together when looking for fractions.
CHUNK = 2**20


def check_share(name: str, value: float) -> None:
    """Raise a ValueError unless ``value`` lies between 0 and 1."""
    if not 0.0 < value < 1.0:
        raise ValueError(f"{name} must lie between 0 and 1; got {value}")


def get_source(model: AttentionSource | str, device: str | torch.device | None = None) -> AttentionSource:
    """The model itself, or the one that ``"geneformer:FOLDER"`` names, on the device that was asked for.

    Without a device a model stays where it is, and one that is loaded here goes to the GPU where there is one.
    """
    where = None if device is None else resolve_device(device)
    if isinstance(model, AttentionSource):
        return model if where is None else model.to(where)
    if not isinstance(model, str) or ":" not in model:
        raise TypeError(
            f"model={model!r} is not a model: pass one from scfast.models.load, or 'geneformer:FOLDER'"
        )
    name, folder = model.split(":", 1)
    return models.load(name, Path(folder).expanduser()).to(default_device() if where is None else where)


def get_counts(adata: AnnData, counts_layer: str | None) -> Counts:
    """The counts of ``adata``, checked; nothing is copied.

    Raises
    ------
    KeyError
        When the layer does not exist.
    ValueError
        When values are negative, nan or infinite, or when there are no cells.
    """
    if counts_layer is not None and counts_layer not in adata.layers:
        raise KeyError(
            f"counts_layer={counts_layer!r} is not in adata.layers, which has {list(adata.layers)}"
        )
    where = "adata.X" if counts_layer is None else f"adata.layers[{counts_layer!r}]"
    matrix = adata.X if counts_layer is None else adata.layers[counts_layer]
    if matrix is None:
        raise ValueError("adata.X is empty: name the layer that holds the counts with counts_layer=")
    if 0 in matrix.shape:
        raise ValueError(
            f"{where} has {matrix.shape[0]} cells and {matrix.shape[1]} genes: there is nothing to run"
        )
    if hasattr(matrix, "group"):  # on disk, see scfast.io.open
        if matrix.format != "csr":
            raise ValueError(
                f"{where} is stored gene by gene ({matrix.format}), so that reading one cell reads all: convert it once"
                " with scfast.io.convert, or read it into memory"
            )
        stored = StoredCounts(matrix, adata.var, _get_totals(adata))
        _check_values(stored.take(np.arange(min(stored.n_cells, stored.block_cells)))[0].data, where)
        return stored
    if sparse.issparse(matrix) and matrix.format != "csr":
        matrix = matrix.tocsr()
    if not (sparse.issparse(matrix) or isinstance(matrix, np.ndarray)):
        raise TypeError(
            f"{where} is a {type(matrix).__name__}; a SciPy sparse matrix or a NumPy array is needed"
        )
    values = matrix.data if sparse.issparse(matrix) else matrix.reshape(-1)
    _check_values(values, where)
    return Counts(matrix, adata.var, _get_totals(adata))


def get_raw_counts(adata: AnnData, counts_layer: str | None) -> Counts:
    """As :func:`get_counts`, with an error for values that are no counts.

    Raises
    ------
    ValueError
        When values have fractions, are negative, nan or infinite, or when there are no cells.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*made from raw counts", UserWarning)
        try:
            return get_counts(adata, counts_layer)
        except UserWarning as problem:
            raise ValueError(str(problem)) from None


def _check_values(values: np.ndarray, where: str) -> None:
    if values.dtype.kind not in "fiub":
        raise TypeError(f"{where} holds {values.dtype} values; counts are numbers")
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    if np.isnan(low) or np.isinf(low) or np.isinf(high):
        what = "nan" if np.isnan(low) else "infinite"
        raise ValueError(f"{where} holds {what} values; raw counts are needed: remove or repair those cells")
    if low < 0:
        raise ValueError(
            f"{where} holds negative values (down to {low:.3g}), as scaled data do; raw counts are needed:"
            " name the layer that holds them with counts_layer=, or recover them from adata.raw with"
            " scfast.pp.recover_counts"
        )
    if values.dtype.kind != "f" or not any(
        np.any(part != np.floor(part))
        for part in (values[i : i + CHUNK] for i in range(0, values.size, CHUNK))
    ):
        return
    reason = (
        f"look log-normalised (fractions, none above {high:.3g})"
        if high < LARGEST_LOG
        else "are not whole numbers, as after normalisation or denoising"
    )
    warnings.warn(
        f"the values of {where} {reason}, but the model's tokens are made from raw counts: name the layer"
        " that holds them with counts_layer=, or recover them with scfast.pp.recover_counts",
        UserWarning,
        stacklevel=4,
    )


def _get_totals(adata: AnnData) -> np.ndarray | None:
    """Total counts from obs, which stay right when genes were removed."""
    if "n_counts" not in adata.obs:
        return None
    totals = adata.obs["n_counts"].to_numpy()
    if totals.dtype.kind not in "fiu" or not np.all(np.isfinite(totals)) or np.any(totals < 0):
        raise ValueError(
            "adata.obs['n_counts'] must hold each cell's total count, and has nan, negative or"
            " non-numeric values:"
            " repair the column, or remove it and the row sums are taken"
        )
    return totals


class Groups(NamedTuple):
    """Which cells are counted together, the groups' names, and their names as columns of a file."""

    strata: Strata
    names: list[str]
    columns: list[str]


def get_groups(adata: AnnData, groupby: str | None, replicate_key: str | None = None) -> Groups:
    """Groups (and replicates within them) of the cells.

    Raises
    ------
    KeyError
        When a column is not in ``adata.obs``.
    ValueError
        When there are no groups, a cell of a group has no replicate, or a file cannot tell two names apart.
    """
    for argument, column in (("groupby", groupby), ("replicate_key", replicate_key)):
        if column is not None and column not in adata.obs:
            raise KeyError(f"{argument}={column!r} is not in adata.obs, which has {list(adata.obs.columns)}")
    if groupby is None:
        groups, names = np.zeros(adata.n_obs, dtype=np.int64), ["all"]
    else:
        labels = adata.obs[groupby].astype("category").cat.remove_unused_categories()
        groups, names = labels.cat.codes.to_numpy(), [str(name) for name in labels.cat.categories]
        if not names:
            raise ValueError(f"adata.obs[{groupby!r}] is empty in every cell: there are no groups")
    replicates = None
    if replicate_key is not None:
        replicates = adata.obs[replicate_key].astype("category").cat.codes.to_numpy()
        unknown = int(np.sum((replicates < 0) & (groups >= 0)))
        if unknown:
            raise ValueError(
                f"adata.obs[{replicate_key!r}] is empty for {unknown} cells, whose replicate is thus"
                " unknown: fill it or remove those cells"
            )
    return Groups(Strata.from_codes(groups, len(names), replicates), names, column_names(names))


def column_names(groups: list[str]) -> list[str]:
    """Group names as columns of a file: HDF5 takes a slash for a folder, so it becomes a bar."""
    names = [name.replace("/", "|") for name in groups]
    if len(set(names)) < len(names):
        raise ValueError(f"the groups {groups} differ only by '/' and '|': rename one")
    return names


def check_options(key_added: str, null: str | None = None) -> None:
    """Refuse a null model that there is not, and a name that no file can hold."""
    if null not in (None, "untrained"):
        raise ValueError(f"null={null!r} is unknown; use 'untrained' or None")
    if not isinstance(key_added, str) or not key_added or "/" in key_added:
        raise ValueError(f"key_added={key_added!r} must be a name without '/'")


def get_rows(found: TokenSurvey, source: AttentionSource, var: pd.DataFrame) -> np.ndarray:
    """Rows with at least one gene token; an error when there are none, a warning when some have none."""
    rows = np.flatnonzero(found.gene_tokens > 0)
    if not len(rows) and not source.genes:
        raise ValueError(
            f"{source.name} does not say which token stands for which gene: give it a vocabulary=, or return gene_index"
            " from its tokeniser"
        )
    if not len(rows):
        raise ValueError(
            f"no cell has a gene of {source.name}'s vocabulary: adata.var_names hold"
            f" {_some(list(var.index))}, the vocabulary {_some(source.genes)};"
            " set adata.var_names to ids of that kind"
        )
    empty = len(found.gene_tokens) - len(rows)
    if empty:
        warnings.warn(
            f"{empty} of {len(found.gene_tokens)} cells express no gene of {source.name}'s vocabulary"
            " and are left out",
            UserWarning,
            stacklevel=3,
        )
    return rows


def _some(names: list[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (", ..." if len(names) > 3 else "")


def commit(adata: AnnData, **written: dict[str, Any]) -> None:
    """Write results, such as ``layers={key: matrix}``; when one fails, or on Ctrl-C, all are taken back.

    Inside :func:`scfast.run.planning` there are none.
    """
    store = current_store()
    if store is not None and store.plans_only:
        return
    before: list[tuple[str, str, bool, Any]] = []
    try:
        for slot, values in written.items():
            for key, value in values.items():
                before.append((slot, key, key in getattr(adata, slot), getattr(adata, slot).get(key)))
                getattr(adata, slot)[key] = value
    except BaseException:
        for slot, key, existed, old in reversed(before):
            if existed:
                getattr(adata, slot)[key] = old
            else:
                getattr(adata, slot).pop(key, None)
        raise
