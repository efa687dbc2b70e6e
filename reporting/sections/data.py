"""The datasets: their splits, what cannot be read, and some examples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reporting.artefacts import Artefacts
from reporting.left_out import unreadable_images
from reporting.pictures import encode_pictures, indexed_pictures

TITLE = "Data"


def context(artefacts: Artefacts, queries: int, seed: int) -> dict[str, Any]:
    """The datasets; `seed` of the examples."""
    on_bad_image = artefacts.section("features").get("on_bad_image", "fail")
    return {"datasets": dataset_summaries(artefacts, seed), "on_bad_image": on_bad_image}


SHEET_BYTES = 400_000  # of all contact sheets together
SHEET_IMAGES = 12
MAX_LISTED = 30  # bad images listed by name


def dataset_summaries(artefacts: Artefacts, seed: int) -> list[dict[str, Any]]:
    """Per dataset: images and captions per split, unreadable images, and some examples drawn at random."""
    summaries, sheets = [], []
    for position, (name, settings) in enumerate(artefacts.section("datasets").items()):
        index = artefacts.index(name)
        if index is None:
            continue
        images, captions = index.images, index.captions
        owner = pc.index_in(captions["image_id"], value_set=images["image_id"].combine_chunks())
        caption_splits = images["split"].take(owner)
        image_counts, caption_counts = _counts(images["split"]), _counts(caption_splits)
        bad = unreadable_images(artefacts, name)
        generator = np.random.default_rng([seed, position])
        readable = np.flatnonzero(np.asarray(images["width"]) > 0)
        rows = np.sort(generator.choice(readable, min(len(readable), SHEET_IMAGES), replace=False))
        sheet = indexed_pictures(index, rows, prefix=f"d{position}-")
        sheets += sheet
        summaries.append(
            {
                "name": name,
                "source": settings.get("source", ""),
                "splits": [(split, count, caption_counts.get(split, 0)) for split, count in image_counts.items()],
                "images": images.num_rows,
                "captions": captions.num_rows,
                "bad": bad[:MAX_LISTED],
                "bad_count": len(bad),
                "sheet": sheet,
                "digest": index.digest,
                "notes": list(index.notes),
            }
        )
    encode_pictures(sheets, SHEET_BYTES)
    return summaries


def _counts(values: pa.ChunkedArray) -> dict[str, int]:
    """Value -> how often, in order of first appearance, nulls left out."""
    counted = pc.value_counts(values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values)
    return {entry["values"]: entry["counts"] for entry in counted.to_pylist() if entry["values"] is not None}
