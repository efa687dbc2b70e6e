"""The datasets of the configuration: where images, captions and features that exist already lie."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Union

from pydantic import Field, field_validator

from core.features import Feature, Grid, MaxCells, NumRegions
from core.section import Name, Positive, Section


class ScenesDataset(Section):
    """The embedded renderer."""

    source: Literal["scenes"]
    style: Literal["day", "dusk"] = "day"
    seed: Annotated[int, Field(ge=0)] = 1
    splits: dict[Name, Positive]
    shards: Positive = 1


class RegionImport(Section):
    """Region features of other programs: bottom-up-attention's `.npz` per image or LXMERT's `.tsv`."""

    format: Literal["npz", "tsv"]
    path: str
    num_regions: NumRegions = 36
    provenance: str = "unknown"


class GridImport(Section):
    """Grid features of other programs: grid-feats-vqa's `.pth` per image."""

    format: Literal["pth"]
    path: str
    grid: Grid = 7
    max_cells: MaxCells = 608
    provenance: str = "unknown"


class Imports(Section):
    """Which features of a dataset are read from files instead of extracted."""

    regions: RegionImport | None = None
    grids: GridImport | None = None


class FolderDataset(Section):
    """A folder or zip archive of images, with captions in a file or none."""

    source: Literal["folder"]
    images: str
    captions: str | None = None
    splits: dict[Name, Annotated[float, Field(gt=0)]] | None = None
    split_files: dict[Name, str] | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    imports: Imports = Imports()
    shards: Positive = 1


class KarpathyDataset(Section):
    """COCO or Flickr30K with Karpathy's splits."""

    source: Literal["karpathy"]
    annotations: str
    member: str | None = None
    images: str
    splits: Annotated[list[Literal["train", "val", "test"]], Field(min_length=1)] = ["train", "val", "test"]
    imports: Imports = Imports()
    shards: Positive = 1


class PrecomputedDataset(Section):
    """Features in the layout of SCAN, VSE-infinity and 3SHNet: `{split}_ims.npy`, `{split}_caps.txt`, ..."""

    source: Literal["precomputed"]
    folder: str
    splits: Annotated[dict[Name, Name], Field(min_length=1)] = {"train": "train", "val": "dev", "test": "test"}
    features: Annotated[list[Feature], Field(min_length=1)] = ["regions", "panoptic"]
    class_order: Literal["upsnet", "coco"] = "upsnet"
    seg_maps: Literal["auto", "raw", "standardised"] = "auto"
    rounding: Literal["count", "error"] = "count"
    provenance: str = "unknown"
    shards: Positive = 1

    @field_validator("features")
    @classmethod
    def _one_visual_feature(cls, value: list[str]) -> list[str]:
        if {"regions", "grids"} <= set(value):
            raise ValueError("must hold regions or grids, not both: a folder has one {split}_ims.npy")
        if len(set(value)) < len(value):
            raise ValueError("names a feature twice")
        return value


Dataset = Annotated[
    Union[ScenesDataset, FolderDataset, KarpathyDataset, PrecomputedDataset], Field(discriminator="source")
]
SOURCES = ("scenes", "folder", "karpathy", "precomputed")


def imported_features(dataset: Any) -> list[str]:
    """The features of a dataset that are read from files instead of extracted."""
    if isinstance(dataset, PrecomputedDataset):
        return list(dataset.features)
    imports = getattr(dataset, "imports", None)
    return [feature for feature in ("regions", "grids") if imports and getattr(imports, feature)]


def available_features(dataset: Any) -> list[str]:
    """The features a dataset can have: all three where there are images, what is in the files otherwise."""
    return list(dataset.features) if isinstance(dataset, PrecomputedDataset) else ["regions", "grids", "panoptic"]
