"""LXMERT's and the original bottom-up-attention's regions: one `.tsv`, an image a line."""

from __future__ import annotations

import base64
import binascii
import codecs

import numpy as np

from catalog.names import normal
from core.console import UserError
from core.files import digest_json
from core.kinds import other_kind
from exchange.formats.base import Rows
from exchange.formats.checks import check_regions
from exchange.formats.regions import RegionReader

# The numbers' types by how many bytes each takes; whole numbers are 8 or 4 bytes wide.
_REAL = {2: np.float16, 4: np.float32, 8: np.float64}
_SPREAD = 7  # powers of two, standard deviation; features of networks have 1 to 3, misread ones 11 and more
_WHOLE = {4: np.int32, 8: np.int64}
# Columns of LXMERT's files and of the original bottom-up-attention's; binary ones in base64.
_LXMERT = ("img_id", "img_h", "img_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf", "num_boxes", "boxes", "features")  # fmt: skip
_BOTTOM_UP = ("img_id", "img_w", "img_h", "num_boxes", "boxes", "features")
_BINARY = {
    "boxes": ("boxes", _REAL), "class_ids": ("objects_id", _WHOLE), "scores": ("objects_conf", _REAL),
    "attribute_ids": ("attrs_id", _WHOLE), "attribute_scores": ("attrs_conf", _REAL),
}  # fmt: skip


class TsvReader(RegionReader):
    """The file `path`, read through once for its lines' places and then, line by line, where rows are asked for."""

    format = "tsv"
    unit = "line for"

    def open(self) -> str:
        """See `PerImageReader.open`."""
        lines: dict[str, list[int]] = {}
        try:
            with open(self.path, "rb") as file:
                offset = 0
                for line in file:
                    if not offset and line.startswith(codecs.BOM_UTF8):
                        offset, line = len(codecs.BOM_UTF8), line[len(codecs.BOM_UTF8) :]
                    name = normal(line[: line.find(b"\t")].decode("utf-8", "replace"))
                    if line.strip() and name not in ("img_id", "image_id"):
                        lines.setdefault(name, []).append(offset)
                    offset += len(line)
        except OSError as error:
            raise UserError(f"imports.path: {self.path} cannot be read ({error.strerror})") from error
        if not lines:
            raise UserError(f"imports.path: {self.path} has no lines; download or export it again")
        self._offsets = self._one_each(lines)
        if not self._offsets.keys() & {name for own in self.names for name in own} and (what := other_kind(self.path)):
            raise UserError(f"imports.path: {self.path} is {what}")
        return digest_json(self._offsets | {"": offset})

    def _one_each(self, lines: dict[str, list[int]]) -> dict[str, int]:
        """The place of each name's line. bottom-up-attention's own files hold some twice: equal lines are one, and of damaged and
        whole ones the whole one counts. UserError: whole lines of one name that differ."""
        twice = []
        for name, offsets in lines.items():
            if len(offsets) > 1:
                different = list({self._line(offset): offset for offset in reversed(offsets)}.values())[::-1]
                lines[name] = [offset for offset in different if self._whole(offset)] or different[:1]
                if len(lines[name]) > 1:
                    twice.append(name)
        if twice:
            shown = ", ".join(map(repr, twice[:5]))
            raise UserError(f"{self.path} has two lines that differ for {shown}; remove one of each")
        return {name: offsets[0] for name, offsets in lines.items()}

    def _whole(self, offset: int) -> bool:
        try:
            check_regions(*self._parsed(offset))
        except ValueError:
            return False
        return True

    def _line(self, offset: int) -> bytes:
        with open(self.path, "rb") as file:
            file.seek(offset)
            return file.readline().rstrip(b"\r\n")

    def load(self, row: int) -> tuple[Rows, tuple[int, int]]:
        """See `RegionReader.load`."""
        return self._parsed(self.find(row, self._offsets, "{}"))

    def same(self, one: int, other: int) -> bool:
        """See `PerImageReader.same`."""
        return self._line(one).partition(b"\t")[2] == self._line(other).partition(b"\t")[2]

    def _parsed(self, offset: int) -> tuple[Rows, tuple[int, int]]:
        cells = self._line(offset).split(b"\t")
        columns = {len(_LXMERT): _LXMERT, len(_BOTTOM_UP): _BOTTOM_UP}.get(len(cells))
        if columns is None:
            raise ValueError(f"its line in {self.path} has {len(cells)} columns instead of 10 (LXMERT) or 6")
        values = dict(zip(columns, cells, strict=True))
        try:
            count = int(values["num_boxes"])
            size = int(values["img_h"]), int(values["img_w"])
            found = {
                array: _numbers(values[column], count * (4 if array == "boxes" else 1), types, column)
                for array, (column, types) in _BINARY.items()
                if column in values
            }
            # How wide features are only the file says: their numbers are as wide as those of its boxes.
            features = np.frombuffer(_decoded(values["features"]), found["boxes"].dtype)
            _check_precision(features)
            found["features"], found["boxes"] = features.reshape(count, -1), found["boxes"].reshape(count, 4)
        except (ValueError, binascii.Error) as error:
            raise ValueError(f"its line in {self.path} is damaged ({error})") from error
        return found, size


def _numbers(cell: bytes, count: int, types: dict[int, type], column: str) -> np.ndarray:
    """The `count` numbers of a cell in base64. ValueError: it does not hold so many of any of the `types`, by their bytes."""
    content = _decoded(cell)
    width, rest = divmod(len(content), max(1, count))
    if rest or width not in types:
        raise ValueError(f"{column} has {len(content)} bytes for {count} numbers")
    return np.frombuffer(content, types[width])


def _check_precision(features: np.ndarray) -> None:
    """ValueError: numbers of another width than they were taken for. Two halves read as one are spread over many powers of two."""
    powers = np.log2(np.abs(features[(features != 0) & np.isfinite(features)]).astype(np.float64))
    # Of round numbers the lower halves are zeros.
    if powers.size and (powers.std() > _SPREAD or not features[::2].any()):
        raise ValueError(f"features are no {features.dtype}, as the boxes beside them are; write both in one precision")


def _decoded(cell: bytes) -> bytes:
    """A cell's bytes; Python 3 has left `b'...'` around many."""
    return base64.b64decode(cell[2:-1] if cell[:2] in (b"b'", b'b"') else cell, validate=True)
