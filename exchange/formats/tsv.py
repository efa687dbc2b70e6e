"""LXMERT's and the original bottom-up-attention's regions: one `.tsv`, an image a line."""

from __future__ import annotations

import base64
import codecs
from collections.abc import Mapping, Sequence

import numpy as np

from catalog.names import normal
from core.console import UserError
from core.files import digest_json
from core.kinds import other_kind
from exchange.formats.base import Rows
from exchange.formats.checks import check_regions
from exchange.formats.regions import RegionReader
from exchange.formats.tsv_columns import IDS, Columns, of_header, of_values

# The numbers' types by how many bytes each takes; whole numbers are 8 or 4 bytes wide.
_REAL = {2: np.float16, 4: np.float32, 8: np.float64}
_SPREAD = 7  # powers of two, standard deviation; features of networks have 1 to 3, misread ones 11 and more
_LOOKED_INTO, _LONGEST = 5, 1024  # lines for what the columns are; bytes of an image's name
_WHOLE = {4: np.int32, 8: np.int64}
# Columns in base64.
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
        self._rows = {name: row for row, own in enumerate(self.names) for name in own}
        try:
            self._columns = self._find_columns()
            lines, end = self._places()
        except OSError as error:
            raise UserError(f"imports.path: {self.path} cannot be read ({error.strerror})") from error
        if not lines:
            raise UserError(f"imports.path: {self.path} has no lines; download or export it again")
        self._offsets = self._one_each(lines)
        if not self._offsets.keys() & self._rows.keys() and (what := other_kind(self.path)):
            raise UserError(f"imports.path: {self.path} is {what}")
        return digest_json(self._offsets | {"": end})

    def _find_columns(self) -> Columns:
        """As the first line says, or some lines that name an image."""
        some: list[list[bytes]] = []
        with open(self.path, "rb") as file:
            begun = False
            for line in file:
                cells = line.removeprefix(codecs.BOM_UTF8).rstrip(b"\r\n").split(b"\t")
                if not begun and (columns := of_header(cells, self.path)):
                    return columns
                begun = begun or any(cells)
                if any(_name(cell) in self._rows for cell in cells if len(cell) < _LONGEST):
                    some.append(cells)
                if len(some) == _LOOKED_INTO:
                    break
        return of_values(some, self._explains, self.path)

    def _explains(self, columns: Columns, cells: Sequence[bytes]) -> bool:
        """Whether a line, read so, is one of an image of the index."""
        try:
            values = columns.read(cells, "")
            row = self._rows[_name(values["img_id"])]
            size = int(values["img_h"]), int(values["img_w"])
            if self.sizes[row][0] and size != self.sizes[row]:
                return False
            check_regions(_parsed(values)[0], size)
        except (ValueError, KeyError):
            return False
        return True

    def _places(self) -> tuple[dict[str, list[int]], int]:
        """Where the lines of each name begin, and where the file ends."""
        lines: dict[str, list[int]] = {}
        offset, own = 0, self._columns.name
        with open(self.path, "rb") as file:
            for line in file:
                if not offset and line.startswith(codecs.BOM_UTF8):
                    offset, line = len(codecs.BOM_UTF8), line[len(codecs.BOM_UTF8) :]
                cells = line.split(b"\t", own + 1)
                name = _name(cells[own]) if own < len(cells) else ""
                if line.strip() and name.casefold() not in IDS:
                    lines.setdefault(name, []).append(offset)
                offset += len(line)
        return lines, offset

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
        return self._values(one) == self._values(other)

    def _values(self, offset: int) -> list[bytes]:
        """A line's cells without the name."""
        return [cell for k, cell in enumerate(self._line(offset).split(b"\t")) if k != self._columns.name]

    def _parsed(self, offset: int) -> tuple[Rows, tuple[int, int]]:
        place = f"its line in {self.path}"
        values = self._columns.read(self._line(offset).split(b"\t"), place)
        try:
            return _parsed(values)
        except ValueError as error:
            raise ValueError(f"{place} is damaged ({error})") from error


def _name(cell: bytes) -> str:
    """An image's name as names are compared."""
    return normal(cell.strip(b"\r\n").decode("utf-8", "replace"))


def _parsed(values: Mapping[str, bytes]) -> tuple[Rows, tuple[int, int]]:
    """A line's arrays and the (height, width) that they are for. ValueError: what is wrong with it."""
    count, size = int(values["num_boxes"]), (int(values["img_h"]), int(values["img_w"]))
    found = {
        array: _numbers(values[column], count * (4 if array == "boxes" else 1), types, column)
        for array, (column, types) in _BINARY.items()
        if column in values
    }
    # How wide features are only the file says: their numbers are as wide as those of its boxes.
    features = np.frombuffer(_decoded(values["features"]), found["boxes"].dtype)
    _check_precision(features)
    found["features"], found["boxes"] = features.reshape(count, -1), found["boxes"].reshape(count, 4)
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
