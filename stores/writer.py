"""Writing stores: shards are encoded in memory and published by rename: a killed job leaves nothing half-written."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from console import UserError, atomic_path, digest_file
from stores.plan import ShardPlan
from stores.schema import IMAGE_IDS, ZSTD_LEVEL, ArraySpec, shard_key


def create_array(store: Any, path: str, spec: ArraySpec, rows: int, shard_rows: int):
    """A sharded, compressed, checksummed Zarr array of `rows` rows at `path` in a zarr store."""
    import zarr
    from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, ZstdCodec

    return zarr.create_array(
        store,
        name=path or None,
        shape=(rows, *spec.shape),
        dtype=spec.dtype,
        chunks=(shard_rows, *spec.shape),
        fill_value=np.dtype(spec.dtype).type(spec.fill),
        serializer=ShardingCodec(
            chunk_shape=(spec.chunk_rows(shard_rows), *spec.shape),
            codecs=[BytesCodec(), ZstdCodec(level=ZSTD_LEVEL), Crc32cCodec()],
            index_codecs=[BytesCodec(), Crc32cCodec()],
        ),
        compressors=None,
        filters=None,
        # A chunk of fill values is written like any other: a missing file or chunk is then always damage.
        config={"write_empty_chunks": True},
        zarr_format=3,
    )


def encode_shard(values: np.ndarray, spec: ArraySpec, shard_rows: int) -> bytes:
    """The bytes of one Zarr shard holding `values` (n <= shard_rows, *spec.shape): those zarr itself would write."""
    from zarr.storage import MemoryStore

    content: dict[str, Any] = {}
    array = create_array(MemoryStore(content), "", spec, len(values), shard_rows)
    array[...] = values
    return content[shard_key("", 0, spec).removeprefix("/")].to_bytes()


def check_store_path(store: str | os.PathLike[str]) -> Path:
    """A path that may become a store. UserError unless it ends in `.zarr`: sealing removes foreign files below it."""
    path = Path(store)
    if path.suffix != ".zarr":
        raise UserError(f"--store {path}: a store's folder ends in .zarr (files that are no part of it are removed)")
    return path


def unseal(store: str | os.PathLike[str]) -> None:
    """Remove a store's root metadata: its parts are about to change, nobody may open it until it is sealed again."""
    Path(store, "zarr.json").unlink(missing_ok=True)


def publish(store: str | os.PathLike[str], key: str, data: bytes) -> str:
    """Put file `key` of a store in place, atomically; returns its sha256.

    A file that already holds `data` is left alone. Otherwise the store is unsealed before and after: a job that was
    believed dead and comes back after the seal can make a store unopenable, but not wrong.
    """
    path = Path(store, key)
    digest = hashlib.sha256(data).hexdigest()
    if path.is_file() and path.stat().st_size == len(data) and digest_file(path) == digest:
        return digest
    unseal(store)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
    unseal(store)
    return digest


def write_zarr_shard(
    store: str | os.PathLike[str],
    index: int,
    rows: Mapping[str, np.ndarray],
    arrays: Mapping[str, ArraySpec],
    plan: ShardPlan,
) -> dict[str, str]:
    """Publish Zarr shard `index` of every array.

    Args:
        store: folder of the store. rows: per array (n, *spec.shape), n as in `plan.zarr_shard_rows(index)`.
        arrays: the store's arrays.

    Returns:
        sha256 of each file written, by its path relative to the store.

    Raises:
        ValueError: an array is missing, or has another shape or dtype than its spec.
    """
    if rows.keys() != arrays.keys():
        raise ValueError(f"a shard needs the arrays {sorted(arrays)}, not {sorted(rows)}")
    count = len(plan.zarr_shard_rows(index))
    for name, spec in arrays.items():
        values = rows[name]
        if values.shape != (count, *spec.shape) or values.dtype != np.dtype(spec.dtype):
            raise ValueError(
                f"array {name} of Zarr shard {index} wants {spec.dtype} {(count, *spec.shape)}, "
                f"not {values.dtype} {values.shape}"
            )
    files = {}
    for name, spec in arrays.items():
        key = shard_key(name, index, spec)
        files[key] = publish(store, key, encode_shard(rows[name], spec, plan.shard_rows))
    return files


def encode_metadata(
    arrays: Mapping[str, ArraySpec], plan: ShardPlan, image_ids: Sequence[str], attributes: Mapping[str, Any]
) -> dict[str, bytes]:
    """Every file of a store that is not a shard, by its path relative to the store: metadata and `image_ids`."""
    import zarr
    from zarr.codecs import Crc32cCodec, ZstdCodec
    from zarr.storage import MemoryStore

    content: dict[str, Any] = {}
    memory = MemoryStore(content)
    group = zarr.create_group(memory, attributes=dict(attributes), zarr_format=3)
    for name, spec in arrays.items():
        create_array(memory, name, spec, plan.images, plan.shard_rows)
    ids = group.create_array(
        IMAGE_IDS,
        shape=(len(image_ids),),
        dtype=str,
        chunks=(len(image_ids),),
        compressors=[ZstdCodec(level=ZSTD_LEVEL), Crc32cCodec()],
        config={"write_empty_chunks": True},
    )
    ids[:] = np.array(image_ids, dtype=object)
    return {key: value.to_bytes() for key, value in content.items()}


def write_metadata(
    store: str | os.PathLike[str],
    arrays: Mapping[str, ArraySpec],
    plan: ShardPlan,
    image_ids: Sequence[str],
    attributes: Mapping[str, Any],
) -> None:
    """Write the arrays' metadata and `image_ids`, then, last and atomically, the root that makes the store openable."""
    files = encode_metadata(arrays, plan, image_ids, attributes)
    root = files.pop("zarr.json")
    for key, data in sorted(files.items()):
        with atomic_path(Path(store, key)) as temporary:
            temporary.write_bytes(data)
    with atomic_path(Path(store, "zarr.json")) as temporary:
        temporary.write_bytes(root)
