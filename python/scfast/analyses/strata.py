"""Which cells are counted together: groups, and replicates within them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Strata:
    """Cells by group, or by (group, replicate).

    Attributes
    ----------
    of_row
        Stratum of each row of the data, -1 for cells of no group [cells]: of the smallest signed type that holds them,
        so reckon with :meth:`of`.
    group
        int64 [S]: group of each stratum.
    n_groups
        Number of groups.
    replicated
        Whether a stratum is a replicate, so that errors are between replicates.

    Examples
    --------
    >>> import numpy as np
    >>> strata = Strata.from_codes(np.array([0, 0, 1, -1]), 2, replicates=np.array([3, 4, 3, 3]))
    >>> strata.of_row.tolist(), strata.group.tolist()
    ([0, 1, 2, -1], [0, 0, 1])
    """

    of_row: np.ndarray
    group: np.ndarray
    n_groups: int
    replicated: bool

    def __post_init__(self) -> None:
        # Nobody can write into them, so that states share them: a copy for each shard grows with the square of cells.
        for name in ("of_row", "group"):
            array = getattr(self, name)
            if array.flags.writeable:
                array = array.copy()
                array.flags.writeable = False
                object.__setattr__(self, name, array)

    @classmethod
    def from_codes(cls, groups: np.ndarray, n_groups: int, replicates: np.ndarray | None = None) -> Strata:
        """Strata of cells with integer group codes, -1 for none, and replicate codes, -1 for unknown.

        Cells of unknown replicate belong to no stratum.

        Raises
        ------
        ValueError
            When a code names no group.
        """
        groups = np.asarray(groups)
        if groups.max(initial=-1) >= n_groups:
            raise ValueError(f"a cell is in group {groups.max()}, and there are {n_groups}, counted from 0")
        if replicates is None:
            return cls(_smallest(groups, n_groups), np.arange(n_groups), n_groups, False)
        replicates = np.asarray(replicates, dtype=np.int64)
        known = (groups >= 0) & (replicates >= 0)
        width = int(replicates.max(initial=0)) + 1
        pairs, codes = np.unique(
            groups[known].astype(np.int64) * width + replicates[known], return_inverse=True
        )
        of_row = np.full(len(groups), -1, dtype=np.int64)
        of_row[known] = codes
        return cls(_smallest(of_row, len(pairs)), pairs // width, n_groups, True)

    @property
    def n(self) -> int:
        """Number of strata, S."""
        return len(self.group)

    def of(self, rows: np.ndarray) -> np.ndarray:
        """int64: strata of these rows of the data, -1 for none."""
        return self.of_row[rows].astype(np.int64)

    def by_group(self, per_stratum: np.ndarray) -> np.ndarray:
        """Sums [n_groups, ...] of values [S, ...] over the strata of each group."""
        total = np.zeros((self.n_groups, *per_stratum.shape[1:]), dtype=per_stratum.dtype)
        np.add.at(total, self.group, per_stratum)
        return total

    def check_same(self, other: Strata) -> None:
        """Refuse to merge results over different strata."""
        same = (
            self.n_groups == other.n_groups
            and self.replicated == other.replicated
            and np.array_equal(self.group, other.group)
            and (self.of_row is other.of_row or np.array_equal(self.of_row, other.of_row))
        )
        if not same:
            raise ValueError(
                f"cannot merge results over different cells or groups ({len(self.of_row)} cells in"
                f" {self.n} strata and"
                f" {len(other.of_row)} cells in {other.n}): build both with the same Strata"
            )

    def state(self) -> dict[str, np.ndarray]:
        """Named arrays, for the state of an accumulator: these themselves, which nobody can change."""
        return {
            "strata_of_row": self.of_row,
            "strata_group": self.group,
            "strata_options": np.array([self.n_groups, self.replicated], dtype=np.int64),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> Strata:
        """The strata that had this state."""
        n_groups, replicated = (int(x) for x in state["strata_options"])
        return cls(state["strata_of_row"], state["strata_group"], n_groups, bool(replicated))


def _smallest(codes: np.ndarray, n: int) -> np.ndarray:
    """Codes below ``n``, and -1, in as few bytes as they need; nobody can write into them."""
    codes = codes.astype(np.min_scalar_type(-max(n, 1)))
    codes.flags.writeable = False
    return codes
