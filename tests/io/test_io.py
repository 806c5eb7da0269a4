import gzip
import json

import anndata as ad
import numpy as np
import pytest

import scfast


def test_h5ad_goes_and_comes_back(tmp_path):
    adata = ad.AnnData(np.eye(3, dtype=np.float32))
    path = scfast.io.write_h5ad(adata, tmp_path / "new" / "cells.h5ad")
    assert [file.name for file in path.parent.iterdir()] == ["cells.h5ad"]
    np.testing.assert_array_equal(scfast.io.read(path).X, adata.X)


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.h5ad"):
        scfast.io.read(tmp_path / "none.h5ad")
    (tmp_path / "cells.loom").touch()
    with pytest.raises(ValueError, match=r"neither \.h5ad nor \.zarr"):
        scfast.io.read(tmp_path / "cells.loom")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = scfast.io.write_h5ad(ad.AnnData(np.eye(2)), tmp_path / "cells.h5ad")
    before = path.read_bytes()
    monkeypatch.setattr(
        ad.AnnData, "write_h5ad", lambda self, part, **_: (_ for _ in ()).throw(OSError("full"))
    )
    with pytest.raises(OSError, match="full"):
        scfast.io.write_h5ad(ad.AnnData(np.eye(3)), path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("genes.txt", "LYZ\nCD3D\n\n"),
        ("genes.json", json.dumps(["LYZ", "CD3D"])),
        ("tokens.json", json.dumps({"CD3D": 3, "<pad>": 0, "<mask>": 1, "LYZ": 2})),
        ("genes.txt.gz", "LYZ\nCD3D"),
    ],
)
def test_vocabularies(tmp_path, name, text):
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    assert scfast.io.read_vocabulary(path) == ["LYZ", "CD3D"]


def test_vocabularies_that_make_no_sense(tmp_path):
    path = tmp_path / "genes.txt"
    path.write_text("<pad>\n")
    with pytest.raises(ValueError, match="no gene ids"):
        scfast.io.read_vocabulary(path)
    path.write_text("A\nB\nA\n")
    with pytest.raises(ValueError, match="'A' more than once"):
        scfast.io.read_vocabulary(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.csv", "gene,median\nLYZ,2.5\nCD3D,1\n"),
        ("m.csv", "LYZ,2.5\nCD3D,1"),
        ("m.json", '{"LYZ": 2.5, "CD3D": 1}'),
    ],
)
def test_medians(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert scfast.io.read_medians(tmp_path / name) == {"LYZ": 2.5, "CD3D": 1.0}


@pytest.mark.parametrize("value", ["0", "-1", "nan", "many"])
def test_medians_must_be_positive(tmp_path, value):
    (tmp_path / "m.csv").write_text(f"gene,median\nA,1\nB,{value}\n")
    with pytest.raises(ValueError, match="median of 'B'"):
        scfast.io.read_medians(tmp_path / "m.csv")
