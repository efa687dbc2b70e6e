"""One `.npy` of features per image, as many loaders of the field keep them: regions, or a grid's cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from catalog.index import ImageRows
from catalog.precomputed import open_array
from core.console import UserError
from core.features import Feature
from exchange.formats.base import PerImageReader, Rows, named_files
from exchange.formats.checks import channels_first, check_regions, feature_rows
from stores.features import grid_arrays, grid_cells, region_arrays


class NpyReader(PerImageReader):
    """Arrays in the folder `path`: (regions, width), or of a grid (cells, width), (width, h, w) or (h, w, width).

    Whether (width, regions) is meant is told by the folder's files: their width is the same, their numbers of regions differ.

    Args:
        num_regions: K of regions, rows are padded to it. grid, max_cells: of grids, see `extractors.grids`.
    """

    format, features = "npy", ("regions", "grids")

    def __init__(
        self,
        feature: Feature,
        images: ImageRows,
        *,
        path: str,
        num_regions: int = 36,
        grid: int | str = 7,
        max_cells: int = 608,
        provenance: str = "unknown",
    ) -> None:
        own = {"num_regions": num_regions} if feature == "regions" else {"grid": grid, "max_cells": max_cells}
        super().__init__(images, path, provenance, **own)
        self.feature, self.num_regions, self.grid, self.max_cells = feature, num_regions, grid, max_cells
        self._files, digest = named_files(path, ".npy")
        example = self.example(f"{path} has no usable .npy file for any image of the index")
        self.attributes = {"files_digest": digest} | ({} if feature == "regions" else {"grid": grid})
        if feature == "regions":
            self.arrays = region_arrays(num_regions, example.shape[1], ())
        else:
            self.arrays = grid_arrays(grid_cells(grid, max_cells), len(example))
        self.width = example.shape[1] if feature == "regions" else len(example)

    def load(self, row: int) -> Any:
        """(regions, width), or (width, h, w) of a grid. ValueError: what is wrong with the file."""
        file = self.find(row, self._files, "{}.npy")
        try:
            values = np.array(open_array(Path(file)))
        except UserError as error:
            raise ValueError(str(error)) from error
        if values.ndim == 4 and len(values) == 1:
            values = values[0]
        if self.feature == "regions":
            values = feature_rows(values, None)
            if len(values) >= 256 > values.shape[1]:  # no image has so many regions, few networks so narrow features
                values = values.T
            check_regions({"features": values}, None)
            return values
        if values.ndim == 2:
            side = round(len(values) ** 0.5)
            shape = (side, side) if side * side == len(values) else (1, len(values))
            values = values.T.reshape(-1, *shape)
        elif values.ndim == 3 and not channels_first(values.shape):
            values = values.transpose(2, 0, 1)
        if values.ndim != 3:
            raise ValueError(f"{file} has shape {values.shape}, no grid of features")
        check_regions({"features": values.reshape(len(values), -1).T}, None)
        return values

    def put(self, row: int, result: Rows, at: int) -> None:
        """See `PerImageReader.put`."""
        values = self.load(row)
        if self.feature == "regions":
            if len(values) > self.num_regions:
                raise ValueError(
                    f"has {len(values)} regions; raise imports.regions.num_regions from {self.num_regions}"
                )
            if values.shape[1] != self.width:
                raise ValueError(f"has width {values.shape[1]} instead of {self.width}")
            count = len(values)
        else:
            if len(values) != self.width:
                raise ValueError(f"has width {len(values)} instead of {self.width}")
            values, shape = pooled(values, self.grid, self.max_cells)
            count = len(values)
            result["grid_shapes"][at] = shape
        result["features"][at, :count] = self.rounded(row, values)
        result["counts"][at] = count


def pooled(values: np.ndarray, grid: int | str, max_cells: int) -> tuple[np.ndarray, tuple[int, int]]:
    """A map (D, h, w) as (cells, D) and the (rows, columns) they are, pooled as our extractor pools its own."""
    import torch
    from torch.nn import functional as F

    from stores.features import grid_shape

    shape = grid_shape(*values.shape[1:], grid, max_cells)
    cells = F.adaptive_avg_pool2d(torch.from_numpy(np.ascontiguousarray(values, np.float32)), shape)
    return cells.flatten(1).T.numpy(), shape
