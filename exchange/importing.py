"""Imports one shard of one feature: the same stores, receipts and seal as an extraction, from files instead of images."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from catalog.index import ImageRows
from core.console import UserError, progress
from core.features import Feature
from exchange.formats import READERS, Reader
from stores.job import ShardJob
from stores.schema import Source

# Raise when an import would give other bytes than before: stores made with another number are made again.
RECIPE = 2


def open_reader(feature: Feature, source: Mapping[str, Any], images: ImageRows) -> Reader:
    """The reader that `source` (`format` and its options) asks for. UserError: unknown format or options, unusable files."""
    options = dict(source)
    kind = options.pop("format", None)
    known = [name for name, of in READERS if of == feature]
    if kind not in known:
        raise UserError(f"{feature} cannot be imported from format {kind!r}; choose {' or '.join(known)}")
    try:
        return READERS[kind, feature](feature, images, **options)
    except TypeError as error:
        raise UserError(f"--source of format {kind}: {error}") from error


def import_shard(feature: Feature, reader: Reader, images: ImageRows, **job_options: Any) -> dict[str, Any]:
    """Import the rows of one shard job.

    The store's `weights_digest` is the digest of what the configuration says of the features' origin: nothing in the files
    says whose they are.

    Args:
        feature: which store to make. reader: of `open_reader`. job_options: see `ShardJob`.

    Returns:
        The receipt; its `rounding` counts what float16 does not hold exactly.

    Raises:
        UserError: values that are not finite, or no such shard.
    """
    source = Source(
        feature,
        reader.arrays,
        extractor={"engine": "import", "recipe": RECIPE} | reader.settings,
        weights_digest=hashlib.sha256(reader.settings["provenance"].encode()).hexdigest(),
        attributes=reader.attributes,
    )
    with ShardJob(source, images, **job_options) as job:
        for index, part in progress(job.parts, total=len(job.parts), desc=f"import {job}", unit="file"):
            with job.timed("decode"):
                values, wrong = reader.read(part)
            for row, error in wrong:
                job.fail(row, error)
            job.write(index, values)
        job.device = "import"
        job.note(rounding=reader.rounding.describe())
    return job.result
