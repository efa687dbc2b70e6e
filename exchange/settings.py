"""How features are written for other programs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from core.features import FEATURES, Feature
from core.section import Name, Section


class Export(Section):
    """How target `export` writes features: the layout of SCAN, VSE-infinity and 3SHNet."""

    features: Annotated[list[Feature], Field(min_length=1)] = list(FEATURES)
    names: dict[Name, Name] = {"val": "dev"}
    class_order: Literal["upsnet", "coco"] = "upsnet"
    seg_maps: Literal["raw", "standardised"] = "raw"
    repeat_images: bool = False
