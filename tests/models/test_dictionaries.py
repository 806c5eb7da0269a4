"""The tables beside a checkpoint: found by name, read in every format, refused with the reason."""

from __future__ import annotations

import gzip
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scfast.models import dictionaries, load
from scfast.models.safe_pickle import UnsafePickleError
from tests.models import fixtures

TOKENS = {"<pad>": 0, "<mask>": 1, "ENSG00000000003": 2, "NA": 3, 'a "quoted", name': 4}
MEDIANS = {"ENSG00000000003": 2.001186019549122, "NA": 0.1, 'a "quoted", name': 1e-3}


def read(folder: Path, **tables: Any) -> dictionaries.Dictionaries:
    return dictionaries.read(folder, **({"token_dictionary": TOKENS, "gene_medians": MEDIANS} | tables))


def table(path: Path, content: dict[str, Any]) -> Path:
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(content))
    elif path.suffix == ".json":
        path.write_text(json.dumps(content))
    else:
        delimiter = "\t" if ".tsv" in path.name else ","
        quoted = {'"' + key.replace('"', '""') + '"': value for key, value in content.items()}
        text = "\n".join([f"key{delimiter}value", *(f"{k}{delimiter}{v}" for k, v in quoted.items())])
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("suffix", dictionaries.SUFFIXES)
def test_every_format_is_found_and_read(tmp_path: Path, suffix: str) -> None:
    suffix = suffix.replace("pickle", "pkl")
    table(tmp_path / f"token_dictionary_gc104M{suffix}", TOKENS)
    table(tmp_path / f"gene_median_dictionary{suffix}", MEDIANS)
    table(tmp_path / f"gene_name_id_dict_gc95M{suffix}", {"TSPAN6": "ENSG00000000003"})
    table(tmp_path / f"ensembl_mapping_dict{suffix}", {"OLD": "ENSG00000000003"})
    got = dictionaries.read(tmp_path)
    assert got.tokens == TOKENS
    assert got.medians == MEDIANS
    assert got.gene_names == {"TSPAN6": "ENSG00000000003"}
    assert got.ensembl_mapping == {"OLD": "ENSG00000000003"}
    assert got.genes == list(MEDIANS)
    assert got.special == {"<pad>": 0, "<mask>": 1}
    assert all(Path(source).parent == tmp_path for source in got.sources.values())


def test_a_token_table_brings_its_medians(tmp_path: Path) -> None:
    file = tmp_path / "tokens.csv"
    file.write_text("token,token_id,nonzero_median\n<pad>,0,\n<mask>,1,\nNA,2,2.5\n")
    got = dictionaries.read(tmp_path, token_dictionary=file)
    assert (got.tokens["NA"], got.medians) == (2, {"NA": 2.5})


def test_numpy_medians_become_plain_numbers(tmp_path: Path) -> None:
    medians = {gene: np.float64(median) for gene, median in MEDIANS.items()}
    got = read(tmp_path, gene_medians=table(tmp_path / "gene_median_dictionary.pkl", medians))
    assert got.medians == MEDIANS
    assert all(type(median) is float for median in got.medians.values())


def test_missing_tables_say_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no token_dictionary\*.*token_dictionary=PATH"):
        dictionaries.read(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"holds no gene_median_dictionary\*.*gene_medians=PATH"):
        dictionaries.read(tmp_path, token_dictionary=TOKENS)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read(tmp_path, gene_names=tmp_path / "none.csv")


def test_two_tables_for_one_role_are_not_guessed(tmp_path: Path) -> None:
    for tag in ("gc30M", "gc104M"):
        table(tmp_path / f"token_dictionary_{tag}.pkl", TOKENS)
    with pytest.raises(ValueError, match=r"token_dictionary_gc104M\.pkl, token_dictionary_gc30M\.pkl"):
        dictionaries.read(tmp_path)
    assert read(tmp_path).tokens == TOKENS


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"token_dictionary": TOKENS | {"NA": 2}}, "one token id to several genes"),
        ({"token_dictionary": {"NA": 0}}, "has no <pad> token"),
        ({"token_dictionary": TOKENS | {"<cls>": 9}}, "only one of <cls> and <eos>"),
        ({"token_dictionary": TOKENS | {"NA": "x"}}, "the value of 'NA' must be a number, got 'x'"),
        ({"token_dictionary": TOKENS | {"NA": 1.5}}, "must be a whole number from 0, got 1.5"),
        ({"token_dictionary": TOKENS | {"NA": True}}, "must be a number, got True"),
        ({"token_dictionary": TOKENS | {"new": 7}}, "1 genes of .* have no median, for example new"),
        ({"token_dictionary": {1: 2}}, "as keys; it has a int"),
        ({"gene_medians": MEDIANS | {"NA": 0}}, "median of 'NA' must be above 0, got 0"),
        ({"gene_medians": MEDIANS | {"NA": float("nan")}}, "must be finite, got nan"),
        ({"gene_names": {"TSPAN6": 3}}, "must be a gene id, got a int"),
        (
            {"token_dictionary": MEDIANS},
            r"holds medians \(.*\) under the name of the token dictionary: give token_d",
        ),
        (
            {"gene_medians": TOKENS},
            r"holds a token dictionary \(it has <pad>, <mask>.*\) where medians are expected",
        ),
    ],
)
def test_content_that_makes_no_sense(tmp_path: Path, tables: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        read(tmp_path, **tables)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("t.csv", b"", "is empty"),
        ("t.csv", b"token\nA\n", "must have two columns or more"),
        ("t.csv", b"token,id\nA,1\nB\n", "line 3: 1 columns, but the first line has 2"),
        ("t.csv", b"token,id\nA,1\nA,2\n", "names 1 keys twice in column 'token'"),
        ("t.csv.gz", b"token,id\n", "cannot be read as text"),
        ("t.csv", b"\xff\xfe", "cannot be read as text"),
        ("t.json", b"{", "is not JSON"),
        ("t.json", b"[1]", "must hold a dictionary; it holds a list"),
        ("t.npz", b"", "is no known kind of table; use one of .pkl"),
    ],
)
def test_files_that_are_no_tables(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=said):
        dictionaries.read_table(tmp_path / name)


def test_medians_under_the_name_of_the_token_dictionary(tmp_path: Path) -> None:
    table(
        tmp_path / "token_dictionary_gc104M.pkl",
        {gene: np.float64(median) for gene, median in MEDIANS.items()},
    )
    with pytest.raises(ValueError, match=r"token_dictionary_gc104M\.pkl holds medians \(.*no <pad>"):
        dictionaries.read(tmp_path, gene_medians=MEDIANS)


def test_a_hostile_dictionary_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Hostile:
        def __reduce__(self) -> Any:
            return os.system, ("touch ran",)

    monkeypatch.chdir(tmp_path)
    folder = fixtures.write_v1(tmp_path / "model")
    (folder / "token_dictionary.pkl").write_bytes(pickle.dumps({"<pad>": Hostile()}))
    with pytest.raises(UnsafePickleError, match=r"token_dictionary\.pkl asks for the global '\w+\.system'"):
        load("geneformer", folder)
    assert not (tmp_path / "ran").exists()


def test_published_tables(shared: Path) -> None:
    tables = shared / "data" / "geneformer"
    v1 = dictionaries.read(tables, token_dictionary=tables / "v1_gc30M_tokens.csv.gz")
    assert (len(v1.tokens), len(v1.medians), v1.genes[0]) == (25426, 25424, "ENSG00000000003")
    v2 = dictionaries.read(
        tables,
        token_dictionary=tables / "v2_gc104M_tokens.csv.gz",
        gene_medians=tables / "v2_gc104M_gene_medians_all.csv.gz",
        ensembl_mapping=tables / "v2_gc104M_ensembl_mapping.csv.gz",
    )
    assert v2.special == {"<pad>": 0, "<mask>": 1, "<cls>": 2, "<eos>": 3}
    assert (len(v2.tokens), len(v2.medians), len(v2.ensembl_mapping)) == (20275, 42005, 173697)


def test_written_tables_are_read_back(tmp_path: Path) -> None:
    tokens = {"<pad>": 0, "<mask>": 1, "ENSG2": 2, "ENSG1": 3}
    whole = dictionaries.Dictionaries(
        tokens, {"ENSG1": 0.5, "ENSG2": 2.0}, {"B": "ENSG2"}, {"OLD": "ENSG1", "ENSG1": "ENSG1"}
    )
    whole.write(tmp_path)
    read = dictionaries.read(tmp_path)
    for name in ("tokens", "medians", "gene_names", "ensembl_mapping", "genes"):
        assert getattr(read, name) == getattr(whole, name)
    (tmp_path / "bare").mkdir()
    dictionaries.Dictionaries(tokens, whole.medians).write(tmp_path / "bare")
    assert len(list((tmp_path / "bare").iterdir())) == 2
