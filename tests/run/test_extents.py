"""Bytes of arrays read straight from their files: the same values, and to the library what it alone can read."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from scfast.run import extents
from scfast.run.extents import reader_of

SIZE = 1000
VALUES = np.random.default_rng(0).integers(0, 2**31, SIZE)
#: name -> whether the bytes of its files are its values
HDF5 = {
    "contiguous": ({}, True),
    "chunked": ({"chunks": (64,)}, True),
    "one chunk": ({"chunks": (SIZE,)}, True),
    "gzip": ({"chunks": (64,), "compression": "gzip"}, False),
    "checksums": ({"chunks": (64,), "fletcher32": True}, False),
}
ZARR = {
    "chunks of version 2": ({"zarr_format": 2, "chunks": (64,), "compressors": None}, True),
    "chunks": ({"chunks": (64,), "compressors": None}, True),
    "shards": ({"chunks": (16,), "shards": (160,), "compressors": None}, True),
    "zstd": ({"chunks": (16,), "shards": (160,)}, False),
}
TYPES = ("int32", "int64", "uint16", "float32", "float64", "bool")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    path = tmp_path_factory.mktemp("extents")
    with h5py.File(path / "x.h5", "w") as file:
        for dtype in (*TYPES, ">f4"):
            for name, (options, _) in HDF5.items():
                file.create_dataset(f"{name}/{dtype}", data=VALUES.astype(dtype), **options)
    for dtype in TYPES:
        for name, (options, _) in ZARR.items():
            made = {"shape": (SIZE,), "dtype": dtype, **options}
            zarr.create_array(path / name / dtype, **made)[:] = VALUES.astype(dtype)
    with h5py.File(path / "x.h5", "r") as file:
        yield {"hdf5": lambda name: file[name], "zarr": lambda name: zarr.open_array(path / name, mode="r")}


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("name", [*HDF5, *ZARR])
@settings(max_examples=10, deadline=None)
@given(ends=st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)))
def test_the_values_are_those_of_the_library(name, dtype, ends, root):
    kind, direct = ("hdf5", HDF5[name][1]) if name in HDF5 else ("zarr", ZARR[name][1])
    array = root[kind](f"{name}/{dtype}")
    assert (extents.found(array) is not None) == direct
    start, stop = sorted(ends)
    values = reader_of(array)(start, stop)
    assert values.dtype == array.dtype
    np.testing.assert_array_equal(values, array[start:stop])


def test_another_byte_order_stays(root):
    array = root["hdf5"]("chunked/>f4")
    values = reader_of(array)(3, 900)
    assert values.dtype == array.dtype == np.dtype(">f4")
    np.testing.assert_array_equal(values, array[3:900])


def test_chunks_that_were_not_written_hold_the_fill_value(tmp_path):
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("x", (100,), "f4", chunks=(10,), fillvalue=3)[55] = 7
    with h5py.File(tmp_path / "x.h5", "r") as file:
        assert reader_of(file["x"])(0, 100).tolist() == [3.0] * 55 + [7] + [3] * 44
    for name, options in (("a", {"chunks": (10,)}), ("b", {"chunks": (10,), "shards": (50,)})):
        path = str(tmp_path / name)
        array = zarr.create_array(path, shape=(100,), dtype="f4", compressors=None, fill_value=3, **options)
        array[55] = 7
        assert reader_of(zarr.open_array(path, mode="r"))(0, 100).tolist() == [3.0] * 55 + [7] + [3] * 44


@pytest.mark.parametrize("options", [{"chunks": (10,)}, {"chunks": (10,), "shards": (50,)}])
@pytest.mark.parametrize("damage", ["cut", "checksum"])
def test_what_is_damaged_is_left_to_the_library(tmp_path, options, damage):
    zarr.create_array(tmp_path / "a", shape=(100,), dtype="f4", compressors=None, **options)[:] = np.arange(
        1, 101
    )
    array = zarr.open_array(tmp_path / "a", mode="r")
    path = tmp_path / "a" / "c" / "1"
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[:-7])
    else:
        content[-9] ^= 1  # of a chunk a value, of a shard its index
        path.write_bytes(content)
    try:
        expected = array[0:100]
    except Exception as error:
        with pytest.raises(type(error)):
            reader_of(array)(0, 100)
    else:
        np.testing.assert_array_equal(reader_of(array)(0, 100), expected)


def test_a_file_that_is_replaced_stays_the_one_that_is_open(tmp_path):
    for name, value in (("x", 1), ("y", 2)):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["a"] = np.full(100, value)
    with h5py.File(tmp_path / "x.h5", "r") as file:
        read = reader_of(file["a"])
        (tmp_path / "y.h5").replace(tmp_path / "x.h5")
        assert set(read(0, 100)) == {1}
