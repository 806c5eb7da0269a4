"""Gene sets in GMT files, and tables that give each gene a cluster."""

from __future__ import annotations

import csv
import gzip
import re
import warnings
import zlib
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

#: The largest text that is read: all of MSigDB is 30 MB, and a small gzip file may hold terabytes.
MAX_CHARACTERS = 10**9
#: First field of a header of a two-column table, in lower case.
HEADERS = {
    "gene",
    "genes",
    "gene_id",
    "gene id",
    "gene_name",
    "gene name",
    "symbol",
    "ensembl",
    "ensembl_id",
    "name",
}
#: Columns of Human Protein Atlas tables that identify a gene, first choice first.
IDENTIFIERS = ("Ensembl", "Gene")
#: An entry such as "liver: 839.5"; several are separated by semicolons.
_ENTRY = re.compile(r"([^;]*?):\s*-?[\d.]+(?:[eE][-+]?\d+)?\s*(?:;.*)?")


def read_gmt(path: str | Path) -> dict[str, list[str]]:
    r"""Gene sets of a GMT file: one set a line, as name, description and genes between tabs.

    A set without genes is left out, with one warning that counts them; a gene that stands twice in a set counts once.

    Parameters
    ----------
    path
        A text file in UTF-8, or the same with gzip.

    Returns
    -------
    dict
        Name -> genes, in the order of the file.

    Raises
    ------
    ValueError
        When a line has no tab or no name, a name stands twice, there is no set with genes, or the file is no text.
    FileNotFoundError
        If nothing is there.

    Examples
    --------
    >>> import tempfile, pathlib, scfast
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "sets.gmt"
    >>> _ = path.write_text("T_CELL\tmarkers\tCD3D\tCD3E\nB_CELL\tmarkers\tCD79A\n")
    >>> scfast.io.read_gmt(path)
    {'T_CELL': ['CD3D', 'CD3E'], 'B_CELL': ['CD79A']}
    """
    sets: dict[str, list[str]] = {}
    empty: list[str] = []
    for number, line in enumerate(read_lines(Path(path)), 1):
        if not line.strip():
            continue
        name, *rest = (part.strip() for part in line.split("\t"))
        if not rest or not name:
            problem = "has no tab" if not rest else "has no name"
            raise ValueError(
                f"{path}, line {number} {problem} ({line.strip()[:40]!r}): a line of a GMT file is a set's name, its"
                " description and its genes, separated by tabs"
            )
        if name in sets or name in empty:
            raise ValueError(f"{path}, line {number}: the set {name!r} stands there twice; rename one")
        genes = list(dict.fromkeys(gene for gene in rest[1:] if gene))
        if genes:
            sets[name] = genes
        else:
            empty.append(name)
    if empty:
        warnings.warn(
            f"{path}: {len(empty)} sets have no gene ({', '.join(empty[:3])}{', ...' * (len(empty) > 3)}) and are left"
            " out",
            UserWarning,
            stacklevel=2,
        )
    if not sets:
        raise ValueError(
            f"{path} holds no set with genes: each line is name, description and genes, with tabs"
        )
    return sets


def read_clusters(path: str | Path, column: str | None = None, *, genes: str | None = None) -> dict[str, str]:
    r"""A cluster for each gene, from a table of the Human Protein Atlas or any table of two columns.

    Parameters
    ----------
    path
        CSV, or with tabs; gzip is read too.
    column
        Column with the clusters, such as ``"Tissue expression cluster"`` or ``"Single cell expression cluster"`` of
        ``proteinatlas.tsv``. Of entries with numbers (``"liver: 839.5;kidney: 3.1"``, as in ``"RNA TS TPM"``) the
        first name is taken. Default: the table has two columns, gene and cluster; a header is skipped if its first
        field says "gene", "symbol" or "ensembl".
    genes
        Column that identifies the genes. Default: ``"Ensembl"`` where the table has it, else ``"Gene"``.

    Returns
    -------
    dict
        Gene -> cluster; genes without one are left out.

    Raises
    ------
    KeyError
        When a column is not there.
    ValueError
        When a gene stands in two clusters, no gene has one, or rows are not as wide as the header.

    Examples
    --------
    >>> import tempfile, pathlib, scfast
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "atlas.tsv"
    >>> _ = path.write_text("Gene\tEnsembl\tRNA TS TPM\nALB\tENSG1\tliver: 9.5;lung: 2\nX\tENSG2\t\n")
    >>> scfast.io.read_clusters(path, "RNA TS TPM")
    {'ENSG1': 'liver'}
    """
    path = Path(path)
    rows = read_rows(path)
    header = next(rows, [])
    if column is None:
        if len(header) != 2:
            raise ValueError(
                f"{path} has {len(header)} columns: name the one that holds the clusters with column=; there are"
                f" {header}"
            )
        start = [] if header[0].strip().lower() in HEADERS else [header]
        return _clusters(path, chain(start, rows), 0, 1, 2)
    identifier = (
        genes if genes is not None else next((name for name in IDENTIFIERS if name in header), "Gene")
    )
    for name in (column, identifier):
        if name not in header:
            raise KeyError(f"{path} has no column {name!r}; there are {header}")
    return _clusters(path, rows, header.index(identifier), header.index(column), len(header))


def _clusters(
    path: Path, rows: Iterable[list[str]], gene_at: int, cluster_at: int, width: int
) -> dict[str, str]:
    clusters: dict[str, str] = {}
    for row in rows:
        if not row:
            continue
        if len(row) != width:
            raise ValueError(f"{path}: a row has {len(row)} fields and the first {width} ({row[:3]}, ...)")
        gene, text = row[gene_at].strip(), row[cluster_at].strip()
        entry = _ENTRY.fullmatch(text)
        cluster = entry[1].strip() if entry else text
        if not gene or not cluster:
            continue
        if clusters.setdefault(gene, cluster) != cluster:
            raise ValueError(f"{path}: gene {gene!r} is in {clusters[gene]!r} and in {cluster!r}; keep one")
    if not clusters:
        raise ValueError(f"{path} gives no gene a cluster: the column is empty")
    return clusters


def read_rows(path: Path) -> Iterator[list[str]]:
    """Rows of a table, whose first line says whether its fields are separated by tabs or by commas."""
    lines = read_lines(path)
    first = next(lines, "")
    try:
        yield from csv.reader(chain([first], lines), delimiter="\t" if "\t" in first else ",")
    except csv.Error as error:
        raise ValueError(f"{path} cannot be read as a table: {error}") from None


def read_lines(path: Path) -> Iterator[str]:
    """Lines of a text file, plain or with gzip."""
    read = 0
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8") as file
        ):
            while line := file.readline(MAX_CHARACTERS):
                read += len(line)
                if read >= MAX_CHARACTERS:
                    raise ValueError(
                        f"{path} holds more than {MAX_CHARACTERS:,} characters: that is no table of genes"
                    )
                if "\0" in line:
                    raise ValueError(f"{path} is no text file: it holds zero bytes")
                yield line.rstrip("\r\n").removeprefix("\ufeff")
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as text in UTF-8: {error}") from None
