"""Malicious pickles are refused by their name, by every reader of such files, and nothing of them runs."""

from __future__ import annotations

import io
import os
import pickle
import sys
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scfast.models import checkpoint, dictionaries, safe_pickle
from scfast.models.safe_pickle import UnsafePickleError
from scfast.run.array_files import DamagedFileError, read_arrays
from tests.fuzz.run_folder import whole
from tests.models.malicious import ENDLESS, HOSTILE, MARKER, PLAIN, SYSTEM

#: Events of the interpreter that reading a dictionary has no need of.
FORBIDDEN = (
    "os.",
    "subprocess.",
    "exec",
    "compile",
    "import",
    "socket.",
    "ctypes.",
    "pickle.",
    "shutil.",
    "urllib.",
)
MEGABYTES, SECONDS = 64, 10
_SEEN: list[tuple[str, Any]] | None = None


def _watch(event: str, arguments: Any) -> None:
    if _SEEN is not None and event.startswith(FORBIDDEN):
        _SEEN.append((event, arguments))


sys.addaudithook(_watch)  # cannot be taken away; without a list it does nothing


def loads(data: bytes) -> Any:
    """Read, while the interpreter tells of every call, import and process: there is none."""
    global _SEEN
    with pytest.raises(UnsafePickleError):
        safe_pickle.loads(SYSTEM + b".")  # what is imported once is imported now
    before = set(sys.modules)
    _SEEN = seen = []
    try:
        return safe_pickle.loads(data, "x.pkl")
    finally:
        _SEEN = None
        assert seen == []
        assert set(sys.modules) == before


def test_there_are_fifty() -> None:
    assert len(set(HOSTILE.values())) == len(HOSTILE) >= 50


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnsafePickleError, match=r"^x\.pkl .*nothing in it was run") as refused:
        loads(HOSTILE[name])
    assert len(str(refused.value)) < 600
    assert MARKER not in os.environ
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ENDLESS)
def test_endless_pickles_end(name: str) -> None:
    started = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"^x\.pkl "):
            loads(ENDLESS[name])
        assert tracemalloc.get_traced_memory()[1] < MEGABYTES * 2**20
    finally:
        tracemalloc.stop()
    assert time.process_time() - started < SECONDS


def test_what_lies_behind_the_first_pickle_is_not_read() -> None:
    assert loads(PLAIN + SYSTEM + b".") == {"ENSG00000000003": 2}


def test_a_checkpoint_with_a_hostile_dictionary_is_refused(tmp_path: Path) -> None:
    (tmp_path / "token_dictionary.pkl").write_bytes(HOSTILE["a payload after the dictionary"])
    (tmp_path / "gene_median_dictionary.json").write_text("{}")
    with pytest.raises(UnsafePickleError, match=r"token_dictionary\.pkl asks for the global 'os\.system'"):
        dictionaries.read(tmp_path)


def saved(value: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def zipped(program: bytes, name: str = "archive/data.pkl") -> bytes:
    """A file of torch.save whose pickle is another."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as members:
        members.writestr(name, program)
        members.writestr("archive/version", "3\n")
    return file.getvalue()


class Runs:
    def __reduce__(self) -> Any:
        return os.system, (f"touch {MARKER}",)


WEIGHTS: dict[str, Callable[[], bytes]] = {
    "torch.save of what runs": lambda: saved({"a": Runs()}),
    "torch.save of before 1.6": lambda: saved({"a": Runs()}, _use_new_zipfile_serialization=False),
    "a module": lambda: saved(torch.nn.Linear(2, 2)),
    "a zip with a payload": lambda: zipped(SYSTEM + b"."),
    "a zip with INST": lambda: zipped(HOSTILE["INST"]),
    "a zip with eval": lambda: zipped(HOSTILE["REDUCE of builtins.eval"]),
    "a zip with a path": lambda: zipped(PLAIN, f"../{MARKER}"),
    "a pickle alone": lambda: pickle.dumps(Runs(), 2),
    "a payload alone": lambda: SYSTEM + b".",
    "an array of objects": lambda: pickle.dumps(np.array([Runs()], dtype=object), 2),
}


@pytest.mark.parametrize("suffix", ["bin", "pt"])
@pytest.mark.parametrize("name", WEIGHTS)
def test_hostile_weights_are_refused(
    name: str, suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    path = Path(f"weights.{suffix}").absolute()
    path.write_bytes(WEIGHTS[name]())
    with pytest.raises(
        ValueError, match=r"refuses to read it without running code|is cut short or no torch file"
    ):
        checkpoint.read_state_dict(path)
    assert not list(tmp_path.rglob(MARKER))


@pytest.mark.filterwarnings("ignore:.*metadata")
def test_arrays_of_objects_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    memory = io.BytesIO()
    np.savez(memory, x=np.array([Runs()], dtype=object))
    for body in (memory.getvalue(), pickle.dumps(Runs()), memory.getvalue()[:40]):
        path = tmp_path / "shard"
        path.write_bytes(whole(body, "{}"))
        with pytest.raises(DamagedFileError, match="shard is damaged: it holds no arrays"):
            read_arrays(path)
    assert not list(tmp_path.glob(MARKER))


def test_compressed_arrays_are_refused(tmp_path: Path) -> None:
    """A thousandth of their size could fill the memory."""
    memory = io.BytesIO()
    np.savez_compressed(memory, x=np.zeros(10**6))
    (tmp_path / "shard").write_bytes(whole(memory.getvalue(), "{}"))
    with pytest.raises(DamagedFileError, match="its arrays are compressed"):
        read_arrays(tmp_path / "shard")
