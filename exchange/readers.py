"""Feature files of other programs, read a few rows at a time: no file ever enters memory as a whole.

Every reader has `arrays` (name -> `ArraySpec`), `settings` (which runs compare), `attributes` (for readers of the store),
`rounding`, and `read(rows)`, which gives the rows of all arrays and what is wrong with single images.
"""

from __future__ import annotations

import base64
import binascii
import os
import pickle
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from catalog.categories import NUM_CATEGORIES, UPSNET_TO_COCO, VOID
from catalog.layout import BOXES_FILE, array_path, layout_files
from catalog.precomputed import open_array, read_parts, seg_map_encoding, standardised
from core.console import UserError
from core.files import digest_json
from stores.schema import ArraySpec

Rows = dict[str, np.ndarray]
Failures = list[tuple[int, str]]

_ROWS_AT_ONCE = 32
MAP_SIDE, GRID_SIDE = 64, 7


class Rounding:
    """float32 -> float16, counting what is not exact. UserError for what float16 cannot hold, or, if `exact`, any rounding."""

    def __init__(self, exact: bool = False) -> None:
        self.exact = exact
        self.values = 0
        self.rounded = 0
        self.largest = 0.0

    def __call__(self, values: np.ndarray, place: str) -> np.ndarray:
        """`values`, any shape and real dtype, as float16. `place`: for messages."""
        with np.errstate(over="ignore"):
            result = values.astype(np.float16)
        if not np.isfinite(result).all():
            raise UserError(f"{place} holds values that are not finite in float16 (NaN, infinite or beyond 65504)")
        error = np.abs(result.astype(np.float64 if values.dtype == np.float64 else np.float32) - values)
        self.values += error.size
        self.rounded += int(np.count_nonzero(error))
        self.largest = max(self.largest, float(error.max(initial=0)))
        if self.exact and self.rounded:
            raise UserError(f"{place} holds values that float16 rounds; set rounding: count to accept that")
        return result

    def describe(self) -> dict[str, float | int]:
        """For the receipt: float16 `values`, how many were `rounded`, and the largest `error`, absolute."""
        return {"values": self.values, "rounded": self.rounded, "error": self.largest}


class ScanReader:
    """SCAN's and 3SHNet's `.npy` files (see `catalog.precomputed`): float16 features, classes in COCO's order.

    Args:
        feature: which store to make. folder, splits, features: of the dataset.
        class_order: of the files, "upsnet" or "coco". seg_maps: their encoding, "auto" detects it file by file.
        rounding: "count", or "error" for values that float16 does not hold exactly.
    """

    def __init__(
        self,
        feature: str,
        *,
        folder: str,
        splits: dict[str, str],
        features: Sequence[str],
        class_order: str = "upsnet",
        seg_maps: str = "auto",
        rounding: str = "count",
        provenance: str = "unknown",
    ) -> None:
        self.feature, self.folder = feature, folder
        self.rounding = Rounding(rounding == "error")
        self.settings = {"format": "scan", "provenance": provenance}
        self.attributes: dict[str, Any] = {}
        self._parts = list(read_parts(folder, splits, features).values())
        self._files = dict(layout_files(feature))
        if feature == "regions" and all(BOXES_FILE in part.steps for part in self._parts):
            self._files["boxes"] = BOXES_FILE
        shapes = {array: self._shape(name) for array, name in self._files.items()}
        if feature == "panoptic":
            self.arrays = {
                "seg_maps": ArraySpec((MAP_SIDE, MAP_SIDE), "uint8", VOID),
                "category_onehots": ArraySpec((NUM_CATEGORIES,), "uint8", 0),
                "seg_features": ArraySpec((NUM_CATEGORIES, GRID_SIDE, GRID_SIDE), "float16", 0),
            }
            wrong = [
                f"{array}: {shapes[array]} per image instead of {spec.shape}"
                for array, spec in self.arrays.items()
                if shapes[array] != spec.shape
            ]
            if wrong:
                raise UserError(f"panoptic arrays in {folder} have other shapes:\n  " + "\n  ".join(wrong))
            # Of our category c, the place in the files.
            self._order = np.argsort(UPSNET_TO_COCO) if class_order == "upsnet" else np.arange(NUM_CATEGORIES)
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
        if len(shapes["features"]) != 2:
            raise UserError(
                f"{self._path(self._parts[0], 'features')}: one image's features have shape {shapes['features']} "
                "instead of (regions or cells, width)"
            )
        k, dim = shapes["features"]
        self.arrays = {"features": ArraySpec((k, dim), "float16", 0), "counts": ArraySpec((), "int16", 0)}
        if feature == "grids":
            self.arrays["grid_shapes"] = ArraySpec((2,), "int16", 0)
        elif "boxes" in self._files:
            if shapes["boxes"] != (k, 4):
                raise UserError(f"boxes in {folder} have shape {shapes['boxes']} per image instead of {(k, 4)}")
            self.arrays["boxes"] = ArraySpec((k, 4), "float32", 0)

    def _path(self, part: Any, array: str) -> Path:
        return array_path(self.folder, part.prefix, self._files[array])

    def _shape(self, name: str) -> tuple[int, ...]:
        """Of one image, the same in all splits."""
        shapes = {p.prefix: open_array(array_path(self.folder, p.prefix, name)).shape[1:] for p in self._parts}
        if len(set(shapes.values())) > 1:
            raise UserError(f"the splits' {name}.npy in {self.folder} have different shapes per image: {shapes}")
        return next(iter(shapes.values()))

    def __len__(self) -> int:
        """Images, over all splits."""
        return sum(part.images for part in self._parts)

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
        return result, []

    def _read_block(self, part: Any, images: range) -> Rows:
        found: Rows = {}
        for array in self._files:
            path, step = self._path(part, array), part.steps[self._files[array]]
            values = open_array(path)[images.start * step : images.stop * step : step]
            place = f"{path}, images {images.start} to {images.stop - 1} (of {part.images}),"
            if values.dtype.kind not in "fiub":
                raise UserError(f"{path} holds {values.dtype}, not real numbers")
            if array == "seg_maps":
                found[array] = self._maps(np.asarray(values), self._encodings[part.prefix], place)
            elif array == "category_onehots":
                if not np.isin(values, (0, 1)).all():
                    raise UserError(f"{place} holds other values than 0 and 1")
                found[array] = np.asarray(values)[:, self._order].astype(np.uint8)
            elif array == "seg_features":
                found[array] = self.rounding(np.asarray(values), place)[:, self._order]
            elif array == "boxes":
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


class RegionFiles:
    """What readers of region features per image share. `load(row)` gives one image's arrays, unpadded.

    Args:
        image_ids, paths, sizes: of the index; sizes as (height, width), (0, 0) where unknown.
        num_regions: K. provenance: in words, which detector the features are from.
    """

    format = ""

    def __init__(
        self,
        path: str,
        image_ids: Sequence[str],
        paths: Sequence[str],
        sizes: Sequence[tuple[int, int]],
        *,
        num_regions: int = 36,
        provenance: str = "unknown",
    ) -> None:
        self.path = path
        self.names = [image_names(i, p) for i, p in zip(image_ids, paths, strict=True)]
        self.sizes = sizes
        self.num_regions = num_regions
        self.rounding = Rounding()
        self.settings = {"format": self.format, "num_regions": num_regions, "provenance": provenance}
        self.attributes: dict[str, Any] = {}

    def _describe(self, example: Rows) -> None:
        k = self.num_regions
        specs = {
            "features": ArraySpec((k, example["features"].shape[1]), "float16", 0),
            "boxes": ArraySpec((k, 4), "float32", 0),
            "scores": ArraySpec((k,), "float32", 0),
            "class_ids": ArraySpec((k,), "int16", -1),
            "counts": ArraySpec((), "int16", 0),
            "attribute_ids": ArraySpec((k,), "int16", -1),
            "attribute_scores": ArraySpec((k,), "float32", 0),
        }
        self.arrays = {name: spec for name, spec in specs.items() if name in example or name == "counts"}

    def load(self, row: int) -> tuple[Rows, tuple[int, int]]:
        """Unpadded arrays of an image and the (height, width) they are for. ValueError: what is wrong with it."""
        raise NotImplementedError

    def read(self, rows: range) -> tuple[Rows, Failures]:
        """Arrays of these rows of the index; images without usable features keep fill values."""
        result = {name: spec.empty(len(rows)) for name, spec in self.arrays.items()}
        failures: Failures = []
        for at, row in enumerate(rows):
            try:
                found, size = self.load(row)
                self._check(found, size, self.sizes[row])
            except ValueError as error:
                failures.append((row, str(error)))
                continue
            count = len(found["features"])
            for name in self.arrays.keys() - {"counts"}:
                values = found[name]
                if name == "features":
                    values = self.rounding(values, f"features of {self.names[row][0]!r} in {self.path}")
                result[name][at, :count] = values
            result["counts"][at] = count
        return result, failures

    def _check(self, found: Rows, size: tuple[int, int], known: tuple[int, int]) -> None:
        count = len(found["features"])
        if count > self.num_regions:
            raise ValueError(f"has {count} regions; raise imports.regions.num_regions from {self.num_regions}")
        if found.keys() < self.arrays.keys() - {"counts"}:
            raise ValueError(f"lacks {', '.join(sorted(self.arrays.keys() - found.keys() - {'counts'}))}")
        for name, spec in self.arrays.items():
            if name != "counts" and found[name].shape != (count, *spec.shape[1:]):
                raise ValueError(f"{name} has shape {found[name].shape} instead of {(count, *spec.shape[1:])}")
        if known[0] and size != known:
            raise ValueError(f"is of an image of {size[1]} x {size[0]} pixels, this one has {known[1]} x {known[0]}")


def image_names(image_id: str, path: str) -> list[str]:
    """Names other programs may give an image: its id, its file's name, COCO's twelve digits."""
    names = [image_id, Path(path).stem]
    return [*names, image_id.zfill(12)] if image_id.isdigit() else names


def _named_files(folder: str, suffix: str) -> tuple[dict[str, str], str]:
    """Path by file name without suffix, hidden files apart; and a digest of names and sizes.

    The digest is part of a store's fingerprint: shards of a folder that changed in between never end up in one store.
    """
    if not os.path.isdir(folder):
        raise UserError(f"imports.path: {folder!r} is not a folder of {suffix} files")
    with os.scandir(folder) as entries:
        found = {e.name: (e.path, e.stat().st_size) for e in entries if e.name.endswith(suffix) and e.name[0] != "."}
    digest = digest_json({name: size for name, (_, size) in found.items()})
    return {name.removesuffix(suffix): path for name, (path, _) in found.items()}, digest


class NpzReader(RegionFiles):
    """bottom-up-attention's `.npz` per image: keys `x`, `bbox`, `num_bbox`, `image_h`, `image_w`, `info`."""

    format = "npz"

    def __init__(self, path: str, *arguments: Any, **options: Any) -> None:
        super().__init__(path, *arguments, **options)
        self._files, self.attributes["files_digest"] = _named_files(path, ".npz")
        for row in range(len(self.names)):
            try:
                self._describe(self.load(row)[0])
                return
            except ValueError:
                continue
        example = ", ".join(repr(f"{n}.npz") for n in self.names[0][:2])
        raise UserError(f"{path} has no usable .npz file for any image of the index; looked for {example}, ...")

    def load(self, row: int) -> tuple[Rows, tuple[int, int]]:
        """See `RegionFiles.load`."""
        file = next((self._files[n] for n in self.names[row] if n in self._files), None)
        if file is None:
            raise ValueError(f"no {self.names[row][0]}.npz in {self.path}")
        try:
            with np.load(file, allow_pickle=False) as content:
                found = {"features": content["x"], "boxes": content["bbox"]}
                size = int(content["image_h"]), int(content["image_w"])
                count = int(content["num_bbox"]) if "num_bbox" in content else len(found["features"])
            info = _read_info(file)
        except Exception as error:  # damaged and hostile files raise errors of every kind
            raise ValueError(f"{file} cannot be read ({type(error).__name__}: {error})") from error
        for array, key in (
            ("class_ids", "objects_id"), ("scores", "objects_conf"),
            ("attribute_ids", "attrs_id"), ("attribute_scores", "attrs_conf"),
        ):  # fmt: skip
            if key in info:
                found[array] = np.asarray(info[key])
        return {name: values[:count] for name, values in found.items()}, size


class _InfoUnpickler(pickle.Unpickler):
    """Containers of numpy arrays and nothing else: a file from a stranger cannot run code."""

    _ALLOWED = {
        (module, name)
        for module in ("numpy.core.multiarray", "numpy._core.multiarray")
        for name in ("_reconstruct", "scalar")
    } | {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no feature file needs")
        return super().find_class(module, name)


def _read_info(file: str) -> dict[str, Any]:
    """The dictionary `info`, which numpy could only unpickle without restriction."""
    with zipfile.ZipFile(file) as archive:
        if "info.npy" not in archive.namelist():
            return {}
        with archive.open("info.npy") as member:
            version = np.lib.format.read_magic(member)
            read_header = (
                np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            )
            read_header(member)
            content = _InfoUnpickler(member, encoding="latin1").load()
    info = content.item() if isinstance(content, np.ndarray) and content.size == 1 else content
    return info if isinstance(info, dict) else {}


# Columns of LXMERT's files and of the original bottom-up-attention's; binary ones in base64.
_LXMERT = ("img_id", "img_h", "img_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf", "num_boxes", "boxes", "features")  # fmt: skip
_BOTTOM_UP = ("img_id", "img_w", "img_h", "num_boxes", "boxes", "features")
_BINARY = {
    "features": ("features", np.float32), "boxes": ("boxes", np.float32), "class_ids": ("objects_id", np.int64),
    "scores": ("objects_conf", np.float32), "attribute_ids": ("attrs_id", np.int64),
    "attribute_scores": ("attrs_conf", np.float32),
}  # fmt: skip


class TsvReader(RegionFiles):
    """LXMERT's or the original bottom-up-attention's `.tsv`: one image a line. The file is read through once for its lines'
    places and then, line by line, where rows are asked for."""

    format = "tsv"

    def __init__(self, path: str, *arguments: Any, **options: Any) -> None:
        super().__init__(path, *arguments, **options)
        self._offsets: dict[str, int] = {}
        twice = []
        try:
            with open(path, "rb") as file:
                offset = 0
                for line in file:
                    name = line[: line.find(b"\t")].decode("utf-8", "replace")
                    if name in self._offsets:
                        twice.append(name)
                    if name not in ("img_id", "image_id"):
                        self._offsets[name] = offset
                    offset += len(line)
        except OSError as error:
            raise UserError(f"imports.path: {path} cannot be read ({error.strerror})") from error
        self.attributes["files_digest"] = digest_json(self._offsets | {"": offset})
        if twice:
            raise UserError(f"{path} has two lines for {', '.join(map(repr, twice[:5]))}; remove one of each")
        for row in range(len(self.names)):
            try:
                self._describe(self.load(row)[0])
                return
            except ValueError:
                continue
        raise UserError(f"{path} has no usable line for any image of the index, such as {self.names[0][:2]}")

    def load(self, row: int) -> tuple[Rows, tuple[int, int]]:
        """See `RegionFiles.load`."""
        offset = next((self._offsets[n] for n in self.names[row] if n in self._offsets), None)
        if offset is None:
            raise ValueError(f"no line for {self.names[row][0]} in {self.path}")
        with open(self.path, "rb") as file:
            file.seek(offset)
            cells = file.readline().rstrip(b"\r\n").split(b"\t")
        columns = {len(_LXMERT): _LXMERT, len(_BOTTOM_UP): _BOTTOM_UP}.get(len(cells))
        if columns is None:
            raise ValueError(f"its line in {self.path} has {len(cells)} columns instead of 10 (LXMERT) or 6")
        values = dict(zip(columns, cells, strict=True))
        try:
            count = int(values["num_boxes"])
            size = int(values["img_h"]), int(values["img_w"])
            found = {
                array: np.frombuffer(base64.b64decode(values[column], validate=True), dtype)
                for array, (column, dtype) in _BINARY.items()
                if column in values
            }
            found["features"], found["boxes"] = found["features"].reshape(count, -1), found["boxes"].reshape(count, 4)
        except (ValueError, binascii.Error) as error:
            raise ValueError(f"its line in {self.path} is damaged ({error})") from error
        return found, size


class PthReader:
    """grid-feats-vqa's `.pth` per image: a tensor (1, D, h, w); cells are pooled as our extractor pools its own.

    Args:
        path: folder. image_ids, paths: of the index. grid, max_cells: see `extractors.grids`.
    """

    def __init__(
        self,
        path: str,
        image_ids: Sequence[str],
        paths: Sequence[str],
        *,
        grid: int | str = 7,
        max_cells: int = 608,
        provenance: str = "unknown",
    ) -> None:
        self.path = path
        self.names = [image_names(i, p) for i, p in zip(image_ids, paths, strict=True)]
        self.grid = grid
        self.cells = max_cells if grid == "native" else grid * grid
        self.rounding = Rounding()
        self.settings = {"format": "pth", "grid": grid, "max_cells": max_cells, "provenance": provenance}
        self._files, digest = _named_files(path, ".pth")
        self.attributes = {"grid": grid, "files_digest": digest}
        dim = next(self._usable(), None)
        if dim is None:
            raise UserError(
                f"{path} has no usable .pth file for any image of the index, such as {self.names[0][0]}.pth"
            )
        self.arrays = {
            "features": ArraySpec((self.cells, dim), "float16", 0),
            "counts": ArraySpec((), "int16", 0),
            "grid_shapes": ArraySpec((2,), "int16", 0),
        }

    def _usable(self) -> Iterator[int]:
        for row in range(len(self.names)):
            try:
                yield len(self._load(row))
            except ValueError:
                continue

    def _load(self, row: int) -> Any:
        """(D, h, w) float32 tensor. ValueError: what is wrong with the file."""
        import torch

        file = next((self._files[n] for n in self.names[row] if n in self._files), None)
        if file is None:
            raise ValueError(f"no {self.names[row][0]}.pth in {self.path}")
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # damaged and hostile files raise errors of every kind
            raise ValueError(f"{file} is no file of tensors alone ({type(error).__name__})") from error
        if not isinstance(content, torch.Tensor) or content.ndim not in (3, 4):
            raise ValueError(f"{file} holds no (1, D, h, w) tensor")
        if content.ndim == 4 and len(content) != 1:
            raise ValueError(f"{file} holds {len(content)} images")
        return content.reshape(content.shape[-3:]).float()

    def read(self, rows: range) -> tuple[Rows, Failures]:
        """Arrays of these rows of the index; images without a usable file keep fill values."""
        from torch.nn import functional as F

        result = {name: spec.empty(len(rows)) for name, spec in self.arrays.items()}
        failures: Failures = []
        for at, row in enumerate(rows):
            try:
                content = self._load(row)
                if len(content) != self.arrays["features"].shape[1]:
                    raise ValueError(f"has width {len(content)} instead of {self.arrays['features'].shape[1]}")
            except ValueError as error:
                failures.append((row, str(error)))
                continue
            shape = self._grid_shape(*content.shape[1:])
            count = shape[0] * shape[1]
            pooled = F.adaptive_avg_pool2d(content, shape).flatten(1).T.numpy()
            result["features"][at, :count] = self.rounding(pooled, f"features of {self.names[row][0]!r} in {self.path}")
            result["counts"][at] = count
            result["grid_shapes"][at] = shape
        return result, failures

    def _grid_shape(self, height: int, width: int) -> tuple[int, int]:
        if self.grid != "native":
            return self.grid, self.grid
        factor = min(1.0, (self.cells / (height * width)) ** 0.5)
        return max(1, int(height * factor)), max(1, int(width * factor))
