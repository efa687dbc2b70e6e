"""grid-feats-vqa's grids: one `.pth` per image."""

from __future__ import annotations

from typing import Any

from catalog.index import ImageRows
from core.features import Feature
from core.kinds import other_kind
from exchange.formats.base import PerImageReader, Rows, named_files
from exchange.formats.checks import channels_first
from stores.features import grid_arrays, grid_cells, grid_shape


class PthReader(PerImageReader):
    """Tensors (1, D, h, w) or (1, h, w, D) in the folder `path`; cells are pooled as our extractor pools its own.

    Args:
        grid, max_cells: see `extractors.grids`.
    """

    format, features = "pth", ("grids",)

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
        super().__init__(images, path, provenance, grid=grid, max_cells=max_cells)
        self.grid, self.max_cells = grid, max_cells
        self._files, digest = named_files(path, ".pth")
        self.attributes = {"grid": grid, "files_digest": digest}
        nothing = f"{path} has no usable .pth file for any image of the index"
        self.arrays = grid_arrays(grid_cells(grid, max_cells), len(self.example(nothing)))

    def load(self, row: int) -> Any:
        """(D, h, w) float32 tensor. ValueError: what is wrong with the file."""
        import torch

        file = self.find(row, self._files, "{}.pth")
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # damaged and hostile files raise errors of every kind
            what = other_kind(file) or f"no file of tensors alone ({type(error).__name__})"
            raise ValueError(f"{file} is {what}") from error
        if not isinstance(content, torch.Tensor) or content.ndim not in (3, 4):
            raise ValueError(f"{file} holds no (1, D, h, w) tensor")
        if content.ndim == 4 and len(content) != 1:
            raise ValueError(f"{file} holds {len(content)} images")
        if not content.is_floating_point() or 0 in content.shape:
            raise ValueError(f"{file} holds {content.dtype} {tuple(content.shape)}, no map of features")
        content = content.reshape(content.shape[-3:]).float()
        if not content.isfinite().all():
            raise ValueError(f"{file} holds values that are not finite (NaN or infinite)")
        if not content.any():
            raise ValueError(f"{file} is all zero: whoever wrote it failed")
        return content if channels_first(content.shape) else content.permute(2, 0, 1)

    def put(self, row: int, result: Rows, at: int) -> None:
        """See `PerImageReader.put`."""
        from torch.nn import functional as F

        content = self.load(row)
        if len(content) != self.arrays["features"].shape[1]:
            raise ValueError(f"has width {len(content)} instead of {self.arrays['features'].shape[1]}")
        shape = grid_shape(*content.shape[1:], self.grid, self.max_cells)
        count = shape[0] * shape[1]
        pooled = F.adaptive_avg_pool2d(content, shape).flatten(1).T.numpy()
        result["features"][at, :count] = self.rounded(row, pooled)
        result["counts"][at] = count
        result["grid_shapes"][at] = shape
