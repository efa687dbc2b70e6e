"""Rows of one array on disk: the seam behind `Store.rows`.

`ShardedArray` decodes the layout that `stores.writer` makes, directly: zarr-python spends milliseconds of Python per
chunk, and a training batch is hundreds of chunks. Arrays of any other layout (written by other tools) go through
zarr-python.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np

from core.console import UserError
from stores.places import Bucket, Place

_CRC_BYTES = 4
_ROWS_PER_PIECE = 32
_MIN_ROWS_FOR_THREADS = 16
_ABSENT = np.iinfo(np.uint64).max
# Between "bytes" and "crc32c": how a chunk is compressed, if it is.
_COMPRESSORS = ([], ["zstd"], ["blosc"])
_INDEX_CODECS = ("bytes", "crc32c")

Data = bytes | np.ndarray  # bytes of a file; as an array uint8


class DamagedRows(UserError):
    """`what` of a file is missing or damaged; `row` is its first row."""

    def __init__(self, array: str, file: str, what: str, row: int) -> None:
        super().__init__(f"array {array!r} is damaged: {file}: {what}")
        self.what, self.row = what, row


class RowArray(Protocol):
    """What `Store` needs of an array; picklable, usable after a fork."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def read(self, rows: np.ndarray, places: np.ndarray | None = None) -> np.ndarray:
        """Rows (n,) int64, ascending and unique, within bounds -> (n, ...), row i at `places[i]` (default: i) of it."""
        ...


def open_array(place: Place, name: str) -> RowArray:
    """Array `name` of the store at `place`. UserError if there is none."""
    try:
        metadata = json.loads(place.read(f"{name}/zarr.json"))
    except FileNotFoundError as error:
        raise UserError(f"there is no array {name!r} in the store {place}") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{place}/{name}/zarr.json is damaged ({error}); make the store again") from error
    if not _is_ours(metadata):
        return ZarrArray(place, name)
    if isinstance(place, Bucket):
        return BucketArray(place, name, metadata)
    return ShardedArray(place, name, metadata)


def _compressor(codecs: list[dict[str, Any]]) -> list[str] | None:
    """Names of the codecs between "bytes" and "crc32c"; None where those are not the ends."""
    first, *between, last = (codec["name"] for codec in codecs)
    return between if (first, last) == _INDEX_CODECS else None


def _is_ours(metadata: dict[str, Any]) -> bool:
    try:
        (sharding,) = metadata["codecs"]
        settings = sharding["configuration"]
        shard, chunk = metadata["chunk_grid"]["configuration"]["chunk_shape"], settings["chunk_shape"]
        return (
            sharding["name"] == "sharding_indexed"
            and metadata["chunk_grid"]["name"] == "regular"
            and metadata["chunk_key_encoding"] == {"name": "default", "configuration": {"separator": "/"}}
            and _compressor(settings["codecs"]) in _COMPRESSORS
            and tuple(codec["name"] for codec in settings["index_codecs"]) == _INDEX_CODECS
            and settings.get("index_location", "end") == "end"
            and all(
                codec.get("configuration", {}).get("endian", "little") == "little"
                for codec in (settings["codecs"][0], settings["index_codecs"][0])
            )
            and shard[1:] == chunk[1:] == metadata["shape"][1:]
            and isinstance(metadata["data_type"], str)
            and np.dtype(metadata["data_type"]).kind in "iuf"
            and not metadata.get("storage_transformers")
        )
    except (KeyError, TypeError, ValueError):
        return False


class ShardedArray:
    """An array as `stores.writer.create_array` makes it.

    Files are opened anew for every read, so nothing is shared with a fork.
    """

    def __init__(self, place: Place, name: str, metadata: dict[str, Any]) -> None:
        self.place, self.name = place, name
        self.shape = tuple(metadata["shape"])
        self.dtype = np.dtype(metadata["data_type"])
        self._stored = self.dtype.newbyteorder("<")
        self._shard_rows = int(metadata["chunk_grid"]["configuration"]["chunk_shape"][0])
        self._chunk_rows = int(metadata["codecs"][0]["configuration"]["chunk_shape"][0])
        self._compressor = "".join(_compressor(metadata["codecs"][0]["configuration"]["codecs"]) or [])
        # Per Zarr shard: (offset, length) of its chunks, uint64 (chunks, 2).
        self._indices: dict[int, np.ndarray] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_indices": {}}

    def read(self, rows: np.ndarray, places: np.ndarray | None = None) -> np.ndarray:
        """Rows (n,) int64, ascending and unique -> (n, *shape[1:]). UserError for missing or damaged data."""
        result = np.empty((len(rows), *self.shape[1:]), self._stored)
        places = np.arange(len(rows)) if places is None else places

        def read_piece(piece: tuple[int, slice]) -> None:
            shard, span = piece
            self._read_shard(shard, rows[span] - shard * self._shard_rows, result, places[span])

        pieces = [(shard, piece) for shard, span in _runs(rows // self._shard_rows) for piece in self._pieces(span)]
        if self._chunk_rows == 1 and len(rows) >= _MIN_ROWS_FOR_THREADS:
            # Decoding holds no lock of Python's, so threads do it side by side.
            list(_threads().map(read_piece, pieces))
        else:
            for piece in pieces:
                read_piece(piece)
        return result.astype(self.dtype, copy=False)

    def _pieces(self, span: slice) -> Iterator[slice]:
        """A shard's rows in pieces that several threads can share; in a bucket all of them are one request."""
        for start in range(span.start, span.stop, _ROWS_PER_PIECE):
            yield slice(start, min(start + _ROWS_PER_PIECE, span.stop))

    def _read_shard(self, shard: int, rows: np.ndarray, result: np.ndarray, places: np.ndarray) -> None:
        decode = _decoder(self._compressor)
        runs = list(_runs(rows // self._chunk_rows))
        try:
            with contextlib.closing(self._chunks(shard, [chunk for chunk, _ in runs])) as chunks:
                for (chunk, span), data in zip(runs, chunks, strict=True):
                    if self._chunk_rows == 1:
                        place = places[span.start]
                        decode(data, result[place : place + 1])
                    else:
                        decoded = np.frombuffer(decode(data), self._stored)
                        decoded = decoded.reshape(self._chunk_rows, *self.shape[1:])
                        result[places[span]] = decoded[rows[span] - chunk * self._chunk_rows]
        except FileNotFoundError as error:
            raise self._damage(shard, "missing file") from error
        except (RuntimeError, ValueError) as error:  # what decoders raise
            raise self._damage(shard, f"cannot be decoded ({error})") from error

    def _chunks(self, shard: int, chunks: list[int]) -> Iterator[Data]:
        """The chunks' compressed bytes, their checksums taken off; each holds until the next is asked for."""
        with open(f"{self.place}/{self._key(shard)}", "rb", buffering=0) as file:
            if shard not in self._indices:
                size = file.seek(0, 2)
                file.seek(max(0, size - self._index_bytes))
                self._indices[shard] = self._parse_index(shard, file.read(self._index_bytes))
            for chunk, (offset, length) in zip(chunks, self._where(shard, chunks), strict=True):
                room = _room(length)
                found = room[: os.preadv(file.fileno(), [room], offset)]
                yield self._content(shard, chunk, found, length)

    @property
    def _index_bytes(self) -> int:
        return 16 * (self._shard_rows // self._chunk_rows) + _CRC_BYTES

    def _parse_index(self, shard: int, data: bytes) -> np.ndarray:
        if len(data) < self._index_bytes:
            raise self._damage(shard, f"{len(data)} bytes are too few")
        if not _sound(data[:-_CRC_BYTES], data[-_CRC_BYTES:]):
            raise self._damage(shard, "the index fails its checksum")
        return np.frombuffer(data[:-_CRC_BYTES], "<u8").reshape(-1, 2)

    def _where(self, shard: int, chunks: list[int]) -> list[tuple[int, int]]:
        """Offset and length of chunks in their shard's file."""
        places = self._indices[shard][chunks].tolist()
        for chunk, (offset, length) in zip(chunks, places, strict=True):
            if offset == _ABSENT or length < _CRC_BYTES:
                raise self._damage(shard, f"{self._rows_of(shard, chunk)} missing")
        return places

    def _content(self, shard: int, chunk: int, found: Data, length: int) -> Data:
        if len(found) != length:
            raise self._damage(shard, f"{self._rows_of(shard, chunk)} cut off")
        content, checksum = found[:-_CRC_BYTES], found[-_CRC_BYTES:]
        if not _sound(content, checksum):
            raise self._damage(shard, f"{self._rows_of(shard, chunk)} fails its checksum")
        return content

    def _rows_of(self, shard: int, chunk: int) -> str:
        first = shard * self._shard_rows + chunk * self._chunk_rows
        return f"row {first}" if self._chunk_rows == 1 else f"rows {first} to {first + self._chunk_rows - 1}"

    def _key(self, shard: int) -> str:
        return f"{self.name}/c/{shard}" + "/0" * (len(self.shape) - 1)

    def damage(self, shard: int) -> list[str]:
        """What is wrong with a Zarr shard's file: nothing, or a message per chunk, or one for all of it."""
        messages = []
        rows = range(shard * self._shard_rows, min((shard + 1) * self._shard_rows, self.shape[0]))
        for row in rows[:: self._chunk_rows]:
            try:
                self.read(np.array([row]))
            except DamagedRows as error:
                messages.append(error.what)
        return list(dict.fromkeys(messages))

    def _damage(self, shard: int, what: str) -> DamagedRows:
        return DamagedRows(self.name, f"{self.place}/{self._key(shard)}", what, shard * self._shard_rows)


class BucketArray(ShardedArray):
    """The same array in a bucket: one request for a shard's index, one for all chunks wanted of it."""

    place: Bucket

    def _pieces(self, span: slice) -> Iterator[slice]:
        yield span

    def _chunks(self, shard: int, chunks: list[int]) -> Iterator[Data]:
        key = self._key(shard)
        if shard not in self._indices:
            self._indices[shard] = self._parse_index(shard, self.place.read_end(key, self._index_bytes))
        places = self._where(shard, chunks)
        found = self.place.read_ranges(key, places)
        for chunk, (_, length), data in zip(chunks, places, found, strict=True):
            yield self._content(shard, chunk, data, length)


class ZarrArray:
    """Any Zarr array, through zarr-python. UserError: there is no such array; in `read`, its data is damaged."""

    def __init__(self, place: Place, name: str) -> None:
        self.place, self.name = place, name
        array = self._open()
        self.shape = tuple(array.shape)
        self.dtype = array.dtype

    def _open(self) -> Any:
        import zarr

        store = self.place.zarr_store() if isinstance(self.place, Bucket) else str(self.place)
        try:
            return zarr.open_array(store, path=self.name, mode="r")
        except FileNotFoundError as error:
            raise UserError(f"there is no array {self.name!r} in the store {self.place}") from error

    def read(self, rows: np.ndarray, places: np.ndarray | None = None) -> np.ndarray:
        """Rows (n,) int64, ascending and unique -> (n, ...)."""
        array = self._open()
        try:
            if len(rows) and rows[-1] - rows[0] == len(rows) - 1:
                values = np.asarray(array[int(rows[0]) : int(rows[-1]) + 1])
            else:
                values = np.asarray(array.oindex[rows])
            return values if places is None else values[np.argsort(places)]
        except (ValueError, RuntimeError, OSError) as error:  # checksums, codecs, files
            raise UserError(
                f"array {self.name!r} of {self.place} is damaged or cannot be read ({error}); the target `verify` says "
                "which shard to make again"
            ) from error


def _decoder(compressor: str) -> Callable[..., Any]:
    """A function of a chunk's bytes and perhaps the array to fill, else it returns bytes; it holds no lock of Python's.

    Whatever it cannot decode is a ValueError or a RuntimeError.
    """
    if compressor == "zstd":
        from numcodecs.zstd import decompress

        return decompress
    if compressor == "blosc":
        from numcodecs import blosc

        blosc.use_threads = False  # as zarr-python sets it: our threads are enough
        return blosc.decompress

    def copy(data: bytes, target: np.ndarray | None = None) -> bytes:
        if target is not None:
            target[...] = np.frombuffer(data, target.dtype).reshape(target.shape)
        return data

    return copy


_own = threading.local()


def _room(size: int) -> np.ndarray:
    """(size,) uint8 of this thread's own, the same memory each time: what is new to a process costs more than reading into it."""
    room = getattr(_own, "room", None)
    if room is None or len(room) < size:
        room = _own.room = np.empty(size * 5 // 4, np.uint8)
    return room[:size]


def _sound(content: Data, checksum: Data) -> bool:
    import google_crc32c

    return google_crc32c.value(content) == int.from_bytes(bytes(checksum), "little")


_pool: tuple[int, ThreadPoolExecutor] | None = None


def _threads() -> ThreadPoolExecutor:
    """Threads that all readers of this process share; a fork has none of its parent's, so it gets its own."""
    global _pool
    if _pool is None or _pool[0] != os.getpid():
        count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        _pool = (os.getpid(), ThreadPoolExecutor(min(8, count), thread_name_prefix="rows"))
    return _pool[1]


def _runs(values: np.ndarray) -> Iterator[tuple[int, slice]]:
    """(value, where) for every run of equal values in an ascending array."""
    if not len(values):
        return
    starts = np.flatnonzero(np.r_[True, values[1:] != values[:-1]])
    stops = np.r_[starts[1:], len(values)]
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        yield int(values[start]), slice(start, stop)
