"""Which cells are classified, into which classes."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from scfast.tl._query import where_rows


@dataclass(frozen=True)
class Labelled:
    """The chosen cells.

    Attributes
    ----------
    rows
        int64 [n]: rows of the table, ascending.
    codes
        int64 [n]: the class of each.
    classes
        Names, in the order of the codes.
    left_out
        Reason -> number of cells.
    """

    rows: np.ndarray
    codes: np.ndarray
    classes: tuple[str, ...]
    left_out: dict[str, int] = field(default_factory=dict)

    def keep(self, kept: np.ndarray, reason: str) -> Labelled:
        """Those where ``kept`` [n] is True; the others are counted under ``reason``."""
        left_out = {**self.left_out, reason: int(np.sum(~kept))}
        return Labelled(self.rows[kept], self.codes[kept], self.classes, left_out)


def label_cells(
    obs: pd.DataFrame,
    label: str,
    where: str | None = None,
    recode: Mapping[str, Sequence[Any]] | None = None,
) -> Labelled:
    """Choose cells by ``where``, and their classes by column ``label``, joined into classes by ``recode``.

    Raises
    ------
    KeyError
        When a column does not exist.
    ValueError
        When no cell is left, there is one class only, or ``recode`` names a value twice or one that is not there.
    """
    if label not in obs:
        raise KeyError(f"label={label!r} is not in adata.obs, which has {list(obs.columns)}")
    chosen = np.ones(len(obs), dtype=bool) if where is None else where_rows(obs, where)
    if not chosen.any():
        raise ValueError(f"where={where!r} holds for none of the {len(obs)} cells")
    values = pd.Series(np.asarray(obs[label])).infer_objects()
    known = values.notna().to_numpy()
    missing = int(np.sum(chosen & ~known))
    if missing:
        warnings.warn(
            f"adata.obs[{label!r}] is empty for {missing} of {int(chosen.sum())} cells; they are left out",
            UserWarning,
            stacklevel=3,
        )
    rows = np.flatnonzero(chosen & known)
    left_out = {"where": int(np.sum(~chosen)), "label missing": missing}
    if recode is None:
        names, codes = np.unique(values[rows].astype(str).to_numpy(dtype=object), return_inverse=True)
        found = Labelled(rows, codes.astype(np.int64), tuple(names), left_out)
    else:
        codes = _recoded(values[rows], label, recode)
        found = Labelled(rows, codes, tuple(map(str, recode)), left_out).keep(codes >= 0, "not recoded")
    if len(found.classes) < 2:
        raise ValueError(
            f"label={label!r} has one class, {', '.join(map(repr, found.classes)) or 'none'}, among the"
            f" {len(found.rows)} cells chosen: a classifier needs two or more; look at where= and recode="
        )
    return found


def _recoded(values: pd.Series, label: str, recode: Mapping[str, Sequence[Any]]) -> np.ndarray:
    """The class of each value, -1 where no class names it."""
    numeric = values.dtype.kind in "biuf"
    codes = np.full(len(values), -1, dtype=np.int64)
    owner: dict[Any, str] = {}
    for code, (name, members) in enumerate(recode.items()):
        if not members:
            raise ValueError(f"recode gives class {name!r} no value of {label!r}")
        for member in members:
            value = _as(member, numeric, label)
            if value in owner:
                twice = "twice" if owner[value] == name else f"in {owner[value]!r} and in {name!r}"
                raise ValueError(f"recode names the value {member!r} of {label!r} {twice}")
            owner[value] = name
            at = (values == value).to_numpy() if numeric else (values.astype(str) == value).to_numpy()
            if not at.any():
                there = ", ".join(map(str, sorted(values.unique())[:20]))
                raise ValueError(
                    f"recode: no chosen cell has {label!r} = {member!r} (class {name!r}); there are {there}"
                )
            codes[at] = code
    return codes


def _as(member: Any, numeric: bool, label: str) -> Any:
    if not numeric:
        return str(member)
    try:
        return float(member)
    except ValueError:
        raise ValueError(f"recode: {label!r} holds numbers, and {member!r} is none") from None


def require_classes(codes: np.ndarray, classes: tuple[str, ...], what: str, at_least: int = 1) -> None:
    """Raise a ValueError that names the classes with too few of the cells ``codes``."""
    counts = np.bincount(codes, minlength=len(classes))
    few = [f"{name!r} ({count})" for name, count in zip(classes, counts, strict=True) if count < at_least]
    if few:
        number = f"no {what}" if at_least == 1 else f"fewer than {at_least} {what}s"
        raise ValueError(
            f"there is {number} of class {', '.join(few)}: join classes with recode=, or leave it out"
        )
