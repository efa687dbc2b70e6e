"""Writing stores: shards are encoded in memory and published by rename: a killed job leaves nothing half-written."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from core.console import UserError
from stores.features import dimension_names
from stores.places import Location, place_of
from stores.plan import ShardPlan
from stores.schema import CONTENT_HASHES, IMAGE_IDS, LZ4_LEVEL, ZSTD_LEVEL, ArraySpec, shard_key


def _compressors(spec: ArraySpec) -> list[Any]:
    from zarr.codecs import BloscCodec, ZstdCodec

    if spec.compression == "none":
        return []
    if spec.compression == "zstd":
        return [ZstdCodec(level=ZSTD_LEVEL)]
    # What LZ4 finds are the zeros of a ReLU, which stand together as they are; bytes sorted by their place in a number would
    # part them. "hc" is LZ4 made with more patience.
    return [BloscCodec(cname="lz4hc", clevel=LZ4_LEVEL, shuffle="noshuffle", typesize=np.dtype(spec.dtype).itemsize)]


def create_array(store: Any, path: str, spec: ArraySpec, rows: int, shard_rows: int):
    """A sharded, compressed, checksummed Zarr array of `rows` rows at `path` in a zarr store."""
    import zarr
    from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec

    return zarr.create_array(
        store,
        name=path or None,
        shape=(rows, *spec.shape),
        dtype=spec.dtype,
        chunks=(shard_rows, *spec.shape),
        fill_value=np.dtype(spec.dtype).type(spec.fill),
        serializer=ShardingCodec(
            chunk_shape=(spec.chunk_rows(shard_rows), *spec.shape),
            codecs=[BytesCodec(), *_compressors(spec), Crc32cCodec()],
            index_codecs=[BytesCodec(), Crc32cCodec()],
        ),
        compressors=None,
        filters=None,
        dimension_names=dimension_names(path, 1 + len(spec.shape)) if path else None,
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


def check_store_path(store: Location) -> None:
    """UserError unless a path or address ends in `.zarr`: sealing removes foreign files below it."""
    if not os.fspath(store).endswith(".zarr"):
        raise UserError(f"--store {store}: a store's folder ends in .zarr (files that are no part of it are removed)")


def unseal(store: Location) -> None:
    """Remove a store's root metadata: its parts are about to change, nobody may open it until it is sealed again."""
    place_of(store).remove("zarr.json")


def publish(store: Location, key: str, data: bytes) -> str:
    """Put file `key` of a store in place, atomically; returns its sha256.

    A file that already holds `data` is left alone. Otherwise the store is unsealed before and after: a job that was
    believed dead and comes back after the seal can make a store unopenable, but not wrong.
    """
    place = place_of(store)
    digest = hashlib.sha256(data).hexdigest()
    if place.size(key) == len(data) and place.digest(key) == digest:
        return digest
    unseal(store)
    place.write(key, data)
    unseal(store)
    return digest


def write_zarr_shard(
    store: Location,
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
    arrays: Mapping[str, ArraySpec],
    plan: ShardPlan,
    image_ids: Sequence[str],
    attributes: Mapping[str, Any],
    content_hashes: Sequence[str] | None = None,
) -> dict[str, bytes]:
    """Every file of a store that is not a shard, by its path relative to the store: metadata, `image_ids` and hashes."""
    import zarr
    from zarr.codecs import Crc32cCodec, ZstdCodec
    from zarr.storage import MemoryStore

    content: dict[str, Any] = {}
    memory = MemoryStore(content)
    group = zarr.create_group(memory, attributes=dict(attributes), zarr_format=3)
    for name, spec in arrays.items():
        create_array(memory, name, spec, plan.images, plan.shard_rows)
    for name, texts in ((IMAGE_IDS, image_ids), (CONTENT_HASHES, content_hashes)):
        if texts is None:
            continue
        array = group.create_array(
            name,
            shape=(len(texts),),
            dtype=str,
            chunks=(len(texts),),
            compressors=[ZstdCodec(level=ZSTD_LEVEL), Crc32cCodec()],
            dimension_names=["image"],
            config={"write_empty_chunks": True},
        )
        array[:] = np.array(texts, dtype=object)
    files = {key: value.to_bytes() for key, value in content.items()}
    return files | {"zarr.json": _with_members(files)}


def _with_members(files: Mapping[str, bytes]) -> bytes:
    """The root's metadata with those of its arrays: xarray and others look there first, and warn where nothing is."""
    suffix = "/zarr.json"
    members = {key.removesuffix(suffix): json.loads(files[key]) for key in sorted(files) if key.endswith(suffix)}
    listed = {"kind": "inline", "must_understand": False, "metadata": members}
    return json.dumps(json.loads(files["zarr.json"]) | {"consolidated_metadata": listed}, indent=2).encode()


def without_members(root: bytes) -> Any:
    """What a root's metadata hold beside its arrays': all that there was in stores sealed before they did."""
    return {key: value for key, value in json.loads(root).items() if key != "consolidated_metadata"}


def write_metadata(
    store: Location,
    arrays: Mapping[str, ArraySpec],
    plan: ShardPlan,
    image_ids: Sequence[str],
    attributes: Mapping[str, Any],
    content_hashes: Sequence[str] | None = None,
) -> bytes:
    """Write the arrays' metadata and `image_ids`, then, last and atomically, the root that makes the store openable.

    Returns:
        The root, `zarr.json`.
    """
    place = place_of(store)
    files = encode_metadata(arrays, plan, image_ids, attributes, content_hashes)
    root = files.pop("zarr.json")
    for key, data in sorted(files.items()):
        place.write(key, data)
    place.write("zarr.json", root)
    return root
