"""What a report holds, before it becomes a page: facts, figures, tables, and sections of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

#: Values that a table of the page holds at most; the files beside it hold all.
MAX_VALUES = 60_000
#: Significant digits of a value in the page.
DIGITS = 4


@dataclass(frozen=True)
class Figure:
    """A picture: all of it in ``uri`` (``data:...``), what it shows, what stands below it, pixels of its width."""

    uri: str
    alt: str
    caption: str
    width: int


@dataclass(frozen=True)
class Table:
    """Rows of a result, as many as a page can hold.

    Attributes
    ----------
    name
        Stem of the file that a reader downloads; unique within a report.
    title, about
        Its heading, and what its rows are.
    columns
        Names.
    numeric
        Whether each column holds numbers.
    values
        [columns][rows]: text, float, int, or None where there is no value.
    n_rows
        Rows of the result, of which ``values`` may hold the first ones.
    """

    name: str
    title: str
    about: str
    columns: list[str]
    numeric: list[bool]
    values: list[list[Any]]
    n_rows: int

    @property
    def n_shown(self) -> int:
        """Rows in the page."""
        return len(self.values[0]) if self.values else 0

    def rows(self, n: int) -> Iterator[list[str]]:
        """The first rows as a person reads them."""
        for row in list(zip(*self.values, strict=True))[:n]:
            yield [format_value(value) for value in row]

    @property
    def payload(self) -> dict[str, Any]:
        """What the script of the page sorts and searches."""
        return {
            "name": self.name,
            "columns": self.columns,
            "numeric": self.numeric,
            "values": self.values,
        }

    @classmethod
    def of(cls, name: str, title: str, about: str, frame: pd.DataFrame, by: str | None = None) -> Table:
        """Take a table of results, with its index where that has a name.

        Parameters
        ----------
        by
            Column of groups, from each of which the first rows are taken where there are too many.
        """
        if frame.index.name is not None:
            frame = frame.reset_index()
        most = max(1, MAX_VALUES // max(1, frame.shape[1]))
        shown = frame.head(most)
        if by in frame and len(frame) > most:
            groups = frame.groupby(by, observed=True, sort=False)
            shown = groups.head(max(1, most // max(1, groups.ngroups)))
        columns = [shown[column] for column in shown]
        return cls(
            name, title, about,
            list(map(str, frame.columns)),
            [_is_numeric(column) for column in columns],
            [list(map(plain_value, column)) for column in columns],
            len(frame),
        )  # fmt: skip


@dataclass(frozen=True)
class Bar:
    """A row of a group's digest: a name, its value with its standard error (in ``unit``), and what it must beat."""

    name: str
    value: float
    error: float
    beside: Mapping[str, float]
    width: float  # of the bar, 0 to 100
    unit: float = 1.0

    @property
    def text(self) -> tuple[str, str]:
        """Value and error, the error to two digits and the value to the same place; no error: an empty one.

        Examples
        --------
        >>> Bar("CD3E", 0.00528123, 0.000217, {}, 100.0, unit=1e-3).text, Bar("CD3E", 0.5, float("nan"), {}, 1.0).text
        (('5.28', '0.22'), ('0.5', ''))
        """
        value, error = self.value / self.unit, self.error / self.unit
        if not (error > 0 and math.isfinite(value)):
            return format_value(plain_value(value)), ""
        places = 1 - math.floor(math.log10(error))
        if not 0 <= places <= 8:
            return format_value(value), format_value(error)
        return f"{value:.{places}f}", f"{error:.{places}f}"


@dataclass(frozen=True)
class Digest:
    """The first rows of one analysis in one group."""

    title: str
    value: str
    columns: Sequence[str]
    bars: Sequence[Bar]
    facts: Mapping[str, str]
    unit: str = ""  # of the value, and of the columns that are ``scaled``
    scaled: Sequence[str] = ()


@dataclass(frozen=True)
class Section:
    """One analysis: what was asked, what its numbers mean, figures, tables."""

    key: str
    title: str
    meaning: str
    caveat: str
    asked: Mapping[str, str]
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    warnings: Sequence[str] = ()


@dataclass(frozen=True)
class Report:
    """All that a page holds.

    Attributes
    ----------
    title
        The heading.
    about
        Facts of the run by name, such as its command.
    versions
        Package -> version.
    warnings
        What a reader must know, and figures that could not be drawn.
    sections
        One for each analysis.
    groups
        Group -> what each analysis says of it in a few lines.
    """

    title: str
    about: Mapping[str, str]
    versions: Mapping[str, str]
    warnings: Sequence[str]
    sections: Sequence[Section]
    groups: Mapping[str, Sequence[Digest]] = field(default_factory=dict)


def _is_numeric(column: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)


def plain_value(value: Any) -> Any:
    """A value as JSON holds it: numbers to :data:`DIGITS` digits, None for nan, text for all else.

    Examples
    --------
    >>> import numpy as np
    >>> [plain_value(x) for x in (np.float32(0.123456), np.int64(7), float("nan"), "CD3E", True)]
    [0.1235, 7, None, 'CD3E', 'True']
    """
    if isinstance(value, (bool, np.bool_)):
        return str(bool(value))
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        if math.isinf(value):
            return str(value)
        return None if math.isnan(value) else float(f"{value:.{DIGITS}g}")
    return str(value)


def format_value(value: Any) -> str:
    """A value as a person reads it; the page's script writes numbers likewise.

    Examples
    --------
    >>> [format_value(x) for x in (12345, 0.00528, 3.1e-9, 1234.5, None, 0.0, "B cell")]
    ['12,345', '0.00528', '3.1e-9', '1,234', '–', '0', 'B cell']
    """
    if value is None:
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, int) or value == 0:
        return f"{int(value):,}"
    size = abs(value)
    if size >= 1e6 or size < 1e-4:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.3g}"
