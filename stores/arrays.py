"""Rows of one array on disk: the seam behind `Store.rows`.

`ShardedArray` decodes the layout that `stores.writer` makes, directly: zarr-python spends milliseconds of Python per
chunk, and a training batch is hundreds of chunks. Arrays of any other layout (written by other tools) go through
zarr-python.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from console import UserError

_CRC_BYTES = 4
_ABSENT = np.iinfo(np.uint64).max
_INNER_CODECS = ("bytes", "zstd", "crc32c")
_INDEX_CODECS = ("bytes", "crc32c")


class RowArray(Protocol):
    """What `Store` needs of an array; picklable, usable after a fork."""

    shape: tuple[int, ...]
    dtype: np.dtype

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Rows (n,) int64, ascending and unique, within bounds -> (n, ...)."""
        ...


def open_array(folder: Path) -> RowArray:
    """The array in `folder`. UserError if there is none."""
    try:
        metadata = json.loads((folder / "zarr.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"there is no array {folder.name!r} in the store {folder.parent}") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{folder / 'zarr.json'} is damaged ({error}); make the store again") from error
    return ShardedArray(folder, metadata) if _is_ours(metadata) else ZarrArray(str(folder.parent), folder.name)


def _is_ours(metadata: dict[str, Any]) -> bool:
    try:
        (sharding,) = metadata["codecs"]
        settings = sharding["configuration"]
        shard, chunk = metadata["chunk_grid"]["configuration"]["chunk_shape"], settings["chunk_shape"]
        return (
            sharding["name"] == "sharding_indexed"
            and metadata["chunk_grid"]["name"] == "regular"
            and metadata["chunk_key_encoding"] == {"name": "default", "configuration": {"separator": "/"}}
            and tuple(codec["name"] for codec in settings["codecs"]) == _INNER_CODECS
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

    def __init__(self, folder: Path, metadata: dict[str, Any]) -> None:
        self.folder = folder
        self.shape = tuple(metadata["shape"])
        self.dtype = np.dtype(metadata["data_type"])
        self._stored = self.dtype.newbyteorder("<")
        self._shard_rows = int(metadata["chunk_grid"]["configuration"]["chunk_shape"][0])
        self._chunk_rows = int(metadata["codecs"][0]["configuration"]["chunk_shape"][0])
        self._chunk_bytes = int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize * self._chunk_rows
        # Per Zarr shard: (offset, length) of its chunks, uint64 (chunks, 2).
        self._indices: dict[int, np.ndarray] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_indices": {}}

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Rows (n,) int64, ascending and unique -> (n, *shape[1:]). UserError for missing or damaged data."""
        result = np.empty((len(rows), *self.shape[1:]), self._stored)
        for shard, span in _runs(rows // self._shard_rows):
            self._read_shard(shard, rows[span] - shard * self._shard_rows, result[span])
        return result.astype(self.dtype, copy=False)

    def _read_shard(self, shard: int, rows: np.ndarray, result: np.ndarray) -> None:
        from numcodecs.zstd import Zstd

        path = self._path(shard)
        codec = Zstd()
        try:
            with open(path, "rb", buffering=0) as file:
                index = self._index(shard, file)
                for chunk, span in _runs(rows // self._chunk_rows):
                    data = self._chunk(shard, chunk, index[chunk], file)
                    if self._chunk_rows == 1:
                        codec.decode(data, out=result[span])
                    else:
                        decoded = np.frombuffer(codec.decode(data), self._stored)
                        decoded = decoded.reshape(self._chunk_rows, *self.shape[1:])
                        result[span] = decoded[rows[span] - chunk * self._chunk_rows]
        except FileNotFoundError as error:
            raise self._damage(shard, "missing file") from error
        except (RuntimeError, ValueError) as error:  # what zstd and reshape raise
            raise self._damage(shard, f"cannot be decoded ({error})") from error

    def _index(self, shard: int, file: Any) -> np.ndarray:
        index = self._indices.get(shard)
        if index is None:
            length = 16 * (self._shard_rows // self._chunk_rows)
            size = file.seek(0, 2)
            if size < length + _CRC_BYTES:
                raise self._damage(shard, f"{size} bytes are too few")
            file.seek(size - length - _CRC_BYTES)
            data = self._checked(shard, file.read(length + _CRC_BYTES), "the index")
            index = np.frombuffer(data, "<u8").reshape(-1, 2)
            self._indices[shard] = index
        return index

    def _chunk(self, shard: int, chunk: int, place: np.ndarray, file: Any) -> bytes:
        offset, length = (int(value) for value in place)
        first = shard * self._shard_rows + chunk * self._chunk_rows
        what = f"row {first}" if self._chunk_rows == 1 else f"rows {first} to {first + self._chunk_rows - 1}"
        if offset == _ABSENT or length < _CRC_BYTES:
            raise self._damage(shard, f"{what} missing")
        file.seek(offset)
        data = file.read(length)
        if len(data) != length:
            raise self._damage(shard, f"{what} cut off")
        return self._checked(shard, data, what)

    def _checked(self, shard: int, data: bytes, what: str) -> bytes:
        import google_crc32c

        content = data[:-_CRC_BYTES]
        if google_crc32c.value(content) != int.from_bytes(data[-_CRC_BYTES:], "little"):
            raise self._damage(shard, f"{what} fails its checksum")
        return content

    def _path(self, shard: int) -> Path:
        return self.folder / "c" / str(shard) / Path(*["0"] * (len(self.shape) - 1))

    def _damage(self, shard: int, what: str) -> UserError:
        return UserError(
            f"array {self.folder.name!r} of {self.folder.parent} is damaged: {self._path(shard)}: {what}; "
            "sealing the store again says which shard to make again"
        )


class ZarrArray:
    """Any Zarr array, through zarr-python: array `name` of the group in `store`, which zarr opens or is given open.

    Raises:
        UserError: there is no such array; in `read`, its data is damaged.
    """

    def __init__(self, store: str, name: str, opened: Any = None) -> None:
        import zarr

        self.store, self.name = store, name
        try:
            self._array = zarr.open_array(opened or store, path=name, mode="r")
        except FileNotFoundError as error:
            raise UserError(f"there is no array {name!r} in the store {store}") from error
        self.shape = tuple(self._array.shape)
        self.dtype = self._array.dtype

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Rows (n,) int64, ascending and unique -> (n, ...)."""
        try:
            if len(rows) and rows[-1] - rows[0] == len(rows) - 1:
                return np.asarray(self._array[int(rows[0]) : int(rows[-1]) + 1])
            return np.asarray(self._array.oindex[rows])
        except (ValueError, RuntimeError, OSError) as error:  # checksums, codecs, files
            raise UserError(
                f"array {self.name!r} of {self.store} is damaged or cannot be reached ({error}); sealing the store again "
                "says which shard to make again"
            ) from error


def _runs(values: np.ndarray) -> Iterator[tuple[int, slice]]:
    """(value, where) for every run of equal values in an ascending array."""
    if not len(values):
        return
    starts = np.flatnonzero(np.r_[True, values[1:] != values[:-1]])
    stops = np.r_[starts[1:], len(values)]
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        yield int(values[start]), slice(start, stop)
