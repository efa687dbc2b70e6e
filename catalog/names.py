"""How users name an image: by path, file name, id or number, composed or decomposed, with slashes of either system."""

from __future__ import annotations

import difflib
import math
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from numbers import Number
from pathlib import Path, PurePosixPath

from core.console import UserError
from core.files import Written, digest_file

NUMBER = re.compile(r"(?:COCO_[A-Za-z0-9]+_)?0*(\d+)")  # COCO_val2014_000000000042 is COCO's image 42
_EXACT = 2**53  # beyond, several whole numbers are one of floating point: whose it was cannot be said
_HINTS_UP_TO = 20_000  # names; looking for similar ones takes seconds beyond


def normal(name: str) -> str:
    """A name as it is compared: composed Unicode (macOS decomposes), `/` between folders, no blanks around, no `./`."""
    name = unicodedata.normalize("NFC", name).strip().replace("\\", "/")
    while name.startswith("./"):
        name = name[2:]
    return name


def as_name(value: object) -> str:
    """What a cell of a table names: spreadsheets and pandas turn the name 42 into the number 42 or 42.0."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, Written):
        return str(value)
    if isinstance(value, float) and value.is_integer():
        return str(int(value)) if abs(value) < _EXACT else f"{value:.16e}"
    return str(value) if isinstance(value, str | Number) else ""


class Names:
    """Finds images by the names that users give them.

    Args:
        root: the folder of the images. relative: their paths below it. ids: their ids, in the same order.
        others: paths below it of files that are no images to us, for hints.
    """

    def __init__(
        self, root: str | Path, relative: Sequence[str], ids: Sequence[str], others: Iterable[str] = ()
    ) -> None:
        self._exact = {normal(r): i for r, i in zip(relative, ids, strict=True)} | {normal(i): i for i in ids}
        self._bare: dict[str, str | None] = {}
        self._folded: dict[str, str | None] = {}
        self._numbers: dict[tuple[int, str], str | None] = {}
        for path, image_id in zip(relative, ids, strict=True):
            path = normal(path)
            name = PurePosixPath(path).name
            stem = name.rsplit(".", 1)[0]
            for key in {name, stem}:
                note_name(self._bare, key, image_id)
            for key in {path, path.rsplit(".", 1)[0], name, stem, normal(image_id)}:
                note_name(self._folded, key.casefold(), image_id)
            if number := NUMBER.fullmatch(stem):
                for suffix in ("", path.removeprefix(path.rsplit(".", 1)[0]).lower()):
                    note_name(self._numbers, (int(number[1]), suffix), image_id)
        parts = [normal(part) for part in Path(root).absolute().parts]
        #: What paths from elsewhere may begin with: `/data/mine/images/`, ..., `mine/images/`, `images/`.
        self._prefixes = {"/".join(parts[i:]).lstrip("/") + "/" for i in range(1, len(parts))}
        self._others: dict[str, str] = {}
        for other in map(normal, others):
            for key in (other, PurePosixPath(other).name, other.rsplit(".", 1)[0], PurePosixPath(other).stem):
                self._others.setdefault(key.casefold(), other)

    def find(self, value: object) -> str | None:
        """The id of the image called so: "" where none is, None where several could be meant."""
        name = normal(as_name(value))
        if not name:
            return ""
        if name in self._exact:
            return self._exact[name]
        # A bare name that fits files of two folders fits none of them.
        if name in self._bare:
            return self._bare[name]
        if (found := self._folded.get(name.casefold(), "")) != "":
            return found
        absolute = name.removeprefix("/")
        for prefix in self._prefixes:
            if absolute.startswith(prefix) and (found := self._exact.get(absolute.removeprefix(prefix))):
                return found
        # Leading zeros are lost where a table is read as numbers, and by programs that name files by them.
        whole = re.fullmatch(r"(\d+)(?:\.0+)?(|\.[a-z]\w*)", name.lower())
        if whole:
            return self._numbers.get((int(whole[1]), whole[2]), "")
        numbered = re.fullmatch(r"(.+)#\d+", name)  # as Flickr numbers captions
        return self.find(numbered[1]) if numbered else ""

    def unread(self, value: object) -> str:
        """The file of this name, with or without suffix, that is there but no image to us; "" if there is none."""
        return self._others.get(normal(as_name(value)).casefold(), "")

    def hint(self, value: object) -> str:
        """Why an image is not found, as far as that can be said: "" or a clause in brackets."""
        name = normal(as_name(value))
        if re.fullmatch(r"\d(\.\d+)?[eE]\+\d+", name):
            return " (a long number, of which a spreadsheet has kept the first digits; write names as text)"
        stem = self._folded.get(PurePosixPath(name).name.rsplit(".", 1)[0].casefold())
        if stem:
            return f" (there is {stem!r} with another suffix or in another folder)"
        if len(self._exact) <= _HINTS_UP_TO and (
            close := difflib.get_close_matches(name, self._exact, n=1, cutoff=0.8)
        ):
            return f" (did you mean {close[0]!r}?)"
        return ""


def row_of(image: str, ids: Sequence[str], paths: Sequence[str | None], contents: Sequence[str | None]) -> int | None:
    """The row of an image of an index: by its id, its file, a copy of its file, or a name that no other image could have.

    Args:
        image: as somebody named it. ids, paths, contents: of each row; contents are sha256 digests of the files.

    Returns:
        None: it is not among them.

    Raises:
        UserError: the name fits several.
    """
    rows = {image_id: row for row, image_id in enumerate(ids)}
    if image in rows:
        return rows[image]
    if os.path.isfile(image):  # not by its name alone: cameras give one name to many photos
        real = os.path.realpath(image)
        for row, path in enumerate(paths):
            if path and os.path.basename(path) == os.path.basename(image) and os.path.realpath(path) == real:
                return row
        content = digest_file(image)
        return next((row for row, one in enumerate(contents) if one == content), None)
    # Names in a million images are looked through in seconds; making `Names` of them takes half a minute.
    if not (wanted := normal(image)):
        return None
    for form in (str, str.casefold):
        name, found = form(wanted).replace("#", "/"), []
        for row, (image_id, path) in enumerate(zip(ids, paths, strict=True)):
            own = form(normal(path or image_id)).replace("#", "/")  # what lies in an archive
            if any(one == name or one.endswith(f"/{name}") for one in (own, os.path.splitext(own)[0], form(image_id))):
                found.append(row)
        if len(found) > 1:
            raise UserError(f"{image!r} could be {len(found)} images; give the id or the path of one")
        if found:
            return found[0]
    return None


def note_name(table: dict, key: object, image_id: str) -> None:
    """Remember a key's image, or that it fits several."""
    table[key] = image_id if table.get(key, image_id) == image_id else None
