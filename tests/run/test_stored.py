"""Counts on disk: the same results as in memory, and files that are damaged in every way that we could think of."""

from __future__ import annotations

import shutil
import warnings

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

import scfast
from scfast.run import StoredCounts, survey
from scfast.run.fingerprint import fingerprint
from tests.toy import toy_adata, toy_source

ADATA = toy_adata()
PATHS = ["cells.h5ad", "two.zarr", "three.zarr"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("stored")
    adata = ADATA.copy()
    adata.layers["counts"] = adata.X.copy()
    adata.raw = adata[:, ::-1]
    adata.write_h5ad(path / "cells.h5ad")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata.write_zarr(path / "two.zarr")
    scfast.io.convert(path / "cells.h5ad", path / "three.zarr")
    return path


def stored(path, block_cells=5):
    adata = scfast.io.open(path)
    return StoredCounts(adata.X, adata.var, block_cells=block_cells)


@pytest.mark.parametrize("name", PATHS)
@settings(max_examples=30, deadline=None)
@given(rows=st.lists(st.integers(0, ADATA.n_obs - 1), max_size=12), block=st.integers(1, 40))
def test_rows_are_those_of_the_matrix(name, rows, block, folder):
    taken, totals = stored(folder / name, block).take(np.array(rows, dtype=int))
    assert totals is None
    assert taken.has_canonical_format
    np.testing.assert_array_equal(taken.toarray(), ADATA.X[rows].toarray())


@pytest.mark.parametrize("name", ["cells.h5ad", "cells.zarr"])
def test_values_beyond_two_to_the_31(name, tmp_path):
    """Of a matrix that is nowhere but in its last two rows: chunks that were not written take no place."""
    sizes = np.array([*[2**24] * 128, 2, 3])
    n_values, shape = int(sizes.sum()), (len(sizes), 40)
    path, chunk = tmp_path / name, 2**20
    root = h5py.File(path, "w") if path.suffix == ".h5ad" else zarr.open_group(str(path), mode="w")
    group, obs, var = root.create_group("X"), *(pd.DataFrame(index=np.arange(n).astype(str)) for n in shape)
    group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": list(shape)})
    create = group.create_dataset if path.suffix == ".h5ad" else group.create_array
    for part, dtype, last in (("data", "f4", [1, 2, 3, 4, 5]), ("indices", "i4", [3, 39, 0, 7, 8])):
        create(part, shape=(n_values,), chunks=(chunk,), dtype=dtype)
        group[part][2**31 :] = np.array(last, dtype)
    create("indptr", shape=(len(sizes) + 1,), dtype="i8")
    group["indptr"][:] = np.append(0, np.cumsum(sizes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for part, frame in (("obs", obs), ("var", var)):
            ad.io.write_elem(root, part, frame)
    if path.suffix == ".h5ad":
        root.close()
    counts = stored(path, block_cells=2)
    assert int(counts._starts[-2]) == 2**31
    taken, _ = counts.take(np.array([129, 128]))
    expected = np.zeros((2, 40))
    expected[1, [3, 39]], expected[0, [0, 7, 8]] = [1, 2], [3, 4, 5]
    np.testing.assert_array_equal(taken.toarray(), expected)


def test_few_blocks_are_kept(folder):
    counts = stored(folder / "cells.h5ad", 3)
    for row in range(ADATA.n_obs):
        counts.take(np.array([row]))
        assert len(counts._blocks) <= 2


@pytest.mark.parametrize("name", PATHS)
def test_a_tool_gives_what_it_gives_in_memory(name, folder):
    opened, alone = scfast.io.open(folder / name), ADATA.copy()
    assert opened.obs_names.equals(alone.obs_names)
    for adata in (opened, alone):
        scfast.tl.rollout(adata, toy_source(), groupby="type", progress=False)
    np.testing.assert_allclose(
        opened.varm["rollout"].to_numpy(), alone.varm["rollout"].to_numpy(), rtol=1e-5, atol=1e-8
    )
    assert (opened.layers["rollout"] > 0).nnz == (alone.layers["rollout"] > 0).nnz
    assert (
        survey(toy_source(), stored(folder / name)).fingerprint
        == survey(toy_source(), stored(folder / name, 2)).fingerprint
    )


def test_a_run_of_stored_counts_is_continued(folder, tmp_path, monkeypatch):
    def rollout():
        adata = scfast.io.open(folder / "cells.h5ad")
        with scfast.run.resumable(tmp_path, shard_cells=9):
            scfast.tl.rollout(adata, toy_source(), progress=False)
        return adata.varm["rollout"].to_numpy()

    first = rollout()
    monkeypatch.setattr("scfast.run.shards.visit", None)  # nothing is run again
    np.testing.assert_array_equal(rollout(), first)


def test_the_fingerprint_does_not_depend_on_what_was_read(folder):
    counts = stored(folder / "cells.h5ad")
    before = fingerprint(counts)
    counts.take(np.arange(3))
    assert fingerprint(counts) == before


def test_layers_and_raw(folder):
    assert (scfast.io.open(folder / "cells.h5ad", counts="layers/counts").X[:] != ADATA.X).nnz == 0
    raw = scfast.io.open(folder / "cells.h5ad", counts="raw")
    assert list(raw.var_names) == list(ADATA.var_names[::-1])
    with pytest.raises(KeyError, match=r"counts='layers/x' is not in .*which has X, raw, layers/counts"):
        scfast.io.open(folder / "cells.h5ad", counts="layers/x")


def test_what_is_not_stored_by_cell_is_refused(tmp_path):
    for name, matrix in (("csc_matrix", ADATA.X.tocsc()), ("array", ADATA.X.toarray())):
        ad.AnnData(matrix, obs=ADATA.obs, var=ADATA.var).write_h5ad(tmp_path / "x.h5ad")
        with pytest.raises(
            ValueError, match=f"stored as {name}, not cell by cell .* `scfast convert .*x.h5ad x_csr.zarr`"
        ):
            scfast.io.open(tmp_path / "x.h5ad")
    scfast.io.convert(tmp_path / "x.h5ad", tmp_path / "x_csr.zarr")
    assert (scfast.io.open(tmp_path / "x_csr.zarr").X[:] != ADATA.X).nnz == 0
    with pytest.raises(FileExistsError, match="there already"):
        scfast.io.convert(tmp_path / "x.h5ad", tmp_path / "x_csr.zarr")
    with pytest.raises(ValueError, match=r"must end in \.zarr"):
        scfast.io.convert(tmp_path / "x.h5ad", tmp_path / "y.h5ad")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.h5ad", "x_csr.zarr"]


def test_backed_by_gene_is_refused(tmp_path):
    ad.AnnData(ADATA.X.tocsc(), obs=ADATA.obs, var=ADATA.var).write_h5ad(tmp_path / "x.h5ad")
    backed = ad.read_h5ad(tmp_path / "x.h5ad", backed="r")
    with pytest.raises(ValueError, match="stored gene by gene"):
        scfast.tl.rollout(backed, toy_source())


def test_files_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file"):
        scfast.io.open(tmp_path / "none.h5ad")
    (tmp_path / "x.h5ad").write_bytes(b"no hdf5")
    with pytest.raises(OSError, match="cannot be opened"):
        scfast.io.open(tmp_path / "x.h5ad")
    (tmp_path / "x.loom").write_bytes(b"")
    with pytest.raises(ValueError, match=r"neither \.h5ad nor \.zarr"):
        scfast.io.open(tmp_path / "x.loom")


PARTS = ("data", "indices", "indptr")
DAMAGE = st.one_of(
    st.tuples(st.just("cut"), st.sampled_from(PARTS), st.integers(1, 30)),
    st.tuples(st.just("value"), st.just("data"), st.sampled_from([np.nan, np.inf, -np.inf, -1.0])),
    st.tuples(st.just("value"), st.just("indices"), st.sampled_from([-1, 40, 10**6, -(2**31)])),
    st.tuples(st.just("value"), st.just("indptr"), st.sampled_from([-1, 10**6, 2**40])),
    st.tuples(st.just("fall"), st.just("indptr"), st.integers(1, 5)),
    st.tuples(st.just("type"), st.sampled_from(PARTS), st.sampled_from(["S3", "<f4", "<c8", "|b1"])),
    st.tuples(st.just("missing"), st.sampled_from(PARTS), st.none()),
    st.tuples(st.just("file"), st.none(), st.floats(0.02, 0.98)),
    st.tuples(st.just("shape"), st.none(), st.sampled_from([(3, 40), (23, 3), (10**6, 40)])),
)


KINDS = ("plain.h5ad", "packed.h5ad", "two.zarr", "sharded.zarr")
#: Of each kind: more than two hundred in all.
CASES = 55


@pytest.fixture(scope="module")
def lean(tmp_path_factory):
    """Nothing but counts and names, in every way that they are stored."""
    path = tmp_path_factory.mktemp("lean")
    adata = ad.AnnData(ADATA.X, obs=ADATA.obs[[]], var=ADATA.var[[]])
    adata.write_h5ad(path / "plain.h5ad")
    adata.write_h5ad(path / "packed.h5ad", compression="gzip")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adata.write_zarr(path / "two.zarr")
    scfast.io.convert(path / "plain.h5ad", path / "sharded.zarr")
    stored = [zarr.open_group(str(path / name), mode="r") for name in KINDS[2:]]
    assert [group.metadata.zarr_format for group in stored] == [2, 3]
    assert [bool(group["X/data"].shards) for group in stored] == [False, True]
    return path


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=CASES, deadline=None, database=None)
@given(damage=DAMAGE, at=st.floats(0, 0.999))
def test_damaged_files_end_in_an_error_that_names_them(name, damage, at, lean, tmp_path_factory):
    path = tmp_path_factory.mktemp("damaged") / name
    (shutil.copytree if path.suffix == ".zarr" else shutil.copy)(lean / name, path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # zarr 3 warns of texts, which are written here as damage
            changed = spoil(path, damage, at)
        error = outcome(path)
        assert error is not None or not changed, damage
        assert error is None or str(path) in error or "damaged" in error
    finally:
        (shutil.rmtree if path.suffix == ".zarr" else type(path).unlink)(path)


@pytest.mark.parametrize("name", KINDS)
def test_whole_files_of_every_kind_have_results(name, lean):
    assert outcome(lean / name) is None


def outcome(path):
    """What the run of a damaged file said, or None: it has results."""
    try:
        adata = scfast.io.open(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scfast.tl.rollout(adata, toy_source(), progress=False)
    except (ValueError, TypeError, KeyError, OSError) as error:
        return str(error)
    return None


def spoil(path, damage, at):
    """Damage a file; whether that must be noticed."""
    how, part, what = damage
    if how == "file":
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.is_file() and "/X/" in str(p))
            victim = files[int(at * len(files))]
        else:
            victim = path
        data = victim.read_bytes()
        victim.write_bytes(data[: int(len(data) * what)])
        return False  # the file's end may hold nothing that is read
    root = (
        h5py.File(path, "r+")
        if path.suffix == ".h5ad"
        else zarr.open_group(str(path), mode="r+", use_consolidated=False)
    )
    group = root["X"]
    if how == "shape":
        group.attrs["shape"] = np.array(what) if path.suffix == ".h5ad" else list(what)
    else:
        array = np.asarray(group[part][:])
        shards = getattr(group[part], "shards", None)
        layout = {} if shards is None else {"shards": shards, "chunks": group[part].chunks}
        del group[part]
        if how == "cut":
            array = array[:-what]
        elif how == "value":
            if isinstance(what, int) and not np.can_cast(np.min_scalar_type(what), array.dtype):
                array = array.astype(np.int64)
            array[int(at * len(array))] = what
        elif how == "fall":  # one row ends before it begins; both ends are where they were
            first = 1 + int(at * (len(array) - 2))
            array[first] = array[first + 1] + what if first + 1 < len(array) - 1 else array[first - 1] - what
        elif how == "type":
            array = array.astype(what)
        if how != "missing":
            if path.suffix == ".h5ad":
                group.create_dataset(part, data=array)
            else:
                group.create_array(part, data=array, **layout)
    if path.suffix == ".h5ad":
        root.close()
    else:
        (path / ".zmetadata").unlink(missing_ok=True)
    return not (how == "type" and part == "data")  # counts may be of any type of numbers
