"""Tables of regulators and targets: the formats that there are, and what is refused."""

from __future__ import annotations

import gzip
import re

import anndata
import networkx
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scfast
from scfast.io.networks import to_network


def read(tmp_path, text, name="table.tsv", **options):
    path = tmp_path / name
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return scfast.io.read_network(path, **options).values.tolist()


@pytest.mark.parametrize(
    ("text", "name", "edges"),
    [
        ("source,target,weight\nMYC,TERT,1\nSPI1,BGLAP,-1\nMYC,TERT,1\n", "collectri.csv.gz",
         [["MYC", "TERT", 1], ["SPI1", "BGLAP", -1]]),
        ("AATF\tBAX\tRepression\t22\nAATF\tKLK3\tUnknown\t23;24\nAATF\tBAX\tActivation\t9\n", "trrust.tsv",
         [["AATF", "BAX", 0], ["AATF", "KLK3", 0]]),
        ("Gene1,Gene2\nA,B\n", "beeline.csv", [["A", "B", 0]]),
        ("TF\ttarget\tmor\nA\tB\t0.3\nA\tC\tNA\n", "dorothea.tsv", [["A", "B", 1], ["A", "C", 0]]),
        ("A\tB\n\n A\tC \n", "two.tsv", [["A", "B", 0], ["A", "C", 0]]),
    ],
)  # fmt: skip
def test_formats(tmp_path, text, name, edges):
    assert read(tmp_path, text, name) == edges


def test_chip_atlas(tmp_path):
    text = (
        "Target_genes\tSTAT1|Average\tSRX1|K-562\tSTRING\nISG15\t412.5\t500\t0\nMYC\t0\t0\t0\nIRF7\t3\t9\t1\n"
    )
    assert read(tmp_path, text) == [["STAT1", "ISG15", 0], ["STAT1", "IRF7", 0]]
    assert read(tmp_path, text, min_score=100) == [["STAT1", "ISG15", 0]]
    with pytest.raises(ValueError, match="no edge"):
        read(tmp_path, text, min_score=1000)
    with pytest.raises(ValueError, match="'high', which is no number"):
        read(tmp_path, text.replace("412.5", "high"))
    with pytest.raises(ValueError, match="the second column of a table of ChIP-Atlas"):
        read(tmp_path, text.replace("STAT1|Average", "STAT1"))


def test_tables_and_dicts():
    table = pd.DataFrame({"source": ["A", "A"], "target": ["B", "C"], "weight": [-2.0, 1.0]})
    assert to_network(table).values.tolist() == [["A", "B", -1], ["A", "C", 1]]
    assert to_network({"A": ["B", "B", "C"]}).values.tolist() == [["A", "B", 0], ["A", "C", 0]]


@pytest.mark.parametrize(
    ("reference", "error", "says"),
    [
        (3, TypeError, "is a int: give a file, a DataFrame"),
        ({"A": "B"}, TypeError, "is one text: give a list"),
        ({}, ValueError, "holds no edge"),
        (pd.DataFrame({"from": ["A"], "target": ["B"]}), ValueError, "no column 'source'"),
    ],
)
def test_what_is_no_reference(reference, error, says):
    with pytest.raises(error, match=says):
        to_network(reference)


@pytest.mark.parametrize(
    ("text", "name", "says"),
    [
        (
            "regulon\ttargets\tweight\nMYC\tTERT;BAX\t1\n",
            "collectri.tsv",
            "cannot be told from the first line",
        ),
        ("AATF\tBAX\t22\tRepression\n", "trrust.tsv", "cannot be told from the first line"),
        ("AATF BAX Repression 22\n", "trrust.txt", "cannot be told from the first line"),
        ("Target_genes\tSRX1|K-562\nISG15\t412.5\n", "STAT1.5.tsv", "'REGULATOR|Average'; got"),
        ("Target_genes\nISG15\n", "STAT1.5.tsv", "'REGULATOR|Average'; got"),
        ("Target_genes\tSTAT1|Average\n", "STAT1.5.tsv", "holds no edge"),
        ("", "empty.csv", "cannot be told from the first line"),
        ("source,target\n,\n", "blank.csv", "holds no edge"),
        ("source,target\nA\0,B\n", "bytes.csv", "is no text file"),
    ],
)
def test_tables_of_other_forms(tmp_path, text, name, says):
    with pytest.raises(ValueError, match=re.escape(says)) as error:
        read(tmp_path, text, name)
    assert name in str(error.value)


def test_what_is_no_table(tmp_path):
    with pytest.raises(ValueError, match="cannot be told"):
        read(tmp_path, "A\tB\tC\tD\n")
    with pytest.raises(ValueError, match="has 1 fields and needs 2"):
        read(tmp_path, "source,target\nA\n", "x.csv")


def test_published_tables(shared):
    collectri = scfast.io.read_network(shared / "data" / "grn" / "collectri_human.csv.gz")
    assert (collectri["source"] == "TP53").sum() == 984
    trrust = scfast.io.read_network(shared / "data" / "grn" / "trrust_rawdata.human.tsv")
    assert len(trrust) == 8427
    assert trrust["source"].nunique() == 795


@pytest.mark.parametrize("ending", ["csv", "parquet", "graphml"])
def test_edges_are_written(tmp_path, ending):
    adata = anndata.AnnData(np.ones((1, 3)), var=pd.DataFrame({"symbol": list("abc")}, index=list("ABC")))
    adata.varp["grn"] = sparse.csr_matrix(np.array([[0, 0.5, -2], [0, 0, 1], [0, 0, 0]]))
    adata.varp["grn_se"] = adata.varp["grn"].copy()
    path = scfast.io.write_network(adata, tmp_path / f"x.{ending}", gene_symbols="symbol", top=2)
    if ending == "graphml":
        graph = networkx.read_graphml(path)
        found = [(a, b, graph[a][b]["weight"], graph[a][b]["se"]) for a, b in graph.edges]
    else:
        table = pd.read_csv(path) if ending == "csv" else pd.read_parquet(path)
        found = list(table.itertuples(index=False, name=None))
    assert sorted(found) == [("a", "c", -2, -2), ("b", "c", 1, 1)]


@pytest.mark.parametrize("ending", ["csv", "parquet", "graphml"])
def test_a_file_that_is_there_is_replaced_or_kept(tmp_path, ending, monkeypatch):
    adata = anndata.AnnData(np.ones((1, 2)), var=pd.DataFrame(index=["A", "B"]))
    adata.varp["grn"] = sparse.csr_matrix(np.array([[0, 0.5], [0, 0]]))
    path = tmp_path / f"x.{ending}"
    path.write_text("older")
    scfast.io.write_network(adata, path)
    whole = path.read_bytes()
    assert whole != b"older"

    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    for name in ("to_csv", "to_parquet"):
        monkeypatch.setattr(pd.DataFrame, name, full)
    monkeypatch.setattr(networkx, "write_graphml", full)
    with pytest.raises(OSError, match="No space left"):
        scfast.io.write_network(adata, path)
    assert path.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [path]


def test_genes_of_one_symbol_are_told_apart(tmp_path):
    adata = anndata.AnnData(np.ones((1, 3)), var=pd.DataFrame({"symbol": ["T", "T", "c"]}, index=list("ABC")))
    adata.varp["grn"] = sparse.csr_matrix(np.array([[0, 0.5, 2], [0, 0, 1], [0, 0, 0]]))
    path = scfast.io.write_network(adata, tmp_path / "x.graphml", gene_symbols="symbol")
    edges = networkx.read_graphml(path).edges
    assert sorted(edges) == [("T (A)", "T (B)"), ("T (A)", "c"), ("T (B)", "c")]


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_what_is_not_written(tmp_path):
    adata = anndata.AnnData(np.ones((1, 3)), var=pd.DataFrame(index=list("ABC")))
    adata.varp["grn"] = sparse.csr_matrix((3, 3))
    for options, error, says in (
        ({"network": "x"}, KeyError, "network='x' is not in"),
        ({"gene_symbols": "x"}, KeyError, "gene_symbols='x' is not in"),
        ({}, ValueError, "has no edge"),
    ):
        with pytest.raises(error, match=says):
            scfast.io.write_network(adata, tmp_path / "x.csv", **options)
    with pytest.raises(ValueError, match=r"x\.txt: a network is written as"):
        scfast.io.write_network(adata, tmp_path / "x.txt")
    adata.varp["grn"] = sparse.csr_matrix(np.ones((3, 3)))
    (tmp_path / "x.csv").mkdir()
    with pytest.raises(ValueError, match=r"x\.csv is a folder: name a file in it"):
        scfast.io.write_network(adata, tmp_path / "x.csv")
    adata.var_names = ["A", "A", "B"]
    with pytest.raises(ValueError, match="not unique"):
        scfast.io.write_network(adata, tmp_path / "y.csv")
