"""The features that a dataset can have, and how they are stored: names that types, loops and flags read."""

from __future__ import annotations

from typing import Literal, get_args

Visual = Literal["regions", "grids"]  # what a model can take as visual tokens
Feature = Literal["regions", "grids", "panoptic"]
VISUAL: tuple[Visual, ...] = get_args(Visual)
FEATURES: tuple[Feature, ...] = get_args(Feature)

# What a store's chunks may be compressed with; docs/stores.md says why and what it costs.
Compression = Literal["lz4", "zstd", "none"]
COMPRESSIONS: tuple[Compression, ...] = get_args(Compression)
