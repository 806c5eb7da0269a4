"""Columns of obs, read one by one, and the cells that a condition on them selects."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

#: Rows looked at together.
ROWS_AT_ONCE = 2**18
#: The longest condition.
MAX_CHARACTERS = 10_000
#: What a condition may be made of: comparisons, and, or, not, sums and products of numbers, lists.
_ALLOWED = (
    ast.Expression, ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.Invert, ast.USub, ast.UAdd, ast.Compare,
    ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.In, ast.NotIn, ast.BinOp, ast.Add, ast.Sub, ast.Mult,
    ast.Div, ast.BitAnd, ast.BitOr, ast.Name, ast.Load, ast.Constant, ast.List, ast.Tuple,
)  # fmt: skip
_ARITHMETIC = (ast.Add, ast.Sub, ast.Mult, ast.Div)
#: A text in quotes, which stays, or a name between backticks.
_QUOTED = re.compile(r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")|`([^`]+)`""")
#: What is not allowed, as a user calls it.
_CALLED = {
    ast.Call: "a call", ast.Attribute: "an attribute", ast.Subscript: "an index", ast.Lambda: "a function",
    ast.Pow: "a power", ast.NamedExpr: "an assignment", ast.JoinedStr: "a formatted text",
}  # fmt: skip


def read_columns(obs: Any, names: Sequence[str]) -> pd.DataFrame:
    """Columns of a data frame on disk, its rows numbered; texts become categories.

    Parameters
    ----------
    obs
        Its group in an h5py or zarr file.
    names
        Which.
    """
    import anndata as ad

    if not hasattr(obs, "keys"):  # the frames of old h5ad files are one array of records
        return ad.io.read_elem(obs)[list(names)].reset_index(drop=True)
    return pd.DataFrame({name: _read_column(obs, name) for name in names}, index=pd.RangeIndex(n_rows(obs)))


def column_names(obs: Any) -> list[str]:
    """Names of the columns of a data frame on disk."""
    if not hasattr(obs, "keys"):
        return [str(name) for name in obs.dtype.names[1:]]
    return [str(name) for name in obs.attrs["column-order"]]


def n_rows(obs: Any) -> int:
    """Rows of a data frame on disk."""
    return int((obs[obs.attrs["_index"]] if hasattr(obs, "keys") else obs).shape[0])


def _read_column(obs: Any, name: str) -> Any:
    import anndata as ad

    column = obs[name]
    if "__categories" in obs and "categories" in column.attrs:  # categories as old files have them
        categories = obs[column.attrs["categories"]]
        return pd.Categorical.from_codes(column[:], ad.io.read_elem(categories))
    if column.attrs.get("encoding-type") != "string-array":
        return ad.io.read_elem(column)
    texts = column.asstr() if hasattr(column, "asstr") else column
    codes, found = np.empty(column.shape[0], dtype=np.int32), dict[str, int]()
    for start in range(0, len(codes), ROWS_AT_ONCE):
        part, values = pd.factorize(np.asarray(texts[start : start + ROWS_AT_ONCE], dtype=object))
        numbers = np.array([found.setdefault(str(value), len(found)) for value in values], dtype=np.int32)
        codes[start : start + len(part)] = numbers[part]
    order = sorted(found)
    place = np.empty(len(order), dtype=np.int32)
    place[[found[text] for text in order]] = np.arange(len(order))
    return pd.Categorical.from_codes(place[codes], pd.Index(order, dtype=object))


class Condition:
    """A condition on columns, as ``pandas.DataFrame.query`` reads it, in which nothing can be called.

    Parameters
    ----------
    text
        Comparisons of columns with numbers, texts and lists, joined by ``and``, ``or`` and ``not``, such as
        ``"cell_type == 'B' and n_genes > 500"`` or ``"donor in ['D1', 'D2']"``; a name that is no word stands between
        backticks.
    columns
        That there are.

    Attributes
    ----------
    columns
        Those that it needs.

    Raises
    ------
    ValueError
        When it is none, or holds anything else, such as a call, an attribute, ``@``: the message says what.
    KeyError
        When a column is not there.

    Examples
    --------
    >>> frame = pd.DataFrame({"cell type": ["B", "T", "B"], "genes": [900, 800, 100]})
    >>> Condition("`cell type` == 'B' and genes > 500", list(frame)).of(frame).tolist()
    [True, False, False]
    >>> Condition("genes.sum() > 1", list(frame))
    Traceback (most recent call last):
    ValueError: where="genes.sum() > 1" holds a call: only comparisons of columns with numbers, texts and lists are ...
    """

    def __init__(self, text: str, columns: Sequence[str]) -> None:
        self._text = text
        if not isinstance(text, str) or len(text) > MAX_CHARACTERS:
            raise ValueError(f"where must be a text of at most {MAX_CHARACTERS:,} characters")
        quoted: list[str] = []

        def number(match: re.Match[str]) -> str:
            if match[1] is not None:
                return match[1]
            quoted.append(match[2])
            return f" backtick_{len(quoted) - 1} "

        plain = _QUOTED.sub(number, text)
        if "@" in _QUOTED.sub("", text):
            raise self._error("'@'")
        try:
            tree = ast.parse(plain.strip(), mode="eval")
            self._check(tree)
            self._names: dict[str, str] = {}  # column -> what it is called here
            for node in ast.walk(tree):
                if isinstance(node, ast.Name):
                    name = node.id
                    if match := re.fullmatch(r"backtick_(\d+)", name):
                        name = quoted[int(match[1])] if int(match[1]) < len(quoted) else name
                    node.id = self._names.setdefault(name, f"column_{len(self._names)}")
            self._code = ast.unparse(tree)
        except (SyntaxError, RecursionError, MemoryError) as error:
            reason = getattr(error, "msg", None) or "too deep"
            raise ValueError(
                f"where={text!r} is no condition ({reason}), such as \"cell_type == 'B'\""
            ) from None
        absent = [name for name in self._names if name not in columns]
        if absent:
            raise KeyError(
                f"where={text!r}: obs has no column {', '.join(absent)}; there are {list(columns)}"
            )
        self.columns = list(self._names)

    def _error(self, what: str) -> ValueError:
        return ValueError(
            f'where="{self._text}" holds {what}: only comparisons of columns with numbers, texts and lists are allowed,'
            " joined by and, or, not"
        )

    def _check(self, tree: ast.AST) -> None:
        for node in ast.walk(tree):
            if not isinstance(node, _ALLOWED):
                called = _CALLED.get(type(node), type(node).__name__)
                raise self._error(called)
            if isinstance(node, ast.Constant):
                is_number = isinstance(node.value, (bool, int, float)) and abs(node.value) < 2**63
                if not (is_number or isinstance(node.value, str)):
                    raise self._error(repr(node.value)[:40])
            if isinstance(node, ast.BinOp) and isinstance(node.op, _ARITHMETIC):
                texts = (x for x in ast.walk(node) if isinstance(x, (ast.List, ast.Tuple, ast.Constant)))
                if any(not isinstance(getattr(x, "value", None), (bool, int, float)) for x in texts):
                    raise self._error("a sum or product of texts or lists")

    def of(self, frame: pd.DataFrame) -> np.ndarray:
        """Whether it holds, bool [rows]; a missing value makes it not.

        Raises
        ------
        ValueError
            When values cannot be compared so, or it says something else than yes or no.
        """
        called = frame[self.columns].rename(columns=self._names)
        holds = np.zeros(len(frame), dtype=bool)
        for start in range(0, len(frame), ROWS_AT_ONCE):
            part = called.iloc[start : start + ROWS_AT_ONCE]
            try:
                said = part.eval(self._code, engine="python", local_dict={}, global_dict={})
            except Exception as error:  # whatever pandas makes of values that cannot be compared
                raise ValueError(f"where={self._text!r} cannot be evaluated: {error}") from error
            if not isinstance(said, pd.Series) or said.dtype not in (bool, "boolean"):
                raise ValueError(
                    f"where={self._text!r} says neither yes nor no of a cell; compare a column with a value"
                )
            holds[start : start + len(part)] = said.fillna(False).to_numpy(dtype=bool)
        return holds

    def rows(self, frame: pd.DataFrame) -> np.ndarray:
        """int64: the rows where it holds; an error where there are none."""
        rows = np.flatnonzero(self.of(frame))
        if not len(rows):
            seen = {name: pd.unique(frame[name].dropna())[:5].tolist() for name in self.columns}
            raise ValueError(f"where={self._text!r} holds for none of {len(frame):,} cells; there are {seen}")
        return rows
