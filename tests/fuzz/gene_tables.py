"""Vocabularies, medians, dictionaries and chromosomes as text, JSON, CSV and TSV."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import scfast
from scfast.models import dictionaries, uce_files
from tests.fuzz.harness import Way

TOKENS = {"<pad>": 0, "<mask>": 1, "<cls>": 2, "<eos>": 3, "ENSG1": 4, "ENSG2": 5}
MEDIANS = {"ENSG1": 1.5, "ENSG2": 0.25}
TABLE = b"token,token_id,nonzero_median\n<pad>,0,\n<mask>,1,\nENSG1,2,1.5\nENSG2,3,0.25\n"
CHROMOSOMES = b"species,gene_symbol,chromosome,start\nhuman,CD3D,11,118\nhuman,LYZ,12,69\nmouse,Cd3d,9,44\n"


def as_json(value: object) -> bytes:
    return json.dumps(value).encode()


def read_tokens(path: Path) -> None:
    """A CSV brings the medians with it; nothing else does."""
    medians = None if ".csv" in path.name or ".tsv" in path.name else MEDIANS
    dictionaries.read(path.parent, token_dictionary=path, gene_medians=medians)


def read_medians(path: Path) -> None:
    tokens = path.with_name("tokens.json")
    tokens.write_bytes(as_json(TOKENS))
    dictionaries.read(path.parent, token_dictionary=tokens, gene_medians=path)


def read_chromosomes(path: Path) -> None:
    uce_files._places(path, "human")


TABULAR = (ValueError, FileNotFoundError)  # a token table without medians: they lie in no other file
WAYS = [
    Way("genes.txt", scfast.io.read_vocabulary, [b"CD3D\nLYZ\n\n<pad>\n"]),
    Way("genes.json", scfast.io.read_vocabulary, [as_json(TOKENS), as_json(["LYZ", "CD3D"])]),
    Way("genes.json.gz", scfast.io.read_vocabulary, [gzip.compress(as_json(TOKENS), mtime=0)]),
    Way("medians.csv", scfast.io.read_medians, [b"gene,median\nENSG1,1.5\nENSG2,0.25\n"]),
    Way("medians.json", scfast.io.read_medians, [as_json(MEDIANS)]),
    Way("token_dictionary.json", read_tokens, [as_json(TOKENS)]),
    Way("token_dictionary.csv", read_tokens, [TABLE], TABULAR),
    Way(
        "token_dictionary.tsv.gz", read_tokens, [gzip.compress(TABLE.replace(b",", b"\t"), mtime=0)], TABULAR
    ),
    Way("tables/gene_medians.json", read_medians, [as_json(MEDIANS)]),
    Way("gene_name_id_dict.json", dictionaries.read_names, [as_json({"CD3D": "ENSG1"})]),
    Way("species_chrom.csv", read_chromosomes, [CHROMOSOMES]),
]
WORDS = [
    *(
        b"<pad>",
        b"<mask>",
        b"<cls>",
        b"<eos>",
        b"ENSG1",
        b"nonzero_median",
        b"token_id",
        b"human",
        b"chromosome",
    ),
    *(
        b"NaN",
        b"Infinity",
        b"-1",
        b"1e999",
        b"null",
        b"true",
        b"[",
        b"]",
        b"{",
        b"}",
        b":",
        b'"',
        b"\\ud800",
        b"\r",
    ),
    b"1" * 400,
]
