"""bottom-up-attention's regions: one `.npz` per image."""

from __future__ import annotations

import pickle
import zipfile
from typing import Any

import numpy as np

from core.kinds import other_kind
from exchange.formats.base import Rows, named_files
from exchange.formats.checks import box_rows, feature_rows
from exchange.formats.regions import RegionReader


class NpzReader(RegionReader):
    """Files with the keys `x`, `bbox`, `num_bbox`, `image_h`, `image_w`, `info` in the folder `path`."""

    format = "npz"
    unit = ".npz file for"
    _transposed: bool | None = None  # until a file has told

    def open(self) -> str:
        """See `PerImageReader.open`."""
        self._files, digest = named_files(self.path, ".npz")
        return digest

    def describe(self, example: tuple[Rows, tuple[int, int] | None]) -> None:
        """See `PerImageReader.describe`; all files have the layout of the first that tells."""
        super().describe(example)
        self._transposed = self._usual_layout()
        self.attributes["imported_transposed"] = bool(self._transposed)

    def load(self, row: int) -> tuple[Rows, tuple[int, int] | None]:
        """See `RegionReader.load`."""
        file = self.find(row, self._files, "{}.npz")
        features, boxes, count, size, info = self._open(file)
        try:
            boxes = box_rows(boxes)
            found = {"features": feature_rows(features, len(boxes), self._transposed), "boxes": boxes}
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
        if not 0 <= count <= len(boxes):
            raise ValueError(f"{file} says num_bbox is {count}, but holds {len(boxes)} boxes")
        for array, key in (
            ("class_ids", "objects_id"), ("scores", "objects_conf"),
            ("attribute_ids", "attrs_id"), ("attribute_scores", "attrs_conf"),
        ):  # fmt: skip
            if key in info:
                found[array] = np.asarray(info[key])
        return {name: values[:count] for name, values in found.items()}, size

    def _open(self, file: str) -> tuple[np.ndarray, np.ndarray, int, tuple[int, int] | None, dict[str, Any]]:
        """What is in a file: x, bbox, num_bbox, (height, width), info. ValueError: it cannot be read."""
        try:
            with np.load(file, allow_pickle=False) as content:
                if len(set(content.files)) < len(content.files):
                    raise ValueError(f"an array is in it twice: {', '.join(sorted(content.files))}")
                if missing := [key for key in ("x", "bbox") if key not in content]:
                    raise ValueError(
                        f"no {' and no '.join(missing)} in it, only {', '.join(content.files) or 'nothing'}"
                    )
                features, boxes = (np.asarray(content[key]) for key in ("x", "bbox"))
                size = tuple(_whole(key, content[key]) for key in ("image_h", "image_w") if key in content)
                count = _whole("num_bbox", content["num_bbox"]) if "num_bbox" in content else len(box_rows(boxes))
            return features, boxes, count, size if len(size) == 2 else None, _read_info(file)
        except Exception as error:  # damaged and hostile files raise errors of every kind
            if what := other_kind(file):
                raise ValueError(f"{file} is {what}") from error
            if "Object arrays" in str(error):  # numpy would advise to unpickle them, which runs what a stranger wrote
                what = "holds Python objects as x or bbox, which are never opened; save arrays of numbers"
                raise ValueError(f"{file} {what}") from error
            raise ValueError(f"{file} cannot be read ({error})") from error

    def _usual_layout(self) -> bool | None:
        """Whether `x` is (width, boxes), by the first file whose sides differ; None if there is none."""
        for row in range(len(self.names)):
            try:
                features, boxes, *_ = self._open(self.find(row, self._files, "{}.npz"))
                count = len(box_rows(boxes))
            except ValueError:
                continue
            if features.shape[-2:] != (count, count):
                return features.shape[-1] == count
        return None


def _whole(key: str, value: np.ndarray) -> int:
    """A whole number, alone in its array. ValueError: it is none."""
    number = value.reshape(-1)
    if len(number) != 1 or number.dtype.kind not in "iuf" or not number[0] == np.floor(number[0]) < 1 << 31:
        raise ValueError(f"{key} is {value}, no whole number")
    return int(number[0])


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
