"""The engine `transformers`: what it makes of each feature."""

from __future__ import annotations

from extractors import grids_transformers, panoptic_transformers

RUNNERS = {
    "grids": grids_transformers.transformers_runner,
    "panoptic": panoptic_transformers.transformers_runner,
}
