"""Gene sets and clusters from files, hostile ones among them."""

from __future__ import annotations

import gzip
import random

import pytest

import scfast
from scfast.io import gene_sets, read_clusters, read_gmt


def test_sets(tmp_path):
    text = "\ufeffA\tabout\tG1\tG2\tG1\t\r\n\n  \nB with space\t\tG3\r\n"
    (tmp_path / "sets.gmt").write_bytes(text.encode())
    expected = {"A": ["G1", "G2"], "B with space": ["G3"]}
    assert read_gmt(tmp_path / "sets.gmt") == expected
    with gzip.open(tmp_path / "sets.gmt.gz", "wt", encoding="utf-8") as file:
        file.write(text)
    assert read_gmt(str(tmp_path / "sets.gmt.gz")) == expected


def test_sets_without_genes_are_counted(tmp_path):
    (tmp_path / "sets.gmt").write_text("A\tabout\nB\tabout\tG1\nC\tabout\t\t\n")
    with pytest.warns(UserWarning, match=r"2 sets have no gene \(A, C\)"):
        assert read_gmt(tmp_path / "sets.gmt") == {"B": ["G1"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no set with genes"),
        (b"A about G1 G2\n", "line 1 has no tab"),
        (b"A\tx\tG1\n\tx\tG2\n", "line 2 has no name"),
        (b"A\tx\tG1\nA\tx\tG2\n", "line 2: the set 'A' stands there twice"),
        (b"A\tx\t\xff\xfe\n", "cannot be read as text"),
        (b"A\tx\tG\0\n", "zero bytes"),
    ],
)
def test_bad_files_are_refused(tmp_path, content, message):
    (tmp_path / "sets.gmt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_gmt(tmp_path / "sets.gmt")


def test_bad_compression_is_refused(tmp_path):
    whole = gzip.compress(b"A\tx\t" + b"\t".join(b"G%d" % i for i in range(9999)) + b"\n")
    for number, content in enumerate(
        (b"A\tx\tG1\n", whole[: len(whole) // 2], whole[:50] + b"\0" * 30 + whole[80:])
    ):
        path = tmp_path / f"{number}.gmt.gz"
        path.write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read as text"):
            read_gmt(path)


def test_endless_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(gene_sets, "MAX_CHARACTERS", 1000)
    for number, text in enumerate(("A\tx\t" + "G" * 5000, "A\tx\tG\n" * 5000)):
        path = tmp_path / f"{number}.gmt.gz"
        path.write_bytes(gzip.compress(text.encode()))
        with pytest.raises(ValueError, match=r"more than 1,000 characters|stands there twice"):
            read_gmt(path)


def test_any_bytes_give_sets_or_a_value_error(tmp_path):
    rng = random.Random(0)
    for _ in range(200):
        path = tmp_path / "sets.gmt"
        path.write_bytes(bytes(rng.choices(b"AB\t\n\r\0 \xc3\xa9;\"',", k=rng.randrange(40))))
        for read in (read_gmt, read_clusters):
            try:
                read(path)
            except (ValueError, KeyError, UserWarning):
                continue


def test_published_sets(shared):
    sets = read_gmt(shared / "data" / "genesets" / "msigdb_hallmark_v2025.Hs.symbols.gmt")
    assert len(sets) == 50
    assert sum(map(len, sets.values())) == 7322


def test_two_columns(tmp_path):
    (tmp_path / "a.csv").write_text('gene,cluster\nG1,one\nG2,"two, or more"\nG3,\n')
    assert read_clusters(tmp_path / "a.csv") == {"G1": "one", "G2": "two, or more"}
    (tmp_path / "a.tsv").write_text("G1\tone\nG2\t3\n\nG1\tone\n")
    assert read_clusters(tmp_path / "a.tsv") == {"G1": "one", "G2": "3"}


def test_atlas_columns(tmp_path):
    (tmp_path / "proteinatlas.tsv").write_text(
        "Gene\tEnsembl\tTissue expression cluster\tSingle cell expression cluster\tRNA TS TPM\n"
        "TSPAN6\tENSG1\tLiver - Metabolism\tHepatocytes - Metabolism\tadipose tissue: 10.1;seminal vesicle: 33.2\n"
        "TNMD\tENSG2\t\t46: Fibroblasts\tliver: 1e3\n"
    )
    path = tmp_path / "proteinatlas.tsv"
    assert read_clusters(path, "Tissue expression cluster") == {"ENSG1": "Liver - Metabolism"}
    assert read_clusters(path, "Single cell expression cluster")["ENSG2"] == "46: Fibroblasts"
    assert read_clusters(path, "RNA TS TPM", genes="Gene") == {"TSPAN6": "adipose tissue", "TNMD": "liver"}
    with pytest.raises(KeyError, match="no column 'Blood'"):
        read_clusters(path, "Blood")
    with pytest.raises(ValueError, match="5 columns: name the one"):
        read_clusters(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "0 columns"),
        ("gene,cluster\n", "gives no gene a cluster"),
        ("G1,a\nG1,b\n", "gene 'G1' is in 'a' and in 'b'"),
        ("G1,a\nG2\n", "a row has 1 fields"),
    ],
)
def test_bad_clusters_are_refused(tmp_path, text, message):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_clusters(tmp_path / "a.csv")


def test_top_tissue_of_each_gene(shared):
    path = shared / "data" / "genes" / "hpa_gene_annotation_2019.csv.gz"
    tissues = scfast.io.read_clusters(path, "RNA TS TPM")
    assert len(tissues) == 7904
    assert len(set(tissues.values())) < 40
    assert {"liver", "testis"} <= set(tissues.values())
