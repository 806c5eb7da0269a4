"""A run's folder: its manifest, its attempts, its shards."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import numpy as np

from scfast.run.array_files import DamagedFileError, read_arrays
from scfast.run.ledger import Ledger, standing
from tests.fuzz.harness import Way

MANIFEST = {"shards": 2, "cells": 23, "model": "toy", "seed": 0, "plan": "0f", "weights": "1e"}
NOTE = {"plan": "0f", "shard": 0, "cuts": [3], "blocks": [[0, 4]]}


def in_bytes(**arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


BODY = in_bytes(
    rows=np.arange(3), **{"scores/sum": np.linspace(0, 1, 4), "cells/names": np.array(["a", "b"])}
)


def whole(body: bytes, note: str) -> bytes:
    """A file of arrays whose checksum is right, whatever it holds."""
    digest = hashlib.sha256(note.encode("utf-8", "surrogatepass") + body).hexdigest()
    head = {"bytes": len(body), "note": note, "sha256": digest}
    return b"scfast arrays 1\n" + json.dumps(head).encode() + b"\n" + body


def read_manifest(path: Path) -> None:
    json.dumps([each.as_dict() for each in standing(path.parent.parent, verify=True)])
    Ledger.open(path.parent, MANIFEST, MANIFEST["shards"])


def read_attempts(path: Path) -> None:
    (path.parent / "run.json").write_text(json.dumps(MANIFEST))
    (path.parent / "shard-000001").write_bytes(b"")
    json.dumps([each.as_dict() for each in standing(path.parent.parent, verify=True)])


def read_shard(path: Path) -> None:
    Ledger(path.parent, 2).load(0)


def read_body(path: Path) -> None:
    path.write_bytes(whole(path.read_bytes(), json.dumps(NOTE)))
    read_arrays(path)


def read_note(path: Path) -> None:
    path.write_bytes(whole(BODY, path.read_bytes().decode("utf-8", "surrogateescape")))
    read_shard(path)


DAMAGE = (DamagedFileError,)
WAYS = [
    # so many shards that nobody may count them
    Way("1-run/run.json", read_manifest, [json.dumps(MANIFEST).encode(), b'{"shards": 999999999999}']),
    Way(
        "1-run/attempts-000000",
        read_attempts,
        [b"begun 1a\nfailed 1a ValueError: no\nbegun 2b\nstopped 2b\n", b"failed \n"],
        (),
    ),
    Way("1-run/shard-000000", read_shard, [whole(BODY, json.dumps(NOTE))], DAMAGE),
    Way("1-run/arrays", read_body, [BODY, in_bytes(), in_bytes(x=np.zeros((0, 3), np.float32))], DAMAGE),
    Way("1-run/shard-000000", read_note, [json.dumps(NOTE).encode()], DAMAGE),
]
WORDS = [
    *(
        b'"shards": ',
        b'"cells": ',
        b'"sha256"',
        b'"bytes"',
        b'"note"',
        b"PK\x03\x04",
        b"PK\x01\x02",
        b"PK\x05\x06",
    ),
    *(
        b"\x93NUMPY\x01\x00",
        b"'descr': '|O'",
        b"'<f8'",
        b"'shape': (",
        b"'fortran_order': False",
        b".npy",
        b"begun\n",
    ),
    *(b"9" * 12, b"null", b"true", b"[", b"{", b"1e999", b"\\ud800"),
]
