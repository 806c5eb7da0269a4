"""The tables beside a Geneformer checkpoint: tokens, medians, names, mapping; as pickle, JSON or CSV."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from scfast.models import safe_pickle
from scfast.models.text_files import read_json, read_rows, shown

Table: TypeAlias = "str | Path | Mapping[str, Any]"

#: How the published files begin; a suffix such as "_gc104M" may follow.
STEMS = {
    "token_dictionary": "token_dictionary",
    "gene_medians": "gene_median_dictionary",
    "gene_names": "gene_name_id_dict",
    "ensembl_mapping": "ensembl_mapping_dict",
}
SUFFIXES = (".pkl", ".pickle", ".json", ".csv", ".csv.gz", ".tsv", ".tsv.gz")
SPECIAL = ("<pad>", "<mask>", "<cls>", "<eos>")
#: Columns of a token table, and of the medians in it.
_TOKEN, _ID, _MEDIAN = "token", "token_id", "nonzero_median"


@dataclass(frozen=True)
class Dictionaries:
    """What turns genes into tokens.

    Attributes
    ----------
    tokens
        Token -> row of the token table, special tokens included.
    medians
        Gene -> median of its non-zero, depth-normalised counts over the training corpus.
    gene_names
        Gene symbol -> gene id of ``tokens``; empty when there is no such table.
    ensembl_mapping
        Symbol in upper case, alias or old Ensembl id -> Ensembl id; empty when there is no such table.
    sources
        Where each table came from, for reports.
    """

    tokens: dict[str, int]
    medians: dict[str, float]
    gene_names: dict[str, str] = field(default_factory=dict)
    ensembl_mapping: dict[str, str] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)

    @property
    def special(self) -> dict[str, int]:
        """The special tokens, those of :data:`SPECIAL` that the dictionary holds."""
        return {token: self.tokens[token] for token in SPECIAL if token in self.tokens}

    @property
    def genes(self) -> list[str]:
        """Gene ids in order of their tokens."""
        genes = (token for token in self.tokens if token not in SPECIAL)
        return sorted(genes, key=self.tokens.__getitem__)

    def write(self, folder: Path) -> None:
        """Write the tables as JSON under their published names, so that :func:`read` finds them there."""
        tables = (self.tokens, self.medians, self.gene_names, self.ensembl_mapping)
        for stem, table in zip(STEMS.values(), tables, strict=True):
            if table:
                part = folder / f".{stem}.part"
                part.write_text(json.dumps(table), encoding="utf-8")
                part.replace(folder / f"{stem}.json")


def read(
    folder: Path,
    *,
    token_dictionary: Table | None = None,
    gene_medians: Table | None = None,
    gene_names: Table | None = None,
    ensembl_mapping: Table | None = None,
) -> Dictionaries:
    """Read the tables of a checkpoint folder, or those given: a path, or a mapping already in memory.

    A token table as CSV (columns token, token_id, nonzero_median) brings the medians with it.

    Raises
    ------
    FileNotFoundError
        When there is no token dictionary or no medians; names what was looked for.
    ValueError
        When several files fit, or a table's content makes no sense.
    """
    given = {
        "token_dictionary": token_dictionary,
        "gene_medians": gene_medians,
        "gene_names": gene_names,
        "ensembl_mapping": ensembl_mapping,
    }
    found = {role: table if table is not None else find(folder, role) for role, table in given.items()}
    sources = {
        role: str(table) if isinstance(table, (str, Path)) else "given in memory"
        for role, table in found.items()
        if table is not None
    }
    if found["token_dictionary"] is None:
        raise _not_found(folder, "token_dictionary")
    medians: dict[str, float] | None = None
    if found["gene_medians"] is not None:
        medians = _typed(found["gene_medians"], "gene_medians", _positive)
    elif _is_table(found["token_dictionary"]):
        medians = _medians_beside_tokens(Path(found["token_dictionary"]))  # type: ignore[arg-type]
        sources["gene_medians"] = sources["token_dictionary"]
    if medians is None:
        raise _not_found(folder, "gene_medians")
    tokens = _typed(found["token_dictionary"], "token_dictionary", _token_id)
    _check_tokens(tokens, medians, sources["token_dictionary"])
    names = found["gene_names"]
    mapping = found["ensembl_mapping"]
    return Dictionaries(
        tokens=tokens,
        medians=medians,
        gene_names={} if names is None else _typed(names, "gene_names", _text),
        ensembl_mapping={} if mapping is None else _typed(mapping, "ensembl_mapping", _text),
        sources=sources,
    )


def read_names(table: Table) -> dict[str, str]:
    """Gene symbol -> gene id, from a path or a mapping already in memory."""
    return _typed(table, "gene_names", _text)


def find(folder: Path, role: str) -> Path | None:
    """The one file of ``folder`` that has a published name for ``role`` (a key of :data:`STEMS`), or None.

    Raises
    ------
    ValueError
        When several fit.
    """
    fitting = sorted(
        path
        for path in folder.glob(f"{STEMS[role]}*")
        if path.is_file() and any(path.name.endswith(suffix) for suffix in SUFFIXES)
    )
    if len(fitting) > 1:
        names = ", ".join(path.name for path in fitting)
        raise ValueError(f"{folder} holds several tables for {role}: {names}. Say which one: {role}=PATH")
    return fitting[0] if fitting else None


def read_table(path: str | Path) -> dict[str, Any]:
    r"""A two-column table from a pickle, JSON, CSV or TSV file (.gz too), as a dictionary.

    Of a CSV the first two columns are read; its first line holds column names.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "token_dictionary.csv")
    ...     _ = path.write_text("token,token_id\n<pad>,0\nENSG00000000003,2\n")
    ...     read_table(path)
    {'<pad>': '0', 'ENSG00000000003': '2'}
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    if path.suffix in (".pkl", ".pickle"):
        table = safe_pickle.load(path)
    elif path.suffix == ".json":
        table = read_json(path)
    elif _is_table(path):
        header, rows = _csv_rows(path)
        if len(header) < 2:
            raise ValueError(f"{path} must have two columns or more (key, value); its first line is {header}")
        table = {row[0]: row[1] for row in rows}
        if len(table) != len(rows):
            raise ValueError(f"{path} names {len(rows) - len(table)} keys twice in column {header[0]!r}")
    else:
        raise ValueError(f"{path} is no known kind of table; use one of {', '.join(SUFFIXES)}")
    if not isinstance(table, dict):
        raise ValueError(f"{path} must hold a dictionary; it holds a {type(table).__name__}")
    return table


def _is_table(table: Table | None) -> bool:
    return isinstance(table, (str, Path)) and str(table).endswith((".csv", ".csv.gz", ".tsv", ".tsv.gz"))


def _csv_rows(path: Path) -> tuple[list[str], list[list[str]]]:
    rows = read_rows(path, "\t" if ".tsv" in path.name else ",")
    if not rows:
        raise ValueError(f"{path} is empty")
    header, body = rows[0], rows[1:]
    short = next((n for n, row in enumerate(body, start=2) if len(row) != len(header)), None)
    if short is not None:
        raise ValueError(
            f"{path}, line {short}: {len(body[short - 2])} columns, but the first line has {len(header)}"
        )
    return header, body


def _medians_beside_tokens(path: Path) -> dict[str, float] | None:
    header, rows = _csv_rows(path)
    if _MEDIAN not in header:
        return None
    column = header.index(_MEDIAN)
    return {row[0]: _positive(row[column], row[0], str(path)) for row in rows if row[column] != ""}


def _typed(table: Any, role: str, convert: Callable[[Any, str, str], Any]) -> dict[str, Any]:
    origin = str(table) if isinstance(table, (str, Path)) else f"{role}="
    content = table if isinstance(table, Mapping) else read_table(table)
    wrong = next((key for key in content if not isinstance(key, str)), None)
    if wrong is not None:
        raise ValueError(
            f"{origin} must have gene ids or token names as keys; it has a {type(wrong).__name__}"
        )
    _refuse_swapped(content, role, origin)
    return {key: convert(value, key, origin) for key, value in content.items()}


def _refuse_swapped(content: Mapping[str, Any], role: str, origin: str) -> None:
    """Name medians under the name of the token dictionary, which are found in the wild, and the reverse."""
    special = [token for token in SPECIAL if token in content]
    if role == "gene_medians" and special:
        raise ValueError(
            f"{origin} holds a token dictionary (it has {', '.join(special)}) where medians are expected: the two are "
            "swapped; give gene_medians=PATH of the table whose values are non-zero medians"
        )
    if role == "token_dictionary" and not special:
        found = next(((key, value) for key, value in content.items() if not _is_whole(value)), None)
        if found is not None:
            raise ValueError(
                f"{origin} holds medians ({found[0]}: {found[1]}; no <pad>, no <mask>) under the name of the token "
                "dictionary: give token_dictionary=PATH of the table whose values are whole numbers"
            )


def _is_whole(value: Any) -> bool:
    try:
        return float(value).is_integer()
    except (TypeError, ValueError, OverflowError):
        return True  # no number at all: refused elsewhere


def _token_id(value: Any, key: str, origin: str) -> int:
    number = _number(value, key, origin)
    if number != int(number) or number < 0:
        raise ValueError(f"{origin}: the token of {key!r} must be a whole number from 0, got {shown(value)}")
    return int(number)


def _positive(value: Any, key: str, origin: str) -> float:
    number = _number(value, key, origin)
    if not number > 0:
        raise ValueError(f"{origin}: the non-zero median of {key!r} must be above 0, got {shown(value)}")
    return number


def _number(value: Any, key: str, origin: str) -> float:
    try:
        if isinstance(value, bool) or not isinstance(value, (str, int, float, np.number)):
            raise ValueError
        number = float(value)
    except (ValueError, OverflowError):
        raise ValueError(f"{origin}: the value of {key!r} must be a number, got {shown(value)}") from None
    if not math.isfinite(number):
        raise ValueError(f"{origin}: the value of {key!r} must be finite, got {shown(value)}")
    return number


def _text(value: Any, key: str, origin: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{origin}: the value of {key!r} must be a gene id, got a {type(value).__name__}")
    return value


def _check_tokens(tokens: dict[str, int], medians: dict[str, float], origin: str) -> None:
    if len(set(tokens.values())) != len(tokens):
        raise ValueError(
            f"{origin} gives one token id to several genes: {len(tokens)} tokens, "
            f"{len(set(tokens.values()))} ids"
        )
    for token in ("<pad>", "<mask>"):
        if token not in tokens:
            raise ValueError(f"{origin} has no {token} token; a Geneformer dictionary has <pad> and <mask>")
    if ("<cls>" in tokens) != ("<eos>" in tokens):
        raise ValueError(f"{origin} has only one of <cls> and <eos>; Geneformer V1 has neither, V2 both")
    without = [gene for gene in tokens if gene not in SPECIAL and gene not in medians]
    if without:
        raise ValueError(
            f"{len(without)} genes of {origin} have no median, for example {', '.join(without[:3])}: "
            "give the gene_medians= that belong to this token dictionary"
        )


def _not_found(folder: Path, role: str) -> FileNotFoundError:
    return FileNotFoundError(
        f"{folder} holds no {STEMS[role]}*{{{','.join(SUFFIXES)}}}: give {role}=PATH. The published tables "
        "lie in the geneformer/ folder of the Geneformer repository, apart from the checkpoints"
    )
