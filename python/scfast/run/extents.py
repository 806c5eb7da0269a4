"""Where the bytes of uncompressed arrays lie in their files, so that they are read without a copy in between."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

#: (byte of what is read, byte of the file, number of bytes)
Extent = tuple[int, int, int]
#: Bytes of the checksum after the index of a shard, and what its index says of a chunk that was not written.
_CHECKSUM, _NOT_WRITTEN = 4, 2**64 - 1


def reader_of(
    array: Any, empty: Callable[[int, np.dtype], np.ndarray] = np.empty
) -> Callable[[int, int], np.ndarray]:
    """What reads ``array[start:stop]``, by the bytes of its files where they are the values themselves.

    HDF5 and zarr copy what they read from buffer to buffer, HDF5 chunk by chunk under a lock of its own and zarr in a
    loop of Python's. Values that are stored as they are need neither. Whatever is not as expected (compression, a
    chunk that is missing, a file that ends too early) is left to the library, and so is its error.

    Parameters
    ----------
    array
        One-dimensional: a dataset of h5py, or an array of zarr.
    empty
        Gives the memory for so many values of a dtype.
    """
    places = found(array)

    def read(start: int, stop: int) -> np.ndarray:
        values = empty(stop - start, array.dtype)
        if start < stop and not (places is not None and places.fill(values.data.cast("B"), start, stop)):
            values[...] = array[start:stop]
        return values

    return read


def found(array: Any) -> Places | None:
    """Where the values of an array lie; None: they are not stored as they are."""
    return _of_hdf5(array) if hasattr(array, "id") else _of_zarr(array)


class Places(Protocol):
    """Of the values of one array."""

    def fill(self, out: memoryview, start: int, stop: int) -> bool:
        """Read values start to stop - 1; False: the library has to."""


@dataclass(frozen=True)
class _Hdf5Chunks:
    """Chunks of a dataset, or all of it as one; ``offsets`` int64 [chunks], -1 where a chunk was not written."""

    dataset: Any
    chunk: int
    offsets: np.ndarray

    def fill(self, out: memoryview, start: int, stop: int) -> bool:
        size = self.dataset.dtype.itemsize
        file = self.dataset.file.id.get_vfd_handle()  # the file that HDF5 has open, whatever its name is now
        return _read(file, out, _extents(self.offsets, self.chunk, size, start, stop))


def _of_hdf5(dataset: Any) -> _Hdf5Chunks | None:
    import h5py

    stored, file = dataset.id.get_create_plist(), dataset.file
    as_they_are = (
        stored.get_nfilters() == 0
        and stored.get_external_count() == 0
        and dataset.id.get_type() == h5py.h5t.py_create(dataset.dtype, logical=True)
        and (file.driver, file.mode, file.userblock_size) == ("sec2", "r", 0)
    )
    if (
        not as_they_are
        or dataset.ndim != 1
        or not hasattr(os, "preadv")
        or not hasattr(dataset.id, "chunk_iter")
    ):
        return None
    if stored.get_layout() == h5py.h5d.CONTIGUOUS:
        offset = dataset.id.get_offset()
        return None if offset is None else _Hdf5Chunks(dataset, len(dataset), np.array([offset]))
    if stored.get_layout() != h5py.h5d.CHUNKED:
        return None
    (chunk,) = dataset.chunks
    offsets = np.full(-(-len(dataset) // chunk), -1, dtype=np.int64)

    def note(found: Any) -> None:
        offsets[found.chunk_offset[0] // chunk] = found.byte_offset

    dataset.id.chunk_iter(note)
    return _Hdf5Chunks(dataset, chunk, offsets)


@dataclass(frozen=True)
class _ZarrFiles:
    """Files of a zarr array in a folder, each one chunk or a shard of several."""

    array: Any
    per_file: int
    chunk: int
    indices: dict[int, np.ndarray | None] = field(default_factory=dict)

    def fill(self, out: memoryview, start: int, stop: int) -> bool:
        size, done = self.array.dtype.itemsize, 0
        for number in range(start // self.per_file, (stop - 1) // self.per_file + 1):
            first = number * self.per_file
            inside = max(start - first, 0), min(stop - first, self.per_file)
            n_bytes = (inside[1] - inside[0]) * size
            with _opened(self._path(number)) as file:
                offsets = None if file is None else self._offsets(number, file)
                if file is None or offsets is None:
                    return False
                if not _read(file, out[done : done + n_bytes], _extents(offsets, self.chunk, size, *inside)):
                    return False
            done += n_bytes
        return True

    def _path(self, number: int) -> Path:
        key = self.array.metadata.encode_chunk_key((number,))
        return Path(self.array.store.root) / self.array.path / key

    def _offsets(self, number: int, file: int) -> np.ndarray | None:
        """int64 [chunks] of a file; None: the library has to read it."""
        if self.per_file == self.chunk:
            return np.zeros(1, dtype=np.int64)
        if number not in self.indices:
            # The library compares the checksum of the index, whose error is raised here.
            self.array[number * self.per_file]
            self.indices[number] = self._index(file)
        return self.indices[number]

    def _index(self, file: int) -> np.ndarray | None:
        entries = np.empty((self.per_file // self.chunk, 2), dtype="<u8")
        at = os.fstat(file).st_size - entries.nbytes - _CHECKSUM
        if at < 0 or not _read(file, entries.data.cast("B"), [(0, at, entries.nbytes)]):
            return None
        offsets, sizes = entries.T
        written = offsets != _NOT_WRITTEN
        n_bytes = self.chunk * self.array.dtype.itemsize
        if (sizes[written] != n_bytes).any() or (offsets[written] > at).any():
            return None
        return np.where(written, offsets, 0).astype(np.int64) - ~written


def _of_zarr(array: Any) -> _ZarrFiles | None:
    from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec
    from zarr.storage import LocalStore

    local = isinstance(array.store, LocalStore) and hasattr(os, "preadv")
    if not local or array.ndim != 1 or not array.dtype.isnative:
        return None
    (chunk,) = array.chunks
    if array.metadata.zarr_format == 2:
        as_they_are = array.metadata.compressor is None and not array.metadata.filters
        return _ZarrFiles(array, chunk, chunk) if as_they_are else None

    def plain(codecs: Any, *types: type, order: str = sys.byteorder) -> bool:
        endian = getattr(codecs[0], "endian", None)
        return tuple(map(type, codecs)) == types and (endian is None or endian.value == order)

    codecs = array.metadata.codecs
    if plain(codecs, BytesCodec):
        return _ZarrFiles(array, chunk, chunk)
    sharding = codecs[0]
    if (
        len(codecs) == 1
        and isinstance(sharding, ShardingCodec)
        and sharding.index_location.value == "end"
        and plain(sharding.codecs, BytesCodec)
        and plain(sharding.index_codecs, BytesCodec, Crc32cCodec, order="little")
    ):
        return _ZarrFiles(array, array.shards[0], chunk)
    return None


def _extents(offsets: np.ndarray, chunk: int, size: int, start: int, stop: int) -> list[Extent] | None:
    """Bytes of values start to stop - 1, chunks that are neighbours in the file together; None: some are nowhere."""
    numbers = np.arange(start // chunk, -(-stop // chunk))
    if (offsets[numbers] < 0).any():
        return None
    first, last = np.maximum(start - numbers * chunk, 0), np.minimum(stop - numbers * chunk, chunk)
    begin, n_bytes = offsets[numbers] + first * size, (last - first) * size
    heads = np.flatnonzero(np.append(True, begin[1:] != (begin + n_bytes)[:-1]))
    together = np.add.reduceat(n_bytes, heads)
    return list(
        zip((np.cumsum(together) - together).tolist(), begin[heads].tolist(), together.tolist(), strict=True)
    )


def _read(file: int, out: memoryview, extents: Iterable[Extent] | None) -> bool:
    """Read extents; False where there are none, or the file ends too early."""
    if extents is None:
        return False
    for at, offset, n_bytes in extents:
        while n_bytes:
            if not (done := os.preadv(file, [out[at : at + n_bytes]], offset)):
                return False
            at, offset, n_bytes = at + done, offset + done, n_bytes - done
    return True


@contextmanager
def _opened(path: Path) -> Iterator[int | None]:
    """The file, or None: there is none."""
    try:
        file = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except OSError:
        yield None
        return
    try:
        yield file
    finally:
        os.close(file)
