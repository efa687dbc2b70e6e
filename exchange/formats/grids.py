"""What formats of grid features per image share."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from catalog.index import ImageRows
from core.features import Feature
from exchange.formats.base import PerImageReader, Rows
from exchange.formats.checks import cells_last, channels_first, check_regions
from stores.features import grid_arrays, grid_cells, grid_note, grid_shape


class GridReader(PerImageReader):
    """Rows of the `grids` store from files with one map of cells per image, pooled as our extractor pools its own.

    Args:
        grid, max_cells: see `extractors.grids`.
    """

    features = ("grids",)
    width: int | None = None  # of a cell, once a file has told

    def __init__(
        self,
        feature: Feature,
        images: ImageRows,
        *,
        path: str,
        grid: int | str = 7,
        max_cells: int = 608,
        provenance: str = "unknown",
    ) -> None:
        self.grid, self.max_cells = grid, max_cells
        super().__init__(images, path, provenance, grid=grid, max_cells=max_cells)
        self.attributes["grid"] = grid

    def load(self, row: int) -> np.ndarray:
        """An image's map (width, h, w). ValueError: what is wrong with it."""
        raise NotImplementedError

    def layout(self, content: np.ndarray) -> Hashable:
        """See `PerImageReader.layout`."""
        return len(content)

    def check(self, content: np.ndarray, row: int) -> None:
        """See `PerImageReader.check`. Cells in one row, of which nobody knows the rows, cannot be pooled."""
        if content.shape[1] == 1 < content.shape[2] and self.grid not in (1, "native"):
            cells = content.shape[2]
            token = (
                "; is the first one a token of the whole image? Leave it out"
                if round((cells - 1) ** 0.5) ** 2 == cells - 1
                else ""
            )
            raise ValueError(
                f"has {cells} cells, of which nobody says in how many rows they are, for a grid of {self.grid} x {self.grid}{token}, "
                "or set grid: native"
            )
        height, width = content.shape[1:]
        if height * width == 1 and self.grid not in (1, "native"):
            raise ValueError(f"has one cell, of the whole image, for a grid of {self.grid} x {self.grid}; set grid: 1")
        size = self.sizes[row]
        # Maps of images that were made square say nothing; one that is upright where the image lies does.
        if min(*size, height, width) > 4 and (width - height) * (size[1] - size[0]) < 0:
            grid, image = (max(sides) / min(sides) for sides in ((height, width), size))
            if min(grid, image) >= 1.2 and max(grid, image) <= 1.2 * min(grid, image):
                raise ValueError(
                    f"has {height} rows of {width} cells for an image of {size[1]} x {size[0]} pixels; are rows and columns swapped, "
                    "or was the image not turned upright?"
                )

    def doubt(self, contents: Sequence[np.ndarray], rows: Sequence[int]) -> None:
        """See `PerImageReader.doubt`."""
        self._doubt_equal(contents, rows)
        notes = (grid_note(*content.shape[1:], self.grid, self.max_cells) for content in contents)
        if note := next(filter(None, notes), ""):
            self.notes.append(f"{self.path}: {note}")

    def describe(self, example: np.ndarray) -> None:
        """Set `arrays` to those of maps like this one."""
        self.width = len(example)
        self.arrays = grid_arrays(grid_cells(self.grid, self.max_cells), len(example))

    def put(self, row: int, result: Rows, at: int) -> None:
        """See `PerImageReader.put`."""
        import torch
        from torch.nn import functional as F

        content, width = self.load(row), self.arrays["features"].shape[1]
        self.check(content, row)
        if len(content) != width:
            raise ValueError(f"has width {len(content)} instead of {width}")
        shape = grid_shape(*content.shape[1:], self.grid, self.max_cells)
        cells = F.adaptive_avg_pool2d(torch.from_numpy(np.ascontiguousarray(content, np.float32)), shape)
        count = shape[0] * shape[1]
        result["features"][at, :count] = self.rounded(row, cells.flatten(1).T.numpy())
        result["counts"][at] = count
        result["grid_shapes"][at] = shape


def as_map(
    values: np.ndarray, place: str, shape: tuple[int, int] | None = None, width: int | None = None
) -> np.ndarray:
    """(width, h, w) from (cells, width), (width, h, w) or (h, w, width), with or without a leading axis of 1.

    Args:
        place: for messages. shape: (h, w), where it is known; else (cells, width) are of a square, or all cells in one row.
        width: that of other files of the folder.

    Raises:
        ValueError: it is no map, nothing tells which axis is which, or its numbers cannot be features.
    """
    given = values.shape
    if values.ndim == 4 and len(values) == 1:
        values = values[0]
    try:
        last = values.ndim == 2 and cells_last(values.shape, shape, width)
        known = shape is not None and (values.shape[:2] == shape) != (values.shape[1:] == shape)
        first = values.ndim != 3 or (values.shape[1:] == shape if known else channels_first(values.shape, width))
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    if values.ndim == 2:
        values = values.T if last else values
        cells = len(values)
        side = round(cells**0.5)
        shape = shape or ((side, side) if side * side == cells else (1, cells))
        if shape[0] * shape[1] != cells:
            raise ValueError(f"{place} has {cells} cells, which are no {shape[0]} x {shape[1]} grid")
        values = values.T.reshape(-1, *shape)
    elif not first:
        values = values.transpose(2, 0, 1)
    if values.ndim != 3:
        raise ValueError(f"{place} has shape {given}, no grid of features")
    check_regions({"features": values.reshape(len(values), -1).T}, None)
    return values
