"""Imports one shard of one feature: the same stores, receipts and seal as an extraction, from files instead of images."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.console import UserError, progress
from exchange.readers import NpzReader, PthReader, ScanReader, TsvReader
from stores.places import Location
from stores.plan import ShardPlan
from stores.receipts import write_receipt
from stores.schema import COMPRESSIONS, compressed, describe_store
from stores.writer import check_store_path, unseal, write_zarr_shard

# Raise when an import would give other bytes than before: stores made with another number are made again.
RECIPE = 1

FORMATS = {"regions": ("scan", "npz", "tsv"), "grids": ("scan", "pth"), "panoptic": ("scan",)}


def open_reader(
    feature: str,
    source: dict[str, Any],
    *,
    image_ids: Sequence[str],
    paths: Sequence[str],
    sizes: Sequence[tuple[int, int]],
) -> Any:
    """The reader that `source` (`format` and its options) asks for. UserError: unknown format or options, unusable files."""
    options = dict(source)
    kind = options.pop("format", None)
    if kind not in FORMATS[feature]:
        raise UserError(f"{feature} cannot be imported from format {kind!r}; choose {' or '.join(FORMATS[feature])}")
    try:
        if kind == "scan":
            reader = ScanReader(feature, **options)
        elif kind == "pth":
            return PthReader(options.pop("path"), image_ids, paths, **options)
        else:
            return {"npz": NpzReader, "tsv": TsvReader}[kind](options.pop("path"), image_ids, paths, sizes, **options)
    except (TypeError, KeyError) as error:
        raise UserError(f"--source of format {kind}: {error}") from error
    if len(reader) != len(image_ids):
        raise UserError(
            f"the files in {reader.folder} have {len(reader)} images, the index {len(image_ids)}: they changed since; "
            "make the index again"
        )
    return reader


def import_shard(
    *,
    feature: str,
    reader: Any,
    image_ids: Sequence[str],
    paths: Sequence[str],
    index_digest: str,
    store: Location,
    receipt: Path,
    shard: int,
    shards: int,
    compression: str = COMPRESSIONS[0],
) -> dict[str, Any]:
    """Import the rows of one shard job, publish its Zarr shards and, last, its receipt; repeated, it gives the same bytes.

    Memory: the rows of one Zarr shard (at most 512). The store's `weights_digest` is the digest of what the configuration
    says of the features' origin: nothing in the files says whose they are.

    Args:
        reader: of `open_reader`. image_ids, paths: of the whole index. store, receipt: where to write.
        compression: of the store, one of `COMPRESSIONS`.

    Returns:
        The receipt; its `rounding` counts what float16 does not hold exactly.

    Raises:
        UserError: values that are not finite, or no such shard.
    """
    start = time.perf_counter()
    plan = ShardPlan(len(image_ids), shards)
    rows = plan.rows(shard)
    arrays = compressed(reader.arrays, compression)
    description = describe_store(
        feature=feature,
        arrays=arrays,
        plan=plan,
        extractor={"engine": "import", "recipe": RECIPE} | reader.settings,
        weights_digest=hashlib.sha256(reader.settings["provenance"].encode()).hexdigest(),
        index_digest=index_digest,
        attributes=reader.attributes,
    )
    check_store_path(store)
    receipt.unlink(missing_ok=True)
    unseal(store)
    failures: list[dict[str, str]] = []
    files: dict[str, str] = {}
    seconds = {"total": 0.0, "startup": 0.0, "decode": 0.0, "network": 0.0, "write": 0.0}
    parts = plan.zarr_shards(shard)
    for index, part in progress(parts, total=len(parts), desc=f"import {feature} {shard + 1}/{shards}", unit="file"):
        clock = time.perf_counter()
        values, wrong = reader.read(part)
        failures += [{"image_id": image_ids[row], "path": str(paths[row]), "error": error} for row, error in wrong]
        seconds["decode"] += time.perf_counter() - clock
        clock = time.perf_counter()
        files.update(write_zarr_shard(store, index, values, arrays, plan))
        seconds["write"] += time.perf_counter() - clock
    seconds["total"] = time.perf_counter() - start
    return write_receipt(
        receipt,
        description=description,
        shard=shard,
        rows=rows,
        failures=failures,
        seconds=seconds,
        device="import",
        files=files,
        notes={"rounding": reader.rounding.describe()},
    )
