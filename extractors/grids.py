"""Grid features: the whole-image res5 map of a detector, as visual tokens (Jiang et al. 2020, grid-feats-vqa)."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from core.console import UserError
from extractors.images import ImageBatch
from extractors.loading import NetworkExtractor, NetworkRunner
from stores.features import grid_arrays, grid_cells, grid_note, grid_shape

# Raise when the algorithm changes so that stored features would differ: stores made with another number are made again.
RECIPE = 3


def inside(feature: Tensor, size: tuple[int, int], stride: int) -> Tensor:
    """A map (D, h, w) without the cells that lie in the padding: they are not part of the image.

    Args:
        size: (height, width) of the image in the network's input. stride: pixels per cell.
    """
    return feature[:, : -(-size[0] // stride), : -(-size[1] // stride)]


class GridExtractor(NetworkExtractor):
    """Rows of the `grids` store for batches of images.

    Args:
        runner: around a Faster R-CNN, or another network with `grid`, `grid_size` and `grid_stride` (None: its maps have no
            padding).
        grid: side of the square grid the map is adaptively average-pooled to, or "native" to keep the map's own cells.
        max_cells: G for "native": a larger map is pooled down, both sides by the same factor, to fit.
    """

    def __init__(self, runner: NetworkRunner, *, grid: int | str = 7, max_cells: int = 608) -> None:
        if not hasattr(runner.network, "grid"):
            raise UserError("grid features need a Faster R-CNN architecture, such as grid_x101")
        if grid != "native" and not (isinstance(grid, int) and grid >= 1):
            raise UserError(f"grid must be a positive number of cells per side or 'native', not {grid!r}")
        super().__init__(runner)
        self.grid = grid
        self.max_cells = max_cells
        self._told: set[str] = set()
        self.stride = runner.network.grid_stride
        self.arrays = grid_arrays(grid_cells(grid, max_cells), runner.network.grid_size)

    @property
    def attributes(self) -> dict[str, Any]:
        """What readers of the store need to know about the numbers."""
        return {"grid": self.grid} | self.runner.attributes

    def __call__(self, batch: ImageBatch) -> list[dict[str, np.ndarray]]:
        """One dict of rows per image; cells row-major, `grid_shapes` is (rows, columns)."""
        if not batch.rows:
            return []
        with self.runner.autocast():
            maps = self.runner.network.grid(self.runner.pixels(batch))
        result = []
        for feature, size in zip(maps, batch.sizes, strict=True):
            if self.stride is not None:
                feature = inside(feature, size, self.stride)
            shape = grid_shape(*feature.shape[1:], self.grid, self.max_cells)
            self._tell(grid_note(*feature.shape[1:], self.grid, self.max_cells))
            pooled = F.adaptive_avg_pool2d(feature, shape)
            rows = self.empty_rows()
            count = shape[0] * shape[1]
            rows["features"][:count] = pooled.flatten(1).T.cpu().numpy()
            rows["counts"][...] = count
            rows["grid_shapes"][:] = shape
            result.append(rows)
        return result

    def _tell(self, note: str) -> None:
        """Print a note, of its kind the first alone."""
        if note and (kind := note.partition(",")[0]) not in self._told:
            self._told.add(kind)
            print(f"note: {note}", flush=True)


EXTRACTOR = GridExtractor
