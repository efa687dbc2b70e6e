"""The features that a dataset can have, and how much of them is kept: shared by extraction, import and stores."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field

from core.section import Positive, Section

Visual = Literal["regions", "grids"]  # what a model can take as visual tokens
Feature = Literal["regions", "grids", "panoptic"]
VISUAL: tuple[Visual, ...] = get_args(Visual)
FEATURES: tuple[Feature, ...] = get_args(Feature)


class RegionsKept(Section):
    """What is kept of an image's regions, whoever found them."""

    num_regions: Annotated[int, Field(ge=1, le=1000)] = 36


class GridKept(Section):
    """What is kept of an image's map of cells, whoever computed it."""

    grid: Annotated[int, Field(ge=1, le=64)] | Literal["native"] = 7  # cells a side, or the map as it is
    max_cells: Positive = 608  # of a native map: 19 x 32, the largest of grid-feats-vqa
