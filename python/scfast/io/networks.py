"""Tables of regulators and their targets: CollecTRI, TRRUST, ChIP-Atlas, or any with two columns of names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from scfast.io.gene_sets import read_rows

if TYPE_CHECKING:
    from anndata import AnnData

#: Headers of the column with regulators, and of the one with targets, in lower case.
SOURCES = ("source", "tf", "regulator", "regulatorygene", "gene1", "from")
TARGETS = ("target", "target_gene", "targetgene", "gene2", "gene", "to")
#: Headers of the column that says whether targets rise or fall.
SIGNS = ("weight", "mor", "mode", "sign", "effect", "regulation")
#: What stands there in words.
MODES = {"activation": 1.0, "repression": -1.0, "unknown": 0.0}
#: First header of a table of ChIP-Atlas; the second is the regulator's name, a bar, and "Average".
CHIP_ATLAS = "target_genes"


def read_network(path: str | Path, *, min_score: float = 0.0) -> pd.DataFrame:
    r"""Regulators and their targets, from a table.

    Tables with a header that names the two columns (``source`` and ``target``, ``TF`` and ``target``, ``Gene1`` and
    ``Gene2``, ...), such as CollecTRI's and BEELINE's; TRRUST's, which has no header; two columns of names without a
    header; and the target genes of ChIP-Atlas, one table for each regulator.

    Parameters
    ----------
    path
        CSV, or with tabs; gzip is read too.
    min_score
        Of ChIP-Atlas: a gene is a target where the average binding score is above it.

    Returns
    -------
    pandas.DataFrame
        ``source``, ``target`` (str) and ``sign`` (float64: 1 where targets rise, -1 where they fall, 0 where the table
        does not say, or says both). Each pair once, in the order of the file.

    Raises
    ------
    ValueError
        When columns cannot be told, or there is no edge.

    Examples
    --------
    >>> import tempfile, pathlib, scfast
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "trrust.tsv"
    >>> _ = path.write_text("STAT1\tIRF7\tActivation\t1\nSTAT1\tMYC\tRepression\t2\nSTAT1\tMYC\tUnknown\t3\n")
    >>> scfast.io.read_network(path).values.tolist()
    [['STAT1', 'IRF7', 1.0], ['STAT1', 'MYC', -1.0]]
    """
    path = Path(path)
    rows = read_rows(path)
    header = [field.strip() for field in next(rows, [])]
    names = [field.lower() for field in header]
    if names[:1] == [CHIP_ATLAS]:
        return _edges(path, _bound(path, header, rows, min_score))
    source, target, sign = (
        next((names.index(name) for name in known if name in names), None)
        for known in (SOURCES, TARGETS, SIGNS)
    )
    if source is not None and target is not None:
        return _edges(path, _pairs(path, rows, source, target, sign))
    if len(header) == 2:
        return _edges(path, _pairs(path, chain([header], rows), 0, 1, None))
    if len(header) >= 3 and names[2] in MODES:
        return _edges(path, _pairs(path, chain([header], rows), 0, 1, 2))
    raise ValueError(
        f"{path}: columns of regulators and targets cannot be told from the first line {header[:5]}: name them 'source'"
        " and 'target', or leave these two alone"
    )


def write_network(
    adata: AnnData,
    path: str | Path,
    *,
    network: str = "grn",
    gene_symbols: str | None = None,
    top: int | None = None,
) -> Path:
    """Write the edges of a network as GraphML, for Cytoscape and Gephi, or as a parquet or CSV table.

    Parameters
    ----------
    adata
        With the network in ``varp``, regulators in rows.
    path
        ``*.graphml``, ``*.parquet`` or ``*.csv``; a file that is there is replaced, in one step.
    network
        Its key in ``varp``; standard errors at ``network + "_se"`` are written too.
    gene_symbols
        Column of ``adata.var`` with names to write instead of the index; one that several genes have is written with
        each one's index behind it, as ``TBCE (ENSG00000285053)``.
    top
        The strongest edges only.

    Returns
    -------
    pathlib.Path
        The file: edges with ``source``, ``target``, ``weight`` and, where known, ``se``, the strongest first.

    Raises
    ------
    KeyError
        When network or column are not there.
    ValueError
        When the ending is another, there is no edge, or genes have no names of their own.
    ModuleNotFoundError
        For parquet, without pyarrow (the extra ``networks``).

    Examples
    --------
    >>> import numpy as np, pandas as pd, pathlib, scfast, tempfile
    >>> from anndata import AnnData
    >>> adata = AnnData(np.ones((1, 2)), var=pd.DataFrame(index=["STAT1", "IRF7"]))
    >>> adata.varp["grn"] = np.array([[0, 0.5], [0, 0]])
    >>> path = scfast.io.write_network(adata, pathlib.Path(tempfile.mkdtemp()) / "network.csv")
    >>> print(path.read_text().strip())
    source,target,weight
    STAT1,IRF7,0.5
    """
    path = Path(path)
    if network not in adata.varp:
        raise KeyError(f"network={network!r} is not in adata.varp, which has {list(adata.varp)}")
    if gene_symbols is not None and gene_symbols not in adata.var:
        raise KeyError(
            f"gene_symbols={gene_symbols!r} is not in adata.var, which has {list(adata.var.columns)}"
        )
    if path.suffix not in (".graphml", ".parquet", ".csv"):
        raise ValueError(f"{path.name}: a network is written as .graphml, .parquet or .csv")
    names = _names(adata, gene_symbols)
    matrix = sparse.csr_matrix(adata.varp[network])
    edges = matrix.tocoo()
    order = np.argsort(-np.abs(edges.data), kind="stable")[:top]
    order = order[edges.data[order] != 0]
    if not len(order):
        raise ValueError(f"the network {network!r} has no edge")
    row, column = edges.row[order], edges.col[order]
    table = pd.DataFrame({"source": names[row], "target": names[column], "weight": edges.data[order]})
    if f"{network}_se" in adata.varp:
        table["se"] = np.asarray(sparse.csr_matrix(adata.varp[f"{network}_se"])[row, column]).ravel()
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name a file in it")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        _write(table, part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def _names(adata: AnnData, gene_symbols: str | None) -> np.ndarray:
    """What genes are called in a file: every one differently."""
    index = adata.var_names.astype(str).to_numpy(dtype=object)
    if len(set(index)) < len(index):
        raise ValueError(
            "adata.var_names are not unique, so genes cannot be told apart: call adata.var_names_make_unique()"
        )
    if gene_symbols is None:
        return index
    symbols = adata.var[gene_symbols].astype(str)
    several = symbols.duplicated(keep=False).to_numpy()
    return np.where(several, symbols + " (" + index + ")", symbols)


def _write(table: pd.DataFrame, path: Path) -> None:
    if path.suffix == ".csv":
        table.to_csv(path, index=False)
    elif path.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ModuleNotFoundError:
            raise ModuleNotFoundError(
                "pyarrow is needed for parquet: pip install 'scfast[networks]', or write .csv"
            ) from None
        table.to_parquet(path, index=False)
    else:
        import networkx

        attributes = [name for name in ("weight", "se") if name in table]
        graph = networkx.from_pandas_edgelist(
            table.astype(dict.fromkeys(attributes, float)),
            edge_attr=attributes,
            create_using=networkx.DiGraph,
        )
        networkx.write_graphml(graph, path)


def to_network(reference: pd.DataFrame | Mapping[str, Sequence[str]] | str | Path) -> pd.DataFrame:
    """Whatever a user gives for regulators and their targets, as :func:`read_network` returns it.

    Raises
    ------
    TypeError, ValueError
        When it is no table of edges, or holds none.

    Examples
    --------
    >>> to_network({"STAT1": ["IRF7", "ISG15"]}).values.tolist()
    [['STAT1', 'IRF7', 0.0], ['STAT1', 'ISG15', 0.0]]
    """
    if isinstance(reference, str | Path):
        return read_network(reference)
    if isinstance(reference, Mapping):
        wrong = [name for name, genes in reference.items() if isinstance(genes, str)]
        if wrong:
            raise TypeError(f"reference[{wrong[0]!r}] is one text: give a list of its targets")
        return _edges("reference", ((tf, gene, 0.0) for tf, genes in reference.items() for gene in genes))
    if not isinstance(reference, pd.DataFrame):
        raise TypeError(
            f"reference is a {type(reference).__name__}: give a file, a DataFrame with columns 'source' and 'target',"
            " or a dict from each regulator to its targets"
        )
    missing = [name for name in ("source", "target") if name not in reference]
    if missing:
        raise ValueError(
            f"reference has no column {' and no column '.join(map(repr, missing))}; there are {list(reference)}: rename"
            " those that hold regulators and targets"
        )
    reference = reference.dropna(subset=["source", "target"])
    column = next((reference[name] for name in ("sign", *SIGNS) if name in reference), None)
    signs = [0.0] * len(reference) if column is None else [_sign(value) for value in column]
    return _edges("reference", zip(reference["source"], reference["target"], signs, strict=True))


def _bound(
    path: Path, header: list[str], rows: Iterator[list[str]], min_score: float
) -> Iterator[tuple[str, str, float]]:
    name, _, what = (header[1] if len(header) > 1 else "").partition("|")
    if not name or what.strip().lower() != "average":
        raise ValueError(
            f"{path}: the second column of a table of ChIP-Atlas is called 'REGULATOR|Average'; got {header[1:2]}"
        )
    for row in rows:
        if len(row) > 1 and _number(path, row[1]) > min_score:
            yield name.strip(), row[0], 0.0


def _number(path: Path, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{path}: a binding score is {text!r}, which is no number") from None


def _pairs(
    path: Path, rows: Iterator[list[str]], source: int, target: int, sign: int | None
) -> Iterator[tuple[str, str, float]]:
    least = max(source, target, sign or 0) + 1
    for row in rows:
        if not row:
            continue
        if len(row) < least:
            raise ValueError(f"{path}: a row has {len(row)} fields and needs {least} ({row[:3]})")
        yield row[source], row[target], 0.0 if sign is None else _sign(row[sign])


def _sign(value: object) -> float:
    text = str(value).strip().lower()
    if text in MODES:
        return MODES[text]
    try:
        number = float(text)
    except ValueError:
        return 0.0
    return 0.0 if np.isnan(number) else float(np.sign(number))


def _edges(where: str | Path, edges: Iterator[tuple[object, object, float]]) -> pd.DataFrame:
    """Each pair once; signs that contradict each other leave it without one."""
    signs: dict[tuple[str, str], set[float]] = {}
    for source, target, sign in edges:
        pair = (str(source).strip(), str(target).strip())
        if all(pair):
            signs.setdefault(pair, set()).add(sign)
    if not signs:
        raise ValueError(f"{where} holds no edge from a regulator to a target")
    said = [sum(values) for values in signs.values()]  # {1, -1} and {0} give 0
    return pd.DataFrame(
        {
            "source": [source for source, _ in signs],
            "target": [target for _, target in signs],
            "sign": np.array(said, dtype=np.float64),
        }
    )
