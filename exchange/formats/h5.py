"""HDF5 files as captioning codes keep features: of all images in one file, or in a file for each array (`exchange.formats.h5_layouts`)."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from exchange.formats.base import Rows
from exchange.formats.checks import box_rows, check_numbers, feature_rows, upright_regions
from exchange.formats.grids import GridReader, as_map
from exchange.formats.h5_layouts import BESIDE, GRID_SHAPE, Parts, open_layouts
from exchange.formats.regions import RegionReader


class H5Regions(RegionReader):
    """Regions in the file `path`, or in the files of the folder `path`.

    Classes are those of `cls_prob` (regions, 1 + classes), whose first column is the background's, as bottom-up attention has it;
    arrays that our own export wrote beside it count before it.
    """

    format = "h5"
    unit = "regions of"

    def open(self) -> str:
        """See `PerImageReader.open`."""
        self._found, digest = open_layouts(self.path, {name for own in self.names for name in own})
        self._names = {name: name for name in self._found}
        return digest

    def load(self, row: int) -> tuple[Rows, tuple[int, int] | None]:
        """See `RegionReader.load`."""
        name = self.find(row, self._names, "{}")
        parts, place = self._found[name], f"{name!r} in {self.path}"
        features = _named(place, parts, "features")
        if "boxes" in parts:
            found = {"boxes": _checked(place, box_rows, parts["boxes"].read())}
            found["features"] = _checked(place, feature_rows, features, len(found["boxes"]))
        else:
            found = {"features": _checked(place, upright_regions, features, self.num_regions)}
        if "cls_prob" in parts:
            found |= _classes(place, parts["cls_prob"].read(), len(found["features"]))
        found |= {name: parts[name].read() for name in BESIDE if name in parts}
        if parts["features"].padded:  # rows of zeros at the end
            used = 1 + max(np.flatnonzero(found["features"].any(axis=1)), default=-1)
            found = {name: values[:used] for name, values in found.items()} if used else found
        size = tuple(int(parts[side].read()) for side in ("height", "width") if side in parts)
        return found, size if len(size) == 2 and all(size) else None


class H5Grids(GridReader):
    """Grids in the file `path`, or in the files of the folder `path`: (cells, width), (width, h, w) or (h, w, width) of an image."""

    format = "h5"
    unit = "grid of"

    def open(self) -> str:
        """See `PerImageReader.open`."""
        self._found, digest = open_layouts(self.path, {name for own in self.names for name in own})
        self._names = {name: name for name in self._found}
        return digest

    def load(self, row: int) -> np.ndarray:
        """See `GridReader.load`."""
        name = self.find(row, self._names, "{}")
        parts, place = self._found[name], f"{name!r} in {self.path}"
        if "grids" not in parts and "boxes" in parts:
            raise ValueError(f"{place} has boxes: its features are regions, not a grid; import it as imports.regions")
        name = "grids" if "grids" in parts else "features"
        values = _named(place, parts, name)
        shape = parts[name].attribute(GRID_SHAPE)
        return as_map(values, place, None if shape is None else _sides(shape, place), self.width)


def _sides(shape: object, place: str) -> tuple[int, int]:
    """Rows and columns out of an attribute. ValueError: it is no two whole numbers."""
    sides = np.asarray(shape).reshape(-1)
    if sides.dtype.kind not in "iuf" or len(sides) != 2 or not ((sides >= 1) & (sides == np.floor(sides))).all():
        raise ValueError(f"{place}: {GRID_SHAPE} is {shape}, not the numbers of rows and columns")
    return int(sides[0]), int(sides[1])


def _named(place: str, parts: Parts, name: str) -> np.ndarray:
    if name not in parts:
        raise ValueError(f"{place} has no {name}, only {', '.join(sorted(parts))}")
    return parts[name].read()


def _checked(place: str, check: Callable[..., np.ndarray], *values: object) -> np.ndarray:
    try:
        return check(*values)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def _classes(place: str, probabilities: np.ndarray, count: int) -> Rows:
    """`class_ids` and `scores` as bottom-up attention reads them off its `cls_prob`; rows of zeros are of no known class."""
    if probabilities.ndim != 2 or len(probabilities) != count or probabilities.shape[1] < 2:
        raise ValueError(f"{place}: cls_prob has shape {probabilities.shape} instead of ({count}, 1 + classes)")
    check_numbers("cls_prob", probabilities)
    own = probabilities[:, 1:]
    best = own.max(axis=1)
    return {"class_ids": np.where(best > 0, own.argmax(axis=1), -1), "scores": best.astype(np.float32)}
