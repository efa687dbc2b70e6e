"""The features that a dataset can have, and how many numbers of them are kept: shared by extraction, import and stores."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field

from core.section import Positive

Visual = Literal["regions", "grids"]  # what a model can take as visual tokens
Feature = Literal["regions", "grids", "panoptic"]
VISUAL: tuple[Visual, ...] = get_args(Visual)
FEATURES: tuple[Feature, ...] = get_args(Feature)

NumRegions = Annotated[int, Field(ge=1, le=1000)]
Grid = Annotated[int, Field(ge=1, le=64)] | Literal["native"]  # cells a side, or the map as it is
MaxCells = Positive
