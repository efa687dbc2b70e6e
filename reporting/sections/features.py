"""The extraction of the features: times, devices, and how many images each could not be made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reporting.artefacts import SECONDS, Artefacts, Stage
from reporting.left_out import unreadable_images
from reporting.words import duration

TITLE = "Features"


def context(artefacts: Artefacts, queries: int, seed: int) -> dict[str, Any]:
    """The stages; the section is left out where nothing was extracted."""
    stages = feature_stages(artefacts)
    return {"stages": stage_rows(artefacts, stages), "parts": [*SECONDS, "other"], "shown": bool(stages)}


def feature_stages(artefacts: Artefacts) -> list[Stage]:
    """Every dataset x feature that left receipts."""
    return [
        stage
        for dataset in artefacts.section("datasets")
        for feature in artefacts.features
        if (stage := artefacts.stage(dataset, feature))
    ]


def stage_rows(artefacts: Artefacts, stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """The stages as the template shows them; bars are as long as a stage's share of the slowest."""
    longest = max((stage.seconds.get("total", 0.0) for stage in stages), default=0.0)
    unreadable = {name: unreadable_images(artefacts, name) for name in dict.fromkeys(stage.dataset for stage in stages)}
    rows = []
    for stage in stages:
        total = stage.seconds.get("total", 0.0)
        rate = stage.images_per_second
        rows.append(
            {
                "dataset": stage.dataset,
                "feature": stage.feature,
                "images": f"{stage.images:,}",
                "reused": f"{stage.reused:,}" if stage.reused else "",
                "shards": stage.shards,
                "seconds": duration(total),
                "total": total,
                "rate": f"{rate:,.1f}" if rate else "–",
                "devices": ", ".join(stage.devices),
                "parts": stage.parts,
                "width": 100 * total / longest if longest else 0,
                "failures": sum(stage.feature in image.features for image in unreadable[stage.dataset]),
                "sealed": stage.sealed,
            }
        )
    return rows
