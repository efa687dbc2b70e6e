"""How features are written for other programs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from core.features import FEATURES, Feature
from core.section import Name, Section


class Export(Section):
    """How target `export` writes features: `npy` is the layout of SCAN, VSE-infinity and 3SHNet, the others are a file (or
    line) for each image, see `exchange.per_image`."""

    formats: Annotated[
        list[Literal["npy", "npz", "tsv", "pth", "coco", "h5", "h5_arrays", "h5_table"]], Field(min_length=1)
    ] = ["npy"]
    features: Annotated[list[Feature], Field(min_length=1)] = list(FEATURES)
    names: dict[Name, Name] = {"val": "dev"}
    class_order: Literal["upsnet", "coco"] = "upsnet"
    seg_maps: Literal["raw", "standardised"] = "raw"
    repeat_images: bool = False

    def mistakes(self) -> Iterator[str]:
        files = list(self.names.values())
        if twice := [name for name in dict.fromkeys(files) if files.count(name) > 1]:
            yield f"names: {twice[0]!r} would be the files of {files.count(twice[0])} splits; give each its own"
