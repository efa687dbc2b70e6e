"""SCAN's and 3SHNet's layout: one `.npy` of all images per split and array."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from catalog.categories import NUM_CATEGORIES, UPSNET_TO_COCO, VOID
from catalog.index import ImageRows
from catalog.layout import BOXES_FILE, CAPTIONS_PER_IMAGE, array_path, layout_files
from catalog.precomputed import open_array, read_parts, seg_map_encoding, standardised
from core.console import UserError
from core.features import FEATURES, Feature
from exchange.formats.base import Failures, Reader, Rows
from exchange.formats.checks import ALL_ZERO, WIDTHS, check_boxes
from stores.features import PANOPTIC_ARRAYS, grid_arrays, region_arrays

_ROWS_AT_ONCE = 32
_LOOKED_INTO, _FEW = 1000, 20  # images; fewer than a few tell nothing


def _places(class_order: str) -> np.ndarray:
    """Of our category c, the place in files of this order."""
    return np.argsort(UPSNET_TO_COCO) if class_order == "upsnet" else np.arange(NUM_CATEGORIES)


class ScanReader(Reader):
    """SCAN's and 3SHNet's `.npy` files (see `catalog.precomputed`): float16 features, classes in COCO's order.

    Args:
        feature: which store to make. images: of the index. folder, splits, features: of the dataset.
        class_order: of the files, "upsnet" or "coco". seg_maps: their encoding, "auto" detects it file by file.
        captions_per_image: lines of the texts, and rows of an image where arrays repeat it.
        rounding: "count", or "error" for values that float16 does not hold exactly.
    """

    format, features = "scan", FEATURES

    def __init__(
        self,
        feature: Feature,
        images: ImageRows,
        *,
        folder: str,
        splits: dict[str, str],
        features: Sequence[str],
        class_order: str = "upsnet",
        seg_maps: str = "auto",
        rounding: str = "count",
        provenance: str = "unknown",
        captions_per_image: int = CAPTIONS_PER_IMAGE,
    ) -> None:
        super().__init__(provenance)
        self.feature, self.folder = feature, folder
        self.rounding.exact = rounding == "error"
        self._parts = list(read_parts(folder, splits, features, captions_per_image).values())
        count = sum(part.images for part in self._parts)
        if count != len(images.ids):
            raise UserError(
                f"the files in {folder} have {count} images, the index {len(images.ids)}: they changed since; "
                "make the index again"
            )
        self._files = dict(layout_files(feature))
        if feature == "regions" and all(BOXES_FILE in part.steps for part in self._parts):
            self._files["boxes"] = BOXES_FILE
        shapes = {array: self._shape(name) for array, name in self._files.items()}
        if feature == "panoptic":
            self.arrays = PANOPTIC_ARRAYS
            wrong = [
                f"{array}: {shapes[array]} per image instead of {spec.shape}"
                for array, spec in self.arrays.items()
                if shapes[array] != spec.shape
            ]
            if wrong:
                raise UserError(f"panoptic arrays in {folder} have other shapes:\n  " + "\n  ".join(wrong))
            self._order = _places(class_order)
            self._doubt_order(class_order)
            self._lookup = np.full(256, VOID, np.uint8)
            self._lookup[self._order] = np.arange(NUM_CATEGORIES)
            self._encodings = {
                part.prefix: seg_map_encoding(self._path(part, "seg_maps")) if seg_maps == "auto" else seg_maps
                for part in self._parts
            }
            self.attributes = {
                "class_order": "coco", "void": VOID, "imported_class_order": class_order,
                "imported_seg_maps": dict(self._encodings),
            }  # fmt: skip
            return
        if len(shapes["features"]) != 2 or 0 in shapes["features"]:
            raise UserError(
                f"{self._path(self._parts[0], 'features')}: one image's features have shape {shapes['features']} "
                "instead of (regions or cells, width)"
            )
        k, dim = shapes["features"]
        turned = "boxes" not in shapes and k > dim and k in WIDTHS and dim not in WIDTHS
        if k >= 256 > dim or k > max(511, dim) or turned:
            raise UserError(
                f"{self._path(self._parts[0], 'features')}: {k} {'cells' if feature == 'grids' else 'regions'} of width {dim} in an "
                "image; the last two axes must be (regions or cells, width), swap them"
            )
        if shapes.get("boxes", (k, 4)) != (k, 4):
            raise UserError(f"boxes in {folder} have shape {shapes['boxes']} per image instead of {(k, 4)}")
        self.arrays = grid_arrays(k, dim) if feature == "grids" else region_arrays(k, dim, self._files)

    def _doubt_order(self, class_order: str) -> None:
        """Note where photographs seem to be of people, the commonest of COCO's classes, in the other order of classes alone."""
        part = max(self._parts, key=lambda part: part.images)
        onehots = open_array(self._path(part, "category_onehots"))[:: part.steps[self._files["category_onehots"]]]
        if onehots.dtype.kind not in "fiub" or part.images < _FEW:
            return
        shares = np.asarray(onehots[:: max(1, part.images // _LOOKED_INTO)], np.float64).mean(axis=0)
        other = {"upsnet": "coco", "coco": "upsnet"}[class_order]
        here, there = (shares[_places(order)[0]] for order in (class_order, other))
        if there >= 0.2 and there > 4 * here and there == shares.max():
            self.notes.append(
                f"in {self.folder} the commonest class is a person by class_order: {other}, and {here:.0%} of the images show one by "
                f"class_order: {class_order}; is datasets.<name>.class_order right?"
            )

    def _path(self, part: Any, array: str) -> Path:
        return array_path(self.folder, part.prefix, self._files[array])

    def _shape(self, name: str) -> tuple[int, ...]:
        """Of one image, the same in all splits."""
        shapes = {p.prefix: open_array(array_path(self.folder, p.prefix, name)).shape[1:] for p in self._parts}
        if len(set(shapes.values())) > 1:
            raise UserError(f"the splits' {name}.npy in {self.folder} have different shapes per image: {shapes}")
        return next(iter(shapes.values()))

    def read(self, rows: range) -> tuple[Rows, Failures]:
        """Arrays of these rows of the index."""
        result = {name: spec.empty(len(rows)) for name, spec in self.arrays.items()}
        start = 0
        for part in self._parts:
            own = range(max(rows.start, start), min(rows.stop, start + part.images))
            for first in range(own.start, own.stop, _ROWS_AT_ONCE):
                block = range(first, min(first + _ROWS_AT_ONCE, own.stop))
                target = slice(block.start - rows.start, block.stop - rows.start)
                images = range(block.start - start, block.stop - start)
                for name, values in self._read_block(part, images).items():
                    result[name][target] = values
            start += part.images
        if "counts" not in result:
            return result, []
        return result, [(rows[k], ALL_ZERO) for k in np.flatnonzero(result["counts"] == 0)]

    def _read_block(self, part: Any, images: range) -> Rows:
        found: Rows = {}
        for array in self._files:
            path, step = self._path(part, array), part.steps[self._files[array]]
            values = open_array(path)[images.start * step : images.stop * step : step]
            place = f"{path}, images {images.start} to {images.stop - 1} (of {part.images}),"
            if values.dtype.kind not in "fiub":
                raise UserError(f"{path} holds {values.dtype}, not real numbers")
            if array == "features" and values.dtype.kind in "iu" and values.dtype.itemsize > 1:
                raise UserError(
                    f"{path} holds whole numbers ({values.dtype}), no features; save them as floating point"
                )
            if array == "seg_maps":
                found[array] = self._maps(np.asarray(values), self._encodings[part.prefix], place)
            elif array == "category_onehots":
                if not np.isin(values, (0, 1)).all():
                    raise UserError(f"{place} holds other values than 0 and 1")
                found[array] = np.asarray(values)[:, self._order].astype(np.uint8)
            elif array == "seg_features":
                if (values < 0).any() or (values > 1.001).any():
                    raise UserError(f"{place} holds values outside 0 to 1, where shares and probabilities lie")
                found[array] = self.rounding(np.asarray(values), place)[:, self._order]
            elif array == "boxes":
                try:
                    check_boxes(np.asarray(values).reshape(-1, 4), None)
                except ValueError as error:
                    raise UserError(f"{place} {error}") from error
                found[array] = np.asarray(values, np.float32)
            else:
                found[array] = self.rounding(np.asarray(values), place)
                # Files have no counts: rows of zeros at the end are padding.
                used = (found[array] != 0).any(axis=2)
                found["counts"] = np.where(used.any(1), used.shape[1] - used[:, ::-1].argmax(1), 0).astype(np.int16)
                if self.feature == "grids":
                    side = int(values.shape[1] ** 0.5)
                    shape = (side, side) if side * side == values.shape[1] else (1, values.shape[1])
                    found["grid_shapes"] = np.tile(np.array(shape, np.int16), (len(images), 1))
        return found

    def _maps(self, values: np.ndarray, encoding: str, place: str) -> np.ndarray:
        if encoding == "standardised":
            ids = np.rint((values.astype(np.float64) * 0.0621 + 0.3342) * 133)
            # A tenth of the step from one id to the next.
            wrong = np.abs(standardised(ids) - values) > 0.0121
        else:
            ids = values
            wrong = values != np.floor(values)
        wrong |= ~((ids >= 0) & ((ids <= NUM_CATEGORIES) | (ids == VOID)))
        if wrong.any():
            raise UserError(
                f"{place} holds {values[wrong][0]}, which is no class 0..132 (133 and 255 are void) as {encoding} map; "
                "correct datasets.<name>.seg_maps"
            )
        return self._lookup[ids.astype(np.uint8)]
