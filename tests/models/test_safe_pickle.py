"""Pickles are read as data: plain dictionaries come back, and nothing ever runs."""

from __future__ import annotations

import collections
import io
import os
import pickle
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scfast.models import safe_pickle
from scfast.models.safe_pickle import UnsafePickleError

PROTOCOLS = range(6)
NUMBERS = st.one_of(
    st.integers(-(2**80), 2**80),
    st.booleans(),
    st.none(),
    st.floats(allow_nan=False),
    st.floats(allow_nan=False).map(np.float64),
    st.floats(allow_nan=False, width=32).map(np.float32),
    st.integers(-(2**63), 2**63 - 1).map(np.int64),
    st.text(),
)
MARKER = "SCFAST_PICKLE_RAN"


class _Hostile:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@given(st.dictionaries(st.text(), NUMBERS), st.sampled_from(PROTOCOLS))
def test_plain_dictionaries_come_back(table: dict[str, Any], protocol: int) -> None:
    got = safe_pickle.loads(pickle.dumps(table, protocol))
    assert got == table
    assert [type(value) for value in got.values()] == [type(value) for value in table.values()]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_containers_and_shared_values_come_back(protocol: int) -> None:
    shared = ["a", (1, 2, 3, 4), b"\x00\xff", ()]
    value = {
        "x": shared,
        "y": shared,
        "z": {"n": np.float64(0.1), "m": np.float64(0.2)},
        "e": [],
        "é": "日本",
    }
    assert safe_pickle.loads(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("order", ["<f8", ">f8", "<f4", ">i4"])
def test_byte_order_of_scalars_is_kept(protocol: int, order: str) -> None:
    from numpy._core.multiarray import scalar

    value = _Hostile(scalar, np.dtype(order), np.array(7, order).tobytes())
    assert safe_pickle.loads(pickle.dumps([value], protocol)) == [7]


def test_both_names_of_numpys_scalar() -> None:
    data = pickle.dumps({"a": np.float64(1.5)}, 2)
    assert b"numpy._core.multiarray" in data
    old = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert safe_pickle.loads(old) == {"a": 1.5}


HOSTILE = {
    "os.system": _Hostile(os.system, f"touch {MARKER}"),
    "eval": _Hostile(eval, f"open({MARKER!r}, 'w')"),
    "open": _Hostile(open, MARKER, "w"),
    "setenv": _Hostile(os.putenv, MARKER, "1"),
    "class": collections.OrderedDict(a=1),
    "array": np.arange(3.0),
    "object": Path("x"),
    "function": print,
    "set": {1, 2},
    "nested": {"a": {"b": [_Hostile(os.system, f"touch {MARKER}")]}},
    "getattr": _Hostile(getattr, "a", "upper"),
    "object dtype": np.dtype("O"),
    "structured dtype": np.dtype([("a", "f8")]),
    "float key": {1.5: 1},
    "tuple key": {(1, 2): 1},
    "complex": 1j,
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_do_nothing(
    name: str, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "token_dictionary.pkl"
    file.write_bytes(pickle.dumps(HOSTILE[name], protocol))
    with pytest.raises(
        UnsafePickleError, match=r"token_dictionary\.pkl .*nothing in it was run.*JSON or CSV"
    ):
        safe_pickle.load(file)
    assert [path.name for path in tmp_path.iterdir()] == ["token_dictionary.pkl"]
    assert MARKER not in os.environ


@pytest.mark.parametrize(
    ("program", "named"),
    [
        (b"cos\nsystem\n(S'touch x'\ntR.", "os.system"),
        (b"(S'touch x'\nios\nsystem\n.", "INST"),
        (b"(cos\nsystem\nS'touch x'\no.", "os.system"),
        (b"(S'a'\nS'touch x'\no.", "OBJ"),
        (b"\x80\x02\x82\x01.", "EXT1"),
        (b"\x80\x02\x83\x01\x00.", "EXT2"),
        (b"\x80\x02\x84\x01\x00\x00\x00.", "EXT4"),
        (b"Pname\n.", "PERSID"),
        (b"\x80\x02K\x01Q.", "BINPERSID"),
        (b"\x80\x02K\x01)\x81.", "NEWOBJ"),
        (b"\x80\x04K\x01)}\x92.", "NEWOBJ_EX"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "os.system"),
        (b"\x80\x04K\x01K\x02\x93.", "global '1.2'"),
        (b"\x80\x02}}b.", "sets the state of a dict"),
        (b"\x80\x02K\x01)R.", "calls a int"),
        (b"\x80\x05\x97.", "NEXT_BUFFER"),
        (b"\x80\x02cnumpy.core.multiarray\nscalar\n.", "not a plain value"),
        (b"\x80\x02cnumpy.core.multiarray\nscalar\n)R.", "something else than"),
        (b"\x80\x02cnumpy\ndtype\nU\x02O8\x85R.", "dtype 'O8'"),
        (b"\x80\x02cnumpy\nload\n.", "numpy.load"),
        (b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00zip\x86R.", "codec"),
    ],
)
def test_every_other_opcode_is_refused_by_name(program: bytes, named: str) -> None:
    with pytest.raises(UnsafePickleError) as refused:
        safe_pickle.loads(program, "medians.pkl")
    assert named in str(refused.value)
    assert "medians.pkl" in str(refused.value)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_file_cut_short_is_an_error_that_says_so(protocol: int) -> None:
    data = pickle.dumps({f"ENSG{n:011d}": np.float64(n) for n in range(3)}, protocol)
    for end in range(len(data)):
        with pytest.raises(ValueError, match=r"tokens\.pkl is") as refused:
            safe_pickle.loads(data[:end], "tokens.pkl")
        assert not isinstance(refused.value, UnsafePickleError)


@given(st.binary(max_size=200))
def test_any_bytes_give_a_value_or_a_clear_error(data: bytes) -> None:
    before = set(sys.modules)
    _read_or_named_error(data)
    assert set(sys.modules) == before


@given(st.data())
def test_flipped_bytes_give_a_value_or_a_clear_error(data: st.DataObject) -> None:
    good = bytearray(
        pickle.dumps({"a": 1, "b": np.float64(2), "c": "x"}, data.draw(st.sampled_from(PROTOCOLS)))
    )
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    _read_or_named_error(bytes(good))


def _read_or_named_error(data: bytes) -> None:
    message = "x.pkl "
    try:
        safe_pickle.loads(data, "x.pkl")
    except ValueError as error:
        message = str(error)
    assert message.startswith("x.pkl ")


def test_memo_indices_and_sizes_are_bounded() -> None:
    with pytest.raises(ValueError, match="memo index 4294967295 is out of bounds"):
        safe_pickle.loads(b"\x80\x02K\x01r\xff\xff\xff\xff.", "x")
    with pytest.raises(ValueError, match=r"is no pickle, or .*damaged"):
        safe_pickle.loads(b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"a.", "x")
    with pytest.raises(ValueError, match="memo index 7 was never set"):
        safe_pickle.loads(b"\x80\x02h\x07.", "x")


def test_other_files_are_named_for_what_they_are(tmp_path: Path) -> None:
    pointer = tmp_path / "token_dictionary.pkl"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 788424\n")
    with pytest.raises(ValueError, match="git lfs pull"):
        safe_pickle.load(pointer)
    with pytest.raises(ValueError, match=r"is no pickle, or .*damaged"):
        safe_pickle.loads(b"token,token_id\n", "x")
    with pytest.raises(ValueError, match="protocol 9"):
        safe_pickle.loads(b"\x80\x09N.", "x")


def test_pickle_is_never_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    data = pickle.dumps({"a": np.float32(1)})

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("pickle was used")

    for name in ("load", "loads", "Unpickler", "_Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    assert safe_pickle.loads(data) == {"a": 1}
    assert safe_pickle.load.__module__ == "scfast.models.safe_pickle"
    assert io.BytesIO(data).read() == data
