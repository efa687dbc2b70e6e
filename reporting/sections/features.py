"""The extraction of the features: times, devices, and images that could not be read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from reporting.artefacts import SECONDS, Artefacts, Stage
from reporting.words import duration

TITLE = "Features"


def context(artefacts: Artefacts, queries: int, seed: int) -> dict[str, Any]:
    """The stages; the section is left out where nothing was extracted."""
    stages = feature_stages(artefacts)
    return {
        "stages": stage_rows(stages),
        "failed": failed_images(stages),
        "parts": [*SECONDS, "other"],
        "on_bad_image": artefacts.section("features").get("on_bad_image", "fail"),
        "shown": bool(stages),
    }


MAX_LISTED = 30  # bad images listed by name


def feature_stages(artefacts: Artefacts) -> list[Stage]:
    """Every dataset x feature that left receipts."""
    return [
        stage
        for dataset in artefacts.section("datasets")
        for feature in artefacts.features
        if (stage := artefacts.stage(dataset, feature))
    ]


def stage_rows(stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """The stages as the template shows them; bars are as long as a stage's share of the slowest."""
    longest = max((stage.seconds.get("total", 0.0) for stage in stages), default=0.0)
    rows = []
    for stage in stages:
        total = stage.seconds.get("total", 0.0)
        rate = stage.images_per_second
        rows.append(
            {
                "dataset": stage.dataset,
                "feature": stage.feature,
                "images": f"{stage.images:,}",
                "shards": stage.shards,
                "seconds": duration(total),
                "rate": f"{rate:,.1f}" if rate else "–",
                "devices": ", ".join(stage.devices),
                "parts": stage.parts,
                "width": 100 * total / longest if longest else 0,
                "failures": len({*stage.dropped, *(str(failure.get("image_id")) for failure in stage.failures)}),
                "dropped": len(stage.dropped),
                "sealed": stage.sealed,
            }
        )
    return rows


def failed_images(stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """Per dataset, each image that some feature could not be made of: what failed in which features, and if dropped."""
    datasets: dict[str, dict[str, dict[str, Any]]] = {}
    for stage in stages:
        images = datasets.setdefault(stage.dataset, {})
        failures = {str(failure.get("image_id")): failure for failure in stage.failures}
        for image_id in sorted({*failures, *stage.dropped}):
            failure = failures.get(image_id, {})
            image = images.setdefault(image_id, {"image_id": image_id, "path": "", "error": "", "features": []})
            image["path"] = image["path"] or str(failure.get("path", ""))
            image["error"] = image["error"] or str(failure.get("error", ""))
            image["features"].append(stage.feature)
            image["dropped"] = image.get("dropped", False) or image_id in stage.dropped
    return [
        {"dataset": name, "count": len(images), "images": list(images.values())[:MAX_LISTED]}
        for name, images in datasets.items()
        if images
    ]
