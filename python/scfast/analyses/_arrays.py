"""An accumulator whose state is named arrays that add: what the group analyses have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from scfast.analyses.base import Addition, Batch
from scfast.analyses.strata import Strata


class ArrayAccumulator:
    """Sums in named arrays over strata of cells; subclasses say which arrays, and how a batch adds to them.

    A subclass is constructed as ``cls(strata, **config)``, ``config`` being strings, whole numbers and arrays of
    these, and keeps its sums in ``self.sums``.
    """

    #: Names of the configuration, each an attribute of the same name.
    config: ClassVar[tuple[str, ...]] = ()
    #: How arrays come together that are not sums, by name, such as ``np.minimum``.
    joined_by: ClassVar[Mapping[str, np.ufunc]] = {}
    strata: Strata
    sums: dict[str, np.ndarray]

    def additions(self, batch: Batch) -> list[Addition]:
        """What the cells of a batch add; nothing is changed."""
        raise NotImplementedError

    def add(self, additions: Sequence[Addition]) -> None:
        """Add what :meth:`additions` returned, without allocating arrays."""
        for array, places, values in additions:
            # Unlike an indexed +=, add.at copies nothing, so memory cannot run out half way.
            self.joined_by.get(array, np.add).at(self.sums[array].reshape(-1), places, values)

    def update(self, batch: Batch) -> None:
        """Add the cells of a batch."""
        self.add(self.additions(batch))

    def result(self) -> Any:
        """What the cells seen so far say."""
        raise NotImplementedError

    def merge(self, other: Self) -> None:
        """Add what ``other`` has seen; ``other`` is left unchanged.

        Raises
        ------
        ValueError
            When ``other`` was built over other cells, groups or genes.
        """
        self.strata.check_same(other.strata)
        for name in self.config:
            mine, theirs = getattr(self, name), getattr(other, name)
            if not np.array_equal(mine, theirs):
                raise ValueError(
                    f"cannot merge {type(self).__name__} with {name}={mine!r} and {name}={theirs!r}"
                )
        for name, total in self.sums.items():
            self.joined_by.get(name, np.add)(total, other.sums[name], out=total)

    def state(self) -> dict[str, np.ndarray]:
        """Copies of all arrays, by name."""
        sums = {name: total.copy() for name, total in self.sums.items()}
        return {
            **self.strata.state(),
            **{name: np.array(getattr(self, name)) for name in self.config},
            **sums,
        }

    @classmethod
    def from_state(cls, state: Mapping[str, np.ndarray]) -> Self:
        """The accumulator that had this state."""
        config = {name: x if (x := state[name]).ndim else x.item() for name in cls.config}
        new = cls(Strata.from_state(state), **config)  # type: ignore[call-arg]
        for name, total in new.sums.items():
            total[...] = state[name]
        return new

    @property
    def nbytes(self) -> int:
        """Bytes of the state."""
        config = [x for name in self.config if isinstance(x := getattr(self, name), np.ndarray)]
        return sum(array.nbytes for array in (*self.sums.values(), *self.strata.state().values(), *config))

    def _strata_of(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """(stratum int64 [B], whether the cell is in one, bool [B])."""
        stratum = self.strata.of(batch.rows)
        return stratum, stratum >= 0

    def _group_of(self, batch: Batch) -> tuple[np.ndarray, np.ndarray]:
        """(group int64 [B], -1 for none; whether the cell is in one, bool [B])."""
        stratum, member = self._strata_of(batch)
        return np.where(member, self.strata.group[stratum] if self.strata.n else -1, -1), member


def ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """``top / bottom`` in float64, nan where ``bottom`` is not positive."""
    return np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom > 0)
