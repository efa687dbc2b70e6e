"""What a feature store looks like on disk: Zarr v3 arrays, one row per image of the index, and root attributes.

Every array is sharded along its first axis: a Zarr shard (one file) holds up to 512 images, a chunk in it one image,
or, where a row is small, all of the shard's. Chunks are compressed (`COMPRESSIONS`), and they and the shard's index carry
a CRC-32C, so a flipped byte is an error, not a feature.

Root attributes: `schema_version`, `feature`, `extractor` (settings and recipe), `weights_digest`, `index_digest`,
`fingerprint`, `arrays` and `plan` (as in
`describe_store`), `dropped` (ids of images without features), `failures` (why), and what the
extractor adds, e.g. `class_names`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from core.features import COMPRESSIONS
from stores.plan import ShardPlan

SCHEMA_VERSION = 1
ZSTD_LEVEL = 1
LZ4_LEVEL = 5
IMAGE_IDS = "image_ids"
CONTENT_HASHES = "content_hashes"  # of the image files, as in the index
#: Settings of extractors that change no row: where the weights lie, whose digest counts, and how many images they take at a time.
WITHOUT_EFFECT = frozenset({"weights", "batch_size"})


def deciding(extractor: Mapping[str, Any] | None) -> dict[str, Any]:
    """Those settings of an extractor that decide about its rows."""
    return {key: value for key, value in (extractor or {}).items() if key not in WITHOUT_EFFECT}


# A row below this many bytes is not worth a chunk of its own: a chunk costs 16 bytes of index and about 20 of framing
# on disk, and as much time to read as some kilobytes of data.
_SMALL_ROW_BYTES = 1024


@dataclass(frozen=True)
class ArraySpec:
    """One array of a store.

    Attributes:
        shape: of a row. dtype: numpy's name. fill: value of rows without an image.
        compression: one of `COMPRESSIONS`.
    """

    shape: tuple[int, ...]
    dtype: str
    fill: float | int
    compression: str = COMPRESSIONS[0]

    def empty(self, rows: int) -> np.ndarray:
        """(rows, *shape) filled with `fill`."""
        return np.full((rows, *self.shape), self.fill, self.dtype)

    def chunk_rows(self, shard_rows: int) -> int:
        """Rows of a chunk in a Zarr shard of `shard_rows` rows."""
        row_bytes = int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize
        return shard_rows if row_bytes < _SMALL_ROW_BYTES else 1


def shard_key(name: str, index: int, spec: ArraySpec) -> str:
    """File of Zarr shard `index` of array `name`, relative to the store."""
    return f"{name}/c/{index}" + "/0" * len(spec.shape)


@dataclass(frozen=True)
class Source:
    """What a store's rows are made by: all that decides them beside the images.

    Attributes:
        feature: of the store. arrays: of the store, by name.
        extractor: settings and recipe. weights_digest: sha256 of the weights.
        attributes: what readers of the store should know, e.g. class names.
    """

    feature: str
    arrays: Mapping[str, ArraySpec]
    extractor: Mapping[str, Any]
    weights_digest: str
    attributes: Mapping[str, Any]


def describe_store(source: Source, plan: ShardPlan, index_digest: str) -> dict[str, Any]:
    """Everything that decides a store's bytes but the images' failures, as JSON values.

    `core.files.digest_json` of it is the store's fingerprint: parts with different fingerprints never end up in one store.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "feature": source.feature,
        "arrays": {
            name: {
                "shape": list(spec.shape),
                "dtype": np.dtype(spec.dtype).name,
                "fill": spec.fill,
                "chunk_rows": spec.chunk_rows(plan.shard_rows),
                "compression": spec.compression,
            }
            for name, spec in sorted(source.arrays.items())
        },
        "plan": {"images": plan.images, "shards": plan.shards, "shard_rows": plan.shard_rows},
        "extractor": dict(source.extractor),
        "weights_digest": source.weights_digest,
        "index_digest": index_digest,
        "attributes": dict(source.attributes),
    }


def described_arrays(description: Mapping[str, Any]) -> dict[str, ArraySpec]:
    """The `arrays` of `describe_store`, as specs again."""
    return {
        name: ArraySpec(tuple(array["shape"]), array["dtype"], array["fill"], array["compression"])
        for name, array in description["arrays"].items()
    }


def described_source(description: Mapping[str, Any]) -> Source:
    """The source in a `describe_store`."""
    return Source(
        description["feature"],
        described_arrays(description),
        description["extractor"],
        description["weights_digest"],
        description["attributes"],
    )


def compressed(arrays: Mapping[str, ArraySpec], compression: str) -> dict[str, ArraySpec]:
    """The same arrays, compressed in another way."""
    return {name: replace(spec, compression=compression) for name, spec in arrays.items()}
