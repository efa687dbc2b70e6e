"""LXMERT's and the original bottom-up-attention's regions: one `.tsv`, an image a line."""

from __future__ import annotations

import base64
import binascii

import numpy as np

from catalog.index import ImageRows
from core.console import UserError
from core.features import Feature
from core.files import digest_json
from exchange.formats.base import Rows
from exchange.formats.regions import RegionReader

# Columns of LXMERT's files and of the original bottom-up-attention's; binary ones in base64.
_LXMERT = ("img_id", "img_h", "img_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf", "num_boxes", "boxes", "features")  # fmt: skip
_BOTTOM_UP = ("img_id", "img_w", "img_h", "num_boxes", "boxes", "features")
_BINARY = {
    "features": ("features", np.float32), "boxes": ("boxes", np.float32), "class_ids": ("objects_id", np.int64),
    "scores": ("objects_conf", np.float32), "attribute_ids": ("attrs_id", np.int64),
    "attribute_scores": ("attrs_conf", np.float32),
}  # fmt: skip


class TsvReader(RegionReader):
    """The file `path`, read through once for its lines' places and then, line by line, where rows are asked for."""

    format = "tsv"

    def __init__(
        self, feature: Feature, images: ImageRows, *, path: str, num_regions: int = 36, provenance: str = "unknown"
    ) -> None:
        super().__init__(images, path, num_regions, provenance)
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
        nothing = f"{path} has no usable line for any image of the index, such as {self.names[0][:2]}"
        self.describe(self.example(nothing)[0])

    def load(self, row: int) -> tuple[Rows, tuple[int, int]]:
        """See `RegionReader.load`."""
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
