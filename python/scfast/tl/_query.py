"""Conditions on the columns of a table: comparisons, and, or, not, in; nothing that could run code."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}
#: What errors call the expressions that are refused; others go by the name of their type.
_REFUSED = {
    ast.Call: "a function call",
    ast.Attribute: "an attribute",
    ast.Subscript: "an index",
    ast.BinOp: "arithmetic",
    ast.Lambda: "a function",
    ast.NamedExpr: "an assignment",
    ast.JoinedStr: "a formatted string",
    ast.IfExp: "a conditional expression",
}
#: A string (left as it is), a `quoted column`, or one of pandas's spellings of and, or.
_PIECES = re.compile(r"""('(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")|`([^`]*)`|(&&?|\|\|?)""")


def where_rows(table: pd.DataFrame, condition: str) -> np.ndarray:
    """Bool [rows]: where ``condition`` holds, read as ``DataFrame.query`` reads it.

    Comparisons of columns with values or columns (``==``, ``!=``, ``<``, ..., chains too), ``in`` and
    ``not in`` lists of values, columns of booleans, joined by ``and``, ``or``, ``not``, ``&``, ``|``, ``~``.
    Columns whose names are no words stand in backticks. It is walked as a syntax tree: nothing is run.

    Raises
    ------
    ValueError
        When it cannot be read, holds anything else, or compares text with numbers.
    KeyError
        When a column does not exist.

    Examples
    --------
    >>> table = pd.DataFrame({"drug": ["Nutlin", "DMSO"], "dose": [2.5, 0.0]})
    >>> where_rows(table, "drug == 'Nutlin' and dose > 1")
    array([ True, False])
    """
    return _Condition(table, condition).rows()


class _Condition:
    def __init__(self, table: pd.DataFrame, text: str) -> None:
        self.table, self.text = table, text
        self.quoted: dict[str, str] = {}

    def rows(self) -> np.ndarray:
        try:
            tree = ast.parse(_PIECES.sub(self._piece, self.text).strip(), mode="eval")
            return self._mask(tree.body)
        except (SyntaxError, RecursionError, MemoryError) as error:
            reason = error.msg if isinstance(error, SyntaxError) else "it is nested too deeply"
            raise ValueError(
                f"where={self.text!r:.200} cannot be read ({reason}); write a condition such as"
                " \"drug == 'Nutlin' and dose > 1\""
            ) from None

    def _piece(self, match: re.Match[str]) -> str:
        text, column, joint = match.groups()
        if text is not None:
            return text
        if column is None:
            return " and " if joint[0] == "&" else " or "
        name = f"quoted_column_{len(self.quoted)}"
        self.quoted[name] = column
        return name

    def _mask(self, node: ast.expr) -> np.ndarray:
        if isinstance(node, ast.BoolOp):
            join = np.logical_and if isinstance(node.op, ast.And) else np.logical_or
            return join.reduce([self._mask(value) for value in node.values])
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.Invert)):
            return ~self._mask(node.operand)
        if isinstance(node, ast.Compare):
            operands = [node.left, *node.comparators]
            steps = zip(operands, node.ops, operands[1:], strict=False)
            return np.logical_and.reduce([self._compare(*step) for step in steps])
        if isinstance(node, ast.Name):
            values = self._column(node)
            if values.dtype == bool:
                return values
            raise ValueError(
                f"where={self.text!r}: {ast.unparse(node)} alone is no condition, as its values are not booleans;"
                " compare it with a value"
            )
        raise self._refusal(node)

    def _compare(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> np.ndarray:
        if isinstance(op, (ast.In, ast.NotIn)):
            if not isinstance(right, (ast.List, ast.Tuple, ast.Set)):
                raise self._refusal(right, "in needs a list of values, as in drug in ['DMSO', 'Nutlin']")
            choices = [self._value(element) for element in right.elts]
            found = [self._apply(left, operator.eq, right, self._value(left), choice) for choice in choices]
            inside = np.logical_or.reduce(found) if found else np.zeros(len(self.table), dtype=bool)
            return inside if isinstance(op, ast.In) else ~inside
        if type(op) not in _COMPARE:
            raise self._refusal(right, "is compares objects; use ==")
        return self._apply(left, _COMPARE[type(op)], right, self._value(left), self._value(right))

    def _apply(
        self, left: ast.expr, compare: Callable[[Any, Any], Any], right: ast.expr, a: Any, b: Any
    ) -> np.ndarray:
        kinds = [_is_number(value) for value in (a, b)]
        if kinds[0] != kinds[1]:
            text, number = (left, right) if kinds[1] else (right, left)
            raise ValueError(
                f"where={self.text!r} compares {ast.unparse(text)}, which is text, with {ast.unparse(number)}, a"
                " number: put quotes around values of text columns, and none around numbers"
            )
        try:
            return np.broadcast_to(np.asarray(compare(a, b), dtype=bool), len(self.table))
        except TypeError as error:
            raise ValueError(
                f"where={self.text!r}: {ast.unparse(left)} has missing values ({error})"
            ) from None

    def _value(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Name):
            return self._column(node)
        if isinstance(node, ast.Constant) and isinstance(node.value, (str, int, float)):
            return node.value
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            value = self._value(node.operand)
            if _is_number(value) and np.ndim(value) == 0:
                return -value
        raise self._refusal(node)

    def _column(self, node: ast.Name) -> np.ndarray:
        name = self.quoted.get(node.id, node.id)
        if name not in self.table:
            raise KeyError(f"where={self.text!r}: there is no column {name!r} in {list(self.table.columns)}")
        return pd.Series(np.asarray(self.table[name])).infer_objects().to_numpy()

    def _refusal(self, node: ast.expr, why: str | None = None) -> ValueError:
        what = _REFUSED.get(type(node), type(node).__name__)
        why = why or "only comparisons of columns with values, joined by and, or, not, in, are evaluated"
        return ValueError(
            f"where={self.text!r} is refused: it holds {what}, {ast.unparse(node)!r:.80}; {why}"
        )


def _is_number(value: Any) -> bool:
    return np.asarray(value).dtype.kind in "biuf"
