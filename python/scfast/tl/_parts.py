"""Which of the labelled cells are trained on, which decide when to stop, which are the test."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from scfast.tl._labels import Labelled, require_classes
from scfast.train.split import PARTS, TEST, TRAIN, VALIDATION, take_cells, take_groups


def choose_parts(
    labelled: Labelled,
    groups: np.ndarray | None,
    *,
    test: float,
    test_groups: Sequence[str] | None,
    validation: float,
    within: bool,
    draws: np.random.Generator,
) -> np.ndarray:
    """int8 [n]: TRAIN, VALIDATION or TEST; the arguments are those of :func:`scfast.tl.finetune`.

    Raises
    ------
    KeyError
        When a test group does not exist.
    ValueError
        When there are too few groups, or too few cells of a class.
    """
    parts = np.full(labelled.rows.size, TRAIN, dtype=np.int8)
    parts[_test_cells(labelled, groups, test, test_groups, draws)] = TEST
    rest = np.flatnonzero(parts == TRAIN)
    chosen = _validation_cells(labelled, groups, rest, validation, within, draws)
    parts[rest[chosen]] = VALIDATION
    require_classes(labelled.codes[parts == TRAIN], labelled.classes, "training cell")
    return parts


def group_of_cells(obs: pd.DataFrame, group: str, rows: np.ndarray) -> np.ndarray:
    """Text [n]: the group of each of the cells ``rows``; an error when one has none."""
    if group not in obs:
        raise KeyError(f"group={group!r} is not in adata.obs, which has {list(obs.columns)}")
    values = pd.Series(np.asarray(obs[group])[rows])
    unknown = int(values.isna().sum())
    if unknown:
        raise ValueError(
            f"adata.obs[{group!r}] is empty for {unknown} cells, so they could be on both sides of a split: fill it, or"
            " leave those cells out with where="
        )
    return values.astype(str).to_numpy()


def _test_cells(
    labelled: Labelled,
    groups: np.ndarray | None,
    share: float,
    named: Sequence[str] | None,
    draws: np.random.Generator,
) -> np.ndarray:
    if groups is None:
        if named is not None:
            raise ValueError(f"test_groups={list(named)} needs group=, the column that they are in")
        require_classes(labelled.codes, labelled.classes, "cell", at_least=3)
        return take_cells(labelled.codes, share, draws)
    there = list(np.unique(groups))
    if named is not None:
        wanted = [named] if isinstance(named, str) else list(map(str, named))
        missing = [name for name in wanted if name not in there]
        if missing or not wanted:
            raise KeyError(f"test_groups={wanted}: there are groups {there}")
        if len(set(wanted)) == len(there):
            raise ValueError(f"test_groups={wanted} are all groups: none is left to train on")
        return np.isin(groups, wanted)
    if len(there) < 2:
        raise ValueError(f"there is one group, {there[0]!r}: leave group= out to split its cells at random")
    return take_groups(groups, share, draws)


def _validation_cells(
    labelled: Labelled,
    groups: np.ndarray | None,
    rest: np.ndarray,
    share: float,
    within: bool,
    draws: np.random.Generator,
) -> np.ndarray:
    if groups is None or within:
        require_classes(labelled.codes[rest], labelled.classes, "cell beside the test", at_least=2)
        return take_cells(labelled.codes[rest], share, draws)
    there = np.unique(groups[rest])
    if there.size < 2:
        raise ValueError(
            f"beside the test there is one group, {there[0]!r}: take the validation cells from it with"
            " validate_within=True (--validate-within)"
        )
    return take_groups(groups[rest], share, draws)


def cells_by_part(labelled: Labelled, parts: np.ndarray) -> dict[str, dict[str, int]]:
    """Part -> class -> cells."""
    return {
        name: {
            cls: int(np.sum((parts == part) & (labelled.codes == code)))
            for code, cls in enumerate(labelled.classes)
        }
        for part, name in enumerate(PARTS)
    }


def groups_by_part(groups: np.ndarray, parts: np.ndarray) -> dict[str, list[str]]:
    """Part -> its groups."""
    return {name: np.unique(groups[parts == part]).tolist() for part, name in enumerate(PARTS)}
