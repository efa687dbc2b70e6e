"""One `.npy` of features per image, as many loaders of the field keep them: regions, or a grid's cells."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from catalog.precomputed import open_array
from core.console import UserError
from exchange.formats.base import Rows, named_files
from exchange.formats.checks import upright_regions
from exchange.formats.grids import GridReader, as_map
from exchange.formats.regions import RegionReader


class NpyRegions(RegionReader):
    """Arrays (regions, width) in the folder `path`, perhaps padded with rows of zeros."""

    format = "npy"
    unit = ".npy file for"

    def open(self) -> str:
        """See `PerImageReader.open`."""
        self._files, digest = named_files(self.path, ".npy")
        return digest

    def load(self, row: int) -> tuple[Rows, None]:
        """See `RegionReader.load`."""
        file = self.find(row, self._files, "{}.npy")
        try:
            features = upright_regions(_values(file), self.num_regions)
            used = 1 + max(np.flatnonzero(features.any(axis=1)), default=-1)  # rows of zeros at the end are padding
            return {"features": features[:used] if used else features}, None
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error


class NpyGrids(GridReader):
    """Arrays in the folder `path`: (cells, width), (width, h, w) or (h, w, width)."""

    format = "npy"
    unit = ".npy file for"

    def open(self) -> str:
        """See `PerImageReader.open`."""
        self._files, digest = named_files(self.path, ".npy")
        return digest

    def load(self, row: int) -> np.ndarray:
        """See `GridReader.load`."""
        file = self.find(row, self._files, "{}.npy")
        return as_map(_values(file), file, width=self.width)


def _values(file: str) -> np.ndarray:
    try:
        return np.array(open_array(Path(file)))
    except UserError as error:
        raise ValueError(str(error)) from error
