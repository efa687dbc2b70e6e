"""Which images of a dataset are left out, and why: counted here alone, so that no two places of the page can disagree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from reporting.artefacts import Artefacts
from reporting.words import counted


@dataclass(frozen=True)
class Unreadable:
    """An image whose file could not be read, by the index or by an extraction.

    Attributes:
        features: that could not be made of it. dropped: whether training and evaluation go on without it.
    """

    image_id: str
    path: str
    error: str
    features: tuple[str, ...] = ()
    dropped: bool = False


def unreadable_images(artefacts: Artefacts, dataset: str) -> list[Unreadable]:
    """Every image of a dataset that somebody could not read, once, in the order of the index."""
    index = artefacts.index(dataset)
    found: dict[str, Unreadable] = {}
    order: dict[str, int] = {}
    if index is not None:
        order = {image_id: row for row, image_id in enumerate(index.images["image_id"].to_pylist())}
        bad = index.images.filter(pc.is_valid(index.images["error"]))
        for image in bad.select(["image_id", "path", "error"]).to_pylist():
            found[image["image_id"]] = Unreadable(**image)
    for feature in artefacts.features:
        stage = artefacts.stage(dataset, feature)
        if stage is None:
            continue
        failures = {str(failure.get("image_id")): failure for failure in stage.failures}
        for image_id in sorted({*failures, *stage.dropped}):
            told = failures.get(image_id, {})
            known = found.get(image_id, Unreadable(image_id, "", ""))
            found[image_id] = replace(
                known,
                path=known.path or str(told.get("path", "")),
                error=known.error or str(told.get("error", "")),
                features=(*known.features, feature),
                dropped=known.dropped or image_id in stage.dropped,
            )
    return sorted(found.values(), key=lambda image: (order.get(image.image_id, len(order)), image.image_id))


def why_fewer(artefacts: Artefacts, testset: Mapping[str, Any], visual: str, scored: int) -> str:
    """Why fewer images of a test set were scored than its split has: the end of a sentence; empty where all were.

    Args:
        testset: its section. visual: the feature that the scored system looks at. scored: how many images.
    """
    dataset = str(testset.get("dataset"))
    index = artefacts.index(dataset)
    if index is None:
        return ""
    ids = index.images["image_id"].filter(pc.equal(index.images["split"], str(testset.get("split"))))
    if len(ids) == scored:
        return ""
    has_caption = np.asarray(pc.is_in(ids, value_set=pc.unique(index.captions["image_id"])))
    unreadable = unreadable_images(artefacts, dataset)
    # Whether a system needs panoptic features too is the network's to say; the numbers tell it as well.
    for features in ({visual}, {visual, "panoptic"}):
        lost = pa.array([one.image_id for one in unreadable if one.dropped and features & {*one.features}], pa.string())
        dropped = np.asarray(pc.is_in(ids, value_set=lost))
        silent = ~has_caption & ~dropped
        if len(ids) - dropped.sum() - silent.sum() == scored:
            reasons = [
                f"{counted(int(dropped.sum()), 'image')} could not be read" if dropped.any() else "",
                f"{counted(int(silent.sum()), 'image')} {'has' if silent.sum() == 1 else 'have'} no caption"
                if silent.any()
                else "",
            ]
            return f"of the {len(ids):,} of the split, " + " and ".join(filter(None, reasons))
    return f"the split has {len(ids):,} now; dataset or features have changed since this was scored"
