"""Pickled dictionaries: by themselves, as the tables of a Geneformer, and as a UCE's offsets."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

from scfast.models import dictionaries, safe_pickle, uce_files
from tests.fuzz.harness import Way

TOKENS = {"<pad>": 0, "<mask>": 1, "ENSG00000000003": 2, "ENSG00000000005": 3}
MEDIANS = {"ENSG00000000003": np.float64(1.5), "ENSG00000000005": np.float32(0.25)}
PLAIN = {bool, int, float, str, bytes, type(None), dict, list, tuple}


def read(path: Path) -> None:
    """What came back is plain all through, also where values are shared or hold each other."""
    waiting, seen = [safe_pickle.load(path)], set()
    while waiting:
        value: Any = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        assert type(value) in PLAIN or isinstance(value, np.generic), type(value)
        if type(value) is dict:
            waiting += [*value.keys(), *value.values()]
        elif type(value) in (list, tuple):
            waiting += value


def read_tables(path: Path) -> None:
    dictionaries.read(path.parent, token_dictionary=path, gene_medians=dict(MEDIANS))
    dictionaries.read_names(path)


def read_offsets(path: Path) -> None:
    assert isinstance(uce_files._offset(path, "human"), int)


def every_protocol(value: Any) -> list[bytes]:
    return [pickle.dumps(value, protocol) for protocol in range(6)]


SHARED = ["a", (1, 2, 3, 4), b"\x00\xff", ()]
WAYS = [
    Way(
        "x.pkl",
        read,
        [
            *every_protocol(
                {"x": SHARED, "y": SHARED, "z": {"n": MEDIANS}, "big": 2**80, "é": "日本", "no": None}
            ),
            b"(S'touch x'\nios\nsystem\n.",
            b"\x80\x02cnumpy\ndtype\nU\x02f8\x85R(K\x03U\x01<NNNtb.",
            b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        ],
    ),
    Way("token_dictionary.pkl", read_tables, every_protocol(TOKENS)),
    Way("offsets.pkl", read_offsets, every_protocol({"human": 13466, "mouse": np.int64(7)})),
]
WORDS = [
    *(
        b"numpy",
        b"_core",
        b"core",
        b"multiarray",
        b"scalar",
        b"dtype",
        b"_codecs",
        b"encode",
        b"latin1",
        b"os",
    ),
    *(
        b"system",
        b"builtins",
        b"f8",
        b"<",
        b"\x80\x04",
        b"\x93",
        b"\x94",
        b"\x85R",
        b"(",
        b"}",
        b"u.",
        b"]",
        b"a.",
    ),
    *(b"\x8d", b"\x8e", b"\x8b", b"\x96", b"\x82", b"h\x00", b"q\x00", b"j", b"r", b"cnumpy\ndtype\n", b"Rb"),
]
