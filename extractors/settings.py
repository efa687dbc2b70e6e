"""The extractors of the configuration: an engine, its network and weights, and what is kept of their output."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from core.features import Grid, MaxCells, NumRegions
from core.section import Positive, Section


class Regions(Section):
    """Faster R-CNN region features."""

    engine: Literal["native"] = "native"
    architecture: str = "scenes_regions"
    weights: str = "weights/scenes_regions.safetensors"
    selection: Literal["caffe", "adaptive", "lxmert"] = "caffe"
    num_regions: NumRegions = 36
    batch_size: Positive = 8
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"


class Grids(Section):
    """Whole-image res5 grid features."""

    engine: Literal["native"] = "native"
    architecture: str = "scenes_grids"
    weights: str = "weights/scenes_grids.safetensors"
    grid: Grid = 7
    max_cells: MaxCells = 608
    batch_size: Positive = 8
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"


class Panoptic(Section):
    """Panoptic segmentation: 64x64 maps, 133-class one-hots, 133x7x7 features."""

    engine: Literal["native"] = "native"
    architecture: str = "scenes_panoptic"
    weights: str = "weights/scenes_panoptic.safetensors"
    seg_features: Literal["area", "soft"] = "area"
    min_pixels: Annotated[int, Field(ge=0)] = 100
    batch_size: Positive = 8
    precision: Literal["fp32", "tf32", "bf16", "fp16"] = "fp32"


class Detectron2(Section):
    """What every feature from the real detectron2 needs; `weights: null` takes the zoo's checkpoint of the configuration."""

    engine: Literal["detectron2"]
    config: Annotated[str, Field(min_length=1)]
    weights: str | None = None
    options: list[bool | int | float | str] = []
    batch_size: Positive = 8


class RegionsDetectron2(Detectron2):
    """Region features from detectron2."""

    selection: Literal["caffe", "adaptive", "lxmert"] = "caffe"
    num_regions: NumRegions = 36


class GridsDetectron2(Detectron2):
    """Grid features from detectron2."""

    grid: Grid = 7
    max_cells: MaxCells = 608


class PanopticDetectron2(Detectron2):
    """Panoptic segmentation from detectron2."""

    seg_features: Literal["area", "soft"] = "area"
    min_pixels: Annotated[int, Field(ge=0)] = 100


class PanopticTransformers(Section):
    """Panoptic segmentation from Mask2Former, MaskFormer or OneFormer; `weights` is a hub name or a local folder."""

    engine: Literal["transformers"]
    weights: Annotated[str, Field(min_length=1)]
    revision: str | None = None
    threshold: Annotated[float, Field(ge=0, lt=1)] = 0.5
    seg_features: Literal["area", "soft"] = "area"
    min_pixels: Annotated[int, Field(ge=0)] = 100
    batch_size: Positive = 1


def _engine(section: Any) -> str | None:
    engine = section.get("engine", "native") if isinstance(section, dict) else getattr(section, "engine", "native")
    return engine if isinstance(engine, str) else None


RegionsEngine = Annotated[
    Annotated[Regions, Tag("native")] | Annotated[RegionsDetectron2, Tag("detectron2")], Discriminator(_engine)
]
GridsEngine = Annotated[
    Annotated[Grids, Tag("native")] | Annotated[GridsDetectron2, Tag("detectron2")], Discriminator(_engine)
]
PanopticEngine = Annotated[
    Annotated[Panoptic, Tag("native")]
    | Annotated[PanopticDetectron2, Tag("detectron2")]
    | Annotated[PanopticTransformers, Tag("transformers")],
    Discriminator(_engine),
]
ENGINES = ("native", "detectron2", "transformers")


def feature_files(section: Section) -> list[str]:
    """Local files that an extractor's results depend on: weights, and a configuration or checkpoint folder if it is one."""
    if isinstance(section, PanopticTransformers):
        folder = section.weights
        names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
        return [path for path in (os.path.join(folder, name) for name in names) if os.path.isfile(path)]
    files = [] if section.weights is None else [section.weights]
    if isinstance(section, Detectron2) and os.path.isfile(section.config):
        files.append(section.config)
    return files


class Features(Section):
    """The three extractors, what to do with images that cannot be read, and how stores are compressed."""

    on_bad_image: Literal["fail", "drop"] = "fail"
    compression: Literal["lz4", "zstd", "none"] = "lz4"
    regions: RegionsEngine = Regions()
    grids: GridsEngine = Grids()
    panoptic: PanopticEngine = Panoptic()
