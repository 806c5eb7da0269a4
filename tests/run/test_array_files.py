"""Files of arrays: whole, or known not to be; written in one step wherever the writer dies."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from scfast.run import atomic
from scfast.run.array_files import DamagedFileError, read_arrays, write_arrays
from scfast.run.atomic import publish

ARRAYS = {"sums": np.linspace(0, 1, 7), "names": np.array(["a", "Zelle"]), "none": np.empty((0, 3), np.int32)}


@settings(max_examples=30, deadline=None)
@given(
    arrays=st.dictionaries(
        st.text("abcdefgh/_", min_size=1, max_size=8).filter(
            lambda name: name.strip("/") == name and "//" not in name
        ),
        hnp.arrays(
            st.sampled_from(["<f8", "<f4", "<i8", "|b1", "<U5"]), hnp.array_shapes(min_dims=0, min_side=0)
        ),
        max_size=4,
    )
)
def test_what_is_written_is_read(arrays, tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "x"
    write_arrays(path, arrays, {"n": len(arrays)})
    read, note = read_arrays(path)
    assert note == {"n": len(arrays)}
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array)
        assert read[name].dtype == array.dtype


def test_the_same_content_is_the_same_bytes(tmp_path):
    for name in "ab":
        write_arrays(tmp_path / name, ARRAYS, {"rows": [0, 4]})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_every_byte_that_is_missing_or_changed_is_noticed(tmp_path):
    path = tmp_path / "x"
    write_arrays(path, ARRAYS, {"rows": [0, 4]})
    whole = path.read_bytes()
    for length in range(0, len(whole), 3):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedFileError, match="x is damaged"):
            read_arrays(path)
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        try:
            read, note = read_arrays(path)
        except DamagedFileError:
            continue
        # A change that says the same, as of white space in the description.
        assert note == {"rows": [0, 4]}
        assert all(np.array_equal(read[name], ARRAYS[name]) for name in ARRAYS)


def test_objects_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"[Oo]bject"):
        write_arrays(tmp_path / "x", {"x": np.array([{}])}, {})
    assert not list(tmp_path.iterdir())


#: Writers of b"new", each killed one call to the system later; prints how each ended, and what was there then. They
#: are forked from one process, because a start of Python takes seconds.
WRITERS = """
import json, os, signal, sys
from pathlib import Path
from scfast.run import atomic

path, mode = Path(sys.argv[1]), sys.argv[2]

def write(left):
    def dying(call):
        def wrapped(*arguments, **options):
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)
        return wrapped

    for name in ("fsync", "link", "open", "close", "replace", "unlink"):
        setattr(atomic.os, name, dying(getattr(os, name)))

    def pieces():
        for byte in (b"n", b"e", b"w"):
            dying(lambda: None)()
            yield byte

    atomic.publish(path, pieces(), keep=mode == "keep")
    os._exit(0)

for step in range(20):
    if mode == "replace":
        path.write_bytes(b"old")
    else:
        path.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        write(step)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps([code, path.read_text() if path.exists() else None]))
    if code == 0:
        break
"""


@pytest.mark.parametrize("mode", ["keep", "replace"])
def test_a_writer_killed_at_any_step_leaves_all_or_nothing(mode, tmp_path):
    command = [sys.executable, "-c", WRITERS, str(tmp_path / "x"), mode]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    codes, contents = zip(*map(json.loads, done.stdout.splitlines()), strict=True)
    assert set(contents) <= {"old" if mode == "replace" else None, "new"}
    assert contents[-1] == "new"
    assert codes[-1] == 0
    assert codes[:-1] == (-9,) * (len(codes) - 1)
    assert len(codes) > 5


def test_a_full_disk_leaves_nothing_half(tmp_path):
    path = tmp_path / "x"
    publish(path, [b"old"])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    child = os.fork() if hasattr(os, "fork") else None
    if child == 0:
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        try:
            publish(path, [b"n" * 1000])
        except OSError as error:
            os._exit(7 if error.errno == errno.EFBIG else 8)
        os._exit(9)
    assert child is not None
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_file_system_without_links(tmp_path, monkeypatch):
    def link(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(atomic.os, "link", link)
    path = tmp_path / "x"
    assert publish(path, [b"first"], keep=True)
    assert not publish(path, [b"second"], keep=True)
    assert path.read_bytes() == b"first"


def test_an_error_of_the_disk_is_passed_on(tmp_path, monkeypatch):
    def link(*_):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(atomic.os, "link", link)
    with pytest.raises(OSError, match="broken"):
        publish(tmp_path / "x", [b"first"], keep=True)
    assert not list(tmp_path.iterdir())
