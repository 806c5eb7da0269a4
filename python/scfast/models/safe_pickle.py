"""Reads pickled dictionaries without running anything: an opcode allow-list, and symbols in place of imports.

A pickle is a program. The interpreter here knows the opcodes that build plain values, and four global
names, which stay inert symbols: NumPy's scalar constructor under both of its names, NumPy's dtype, and the
codec call that Python 3 writes for bytes under protocols 0 to 2. Nothing is ever imported or called by name.
"""

from __future__ import annotations

import enum
import pickletools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scfast.models.text_files import shown

#: Largest file that is read; the published dictionaries are below 10 MB.
MAX_BYTES = 512 * 2**20
_HIGHEST_PROTOCOL = 5
#: NumPy scalars that may stand in a dictionary: plain numbers and booleans.
_SCALAR_DTYPES = frozenset({"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"})
_REMEDY = (
    "nothing in it was run. If you trust its origin, convert it to JSON or CSV where it was made "
    "(json.dump of {str: number or str}) and give that file instead"
)


class UnsafePickleError(ValueError):
    """A pickle asks for something other than plain values; the message names the opcode or the global."""


class _Symbol(enum.Enum):
    SCALAR = "numpy scalar"
    DTYPE = "numpy dtype"
    ENCODE = "codecs encode"
    MARK = "mark"


@dataclass
class _DType:
    """A dtype as pickled: built first without, then (by BUILD) with its byte order."""

    code: str
    order: str = "="


_GLOBALS = {
    ("numpy.core.multiarray", "scalar"): _Symbol.SCALAR,
    ("numpy._core.multiarray", "scalar"): _Symbol.SCALAR,
    ("numpy", "dtype"): _Symbol.DTYPE,
    ("_codecs", "encode"): _Symbol.ENCODE,
}


def load(path: str | Path) -> Any:
    """The plain value that a pickle file holds.

    Dictionaries, lists and tuples of str, bytes, bool, int, float, None and NumPy number scalars are read,
    under protocols 0 to 5.

    Raises
    ------
    UnsafePickleError
        When the file asks for any other opcode or global. Nothing has been run.
    ValueError
        When the file is cut short, damaged, larger than :data:`MAX_BYTES`, or no pickle.

    Examples
    --------
    >>> import pickle, tempfile
    >>> with tempfile.NamedTemporaryFile() as file:
    ...     pickle.dump({"ENSG00000000003": 2}, file.file)
    ...     file.flush()
    ...     load(file.name)
    {'ENSG00000000003': 2}
    """
    path = Path(path)
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"{path} has {size} bytes; dictionaries of up to {MAX_BYTES} bytes are read")
    return loads(path.read_bytes(), str(path))


def loads(data: bytes, name: str = "the pickle") -> Any:
    """As :func:`load`, from bytes; ``name`` is what errors call them.

    Examples
    --------
    >>> import pickle
    >>> loads(pickle.dumps({"GENE": 1.5}))
    {'GENE': 1.5}
    >>> loads(pickle.dumps(print), "tokens.pkl")
    Traceback (most recent call last):
    ...
    scfast.models.safe_pickle.UnsafePickleError: tokens.pkl asks for the global 'builtins.print' ...
    """
    if data.startswith(b"version https://git-lfs"):
        raise ValueError(f"{name} is a Git LFS pointer, not the file itself: fetch it with `git lfs pull`")
    with warnings.catch_warnings():
        # Escapes that are none, in the text of old protocols, are damage; codecs only warns of them.
        warnings.simplefilter("error", DeprecationWarning)
        return _run(data, name)


def _run(data: bytes, name: str) -> Any:
    machine = _Machine(name, memo_limit=len(data))
    operations = pickletools.genops(data)
    while True:
        try:
            opcode, argument, position = next(operations)
        except StopIteration:
            raise ValueError(f"{name} is cut short: the pickle ends without STOP") from None
        except (ValueError, OverflowError, DeprecationWarning) as error:
            raise ValueError(f"{name} is no pickle, or cut short or damaged: {error}") from None
        if opcode.name == "STOP":
            return machine.result()
        handler = _HANDLERS.get(opcode.name)
        if handler is None:
            what = f" of {argument!r:.80}" if argument is not None else ""
            raise UnsafePickleError(
                f"{name} uses the opcode {opcode.name}{what} (byte {position}); {_REMEDY}"
            )
        try:
            handler(machine, argument)
        except UnsafePickleError as error:
            raise UnsafePickleError(f"{name} {error} ({opcode.name} at byte {position}); {_REMEDY}") from None
        except (IndexError, KeyError, _DamagedError) as error:
            raise ValueError(
                f"{name} is no pickle, or damaged: {opcode.name} at byte {position}: {error}"
            ) from None


class _DamagedError(Exception):
    """The program makes no sense, without being a threat."""


class _Machine:
    """The stack and memo of a pickle program whose only effects are on them."""

    def __init__(self, name: str, memo_limit: int) -> None:
        self.name = name
        self.memo_limit = memo_limit
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def result(self) -> Any:
        if len(self.stack) != 1:
            raise ValueError(
                f"{self.name} is damaged: STOP with {len(self.stack)} values on the stack, not 1"
            )
        value = self.stack[0]
        for part in _parts(value):
            if isinstance(part, (_Symbol, _DType)):
                raise UnsafePickleError(f"{self.name} holds a {part}, not a plain value; {_REMEDY}")
        return value

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is _Symbol.MARK:
            raise _DamagedError("the stack is empty")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        stack = self.stack
        for place in range(len(stack) - 1, -1, -1):
            if stack[place] is _Symbol.MARK:
                values = stack[place + 1 :]
                del stack[place:]
                return values
        raise _DamagedError("there is no mark on the stack")

    def top(self, kind: type) -> Any:
        if not self.stack or type(self.stack[-1]) is not kind:
            got = type(self.stack[-1]).__name__ if self.stack else "nothing"
            raise _DamagedError(f"expected a {kind.__name__} on the stack, got {got}")
        return self.stack[-1]

    def remember(self, index: int) -> None:
        # An honest pickler numbers its memo from 0, so no index passes the file's own length.
        if not 0 <= index <= self.memo_limit:
            raise _DamagedError(f"memo index {index} is out of bounds")
        if not self.stack:
            raise _DamagedError("the stack is empty")
        self.memo[index] = self.stack[-1]

    def recall(self, index: int) -> None:
        if index not in self.memo:
            raise _DamagedError(f"memo index {index} was never set")
        self.stack.append(self.memo[index])

    def append(self, values: list[Any]) -> None:
        self.top(list).extend(values)

    def set_items(self, flat: list[Any]) -> None:
        target = self.top(dict)
        _fill(target, flat)

    def import_symbol(self, module: Any, name: Any) -> None:
        symbol = _GLOBALS.get((module, name)) if isinstance(module, str) and isinstance(name, str) else None
        if symbol is None:
            raise UnsafePickleError(f"asks for the global '{_named(module)}.{_named(name)}'")
        self.stack.append(symbol)

    def reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        if type(arguments) is not tuple:
            raise _DamagedError(f"arguments must be a tuple, got {type(arguments).__name__}")
        if function is _Symbol.SCALAR:
            self.push(_scalar(arguments))
        elif function is _Symbol.DTYPE:
            self.push(_dtype(arguments))
        elif function is _Symbol.ENCODE:
            self.push(_latin1(arguments))
        else:
            raise UnsafePickleError(f"calls a {type(function).__name__}")

    def build(self) -> None:
        state = self.pop()
        if not self.stack or type(self.stack[-1]) is not _DType:
            got = type(self.stack[-1]).__name__ if self.stack else "nothing"
            raise UnsafePickleError(f"sets the state of a {got}")
        # numpy.dtype.__setstate__: (version, order, subarray, names, fields, ...); numbers have no more.
        if type(state) is not tuple or len(state) < 5 or any(part is not None for part in state[2:5]):
            raise UnsafePickleError("sets the state of a structured dtype")
        if type(state[1]) is not str or state[1] not in ("<", ">", "|", "="):
            raise _DamagedError("the dtype's byte order makes no sense")
        self.stack[-1].order = state[1]


def _parts(value: Any) -> Iterator[Any]:
    """The value, and all that is in it, each once: containers may be shared, or hold themselves."""
    waiting, seen = [value], set()
    while waiting:
        part = waiting.pop()
        yield part
        if type(part) in (dict, list, tuple) and id(part) not in seen:
            seen.add(id(part))
            waiting.extend(part.values() if type(part) is dict else part)  # keys are plain: see _fill


def _named(part: Any) -> str:
    """Half of a global's name, which need not be text, and may be of any size when printed."""
    return part[:80] if isinstance(part, str) else shown(part)


def _fill(target: dict[Any, Any], flat: list[Any]) -> None:
    if len(flat) % 2:
        raise _DamagedError("a dictionary key has no value")
    for key, value in zip(flat[::2], flat[1::2], strict=True):
        # Tuples as keys could be nested so that hashing them never ends; no dictionary here has any.
        if type(key) not in (str, int, bytes):
            raise UnsafePickleError(f"has a dictionary key of type {type(key).__name__}")
        target[key] = value


def _scalar(arguments: tuple[Any, ...]) -> Any:
    if len(arguments) != 2 or type(arguments[0]) is not _DType or type(arguments[1]) is not bytes:
        raise UnsafePickleError("makes a NumPy scalar of something else than (dtype, bytes)")
    dtype = np.dtype(arguments[0].code).newbyteorder(arguments[0].order)  # type: ignore[arg-type]
    if len(arguments[1]) != dtype.itemsize:
        raise _DamagedError(f"{len(arguments[1])} bytes for a {dtype} scalar of {dtype.itemsize}")
    return np.frombuffer(arguments[1], dtype)[0]


def _dtype(arguments: tuple[Any, ...]) -> _DType:
    if not arguments or type(arguments[0]) is not str or arguments[0] not in _SCALAR_DTYPES:
        shown = (
            repr(arguments[0])[:20]
            if arguments and type(arguments[0]) is str
            else "something else than a name"
        )
        raise UnsafePickleError(f"asks for the NumPy dtype {shown}")
    return _DType(arguments[0])


def _latin1(arguments: tuple[Any, ...]) -> bytes:
    if len(arguments) != 2 or type(arguments[0]) is not str or arguments[1] not in ("latin1", "latin-1"):
        raise UnsafePickleError("calls a codec other than latin1")
    try:
        return arguments[0].encode("latin1")
    except UnicodeEncodeError as error:
        raise _DamagedError(str(error)) from None


def _to_tuple(size: int) -> Callable[[_Machine, Any], None]:
    def handler(machine: _Machine, _: Any) -> None:
        values = [machine.pop() for _ in range(size)]
        machine.push(tuple(reversed(values)))

    return handler


def _protocol(machine: _Machine, version: int) -> None:
    if version > _HIGHEST_PROTOCOL:
        raise _DamagedError(f"protocol {version} does not exist")


def _pop(machine: _Machine, _: Any) -> None:
    machine.pop()


def _pop_mark(machine: _Machine, _: Any) -> None:
    machine.pop_to_mark()


def _set_item(machine: _Machine, _: Any) -> None:
    value, key = machine.pop(), machine.pop()
    machine.set_items([key, value])


def _new_dict(machine: _Machine, _: Any) -> None:
    items: dict[Any, Any] = {}
    _fill(items, machine.pop_to_mark())
    machine.push(items)


def _append(machine: _Machine, _: Any) -> None:
    value = machine.pop()
    machine.append([value])


def _stack_global(machine: _Machine, _: Any) -> None:
    name, module = machine.pop(), machine.pop()
    machine.import_symbol(module, name)


def _global(machine: _Machine, argument: str) -> None:
    module, _, name = argument.partition(" ")  # genops joins the two lines by a space
    machine.import_symbol(module, name)


def _constant(make: Callable[[], Any]) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.push(make())


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "MARK": lambda: _Symbol.MARK,
}
_LITERALS = (
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
)

_HANDLERS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _protocol,
    "FRAME": lambda machine, length: None,  # a hint for buffered readers; genops reads on without it
    "POP": _pop,
    "POP_MARK": _pop_mark,
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_to_mark())),
    "TUPLE1": _to_tuple(1),
    "TUPLE2": _to_tuple(2),
    "TUPLE3": _to_tuple(3),
    "LIST": lambda machine, _: machine.push(machine.pop_to_mark()),
    "APPEND": _append,
    "APPENDS": lambda machine, _: machine.append(machine.pop_to_mark()),
    "DICT": _new_dict,
    "SETITEM": _set_item,
    "SETITEMS": lambda machine, _: machine.set_items(machine.pop_to_mark()),
    "PUT": lambda machine, index: machine.remember(int(index)),
    "BINPUT": lambda machine, index: machine.remember(index),
    "LONG_BINPUT": lambda machine, index: machine.remember(index),
    "MEMOIZE": lambda machine, _: machine.remember(len(machine.memo)),
    "GET": lambda machine, index: machine.recall(int(index)),
    "BINGET": lambda machine, index: machine.recall(index),
    "LONG_BINGET": lambda machine, index: machine.recall(index),
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": lambda machine, _: machine.reduce(),
    "BUILD": lambda machine, _: machine.build(),
}
_HANDLERS |= dict.fromkeys(_LITERALS, _Machine.push)
_HANDLERS |= {name: _constant(make) for name, make in _CONSTANTS.items()}
