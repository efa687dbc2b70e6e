"""What all readers of other programs' feature files share: rows are read a few at a time, no file ever enters memory as a whole."""

from __future__ import annotations

import filecmp
import itertools
import os
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any, TypeVar

import numpy as np

from catalog.files import files_below
from catalog.index import ImageRows
from catalog.names import NUMBER, normal
from core.console import UserError
from core.features import Feature
from core.files import digest_json
from stores.schema import ArraySpec

T = TypeVar("T")
_SMALLEST = 2.0**-14  # below, numbers of float16 lose digits
_EXAMPLES = 5  # files that are looked into for what is usual
Rows = dict[str, np.ndarray]
Failures = list[tuple[int, str]]


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
        if 0 < (largest := np.abs(values).max(initial=0)) < _SMALLEST:
            raise UserError(
                f"{place} holds values of {largest:.3g} at most, of which float16 keeps hardly a digit; scale them"
            )
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


class Reader:
    """One program's files of one feature; made from (feature, images of the index, the format's own options).

    Args:
        provenance: in words, which detector the features are from. settings: further options that decide the rows.

    Attributes:
        format: its name in the configuration. features: those that it can read.
        arrays: of the store, by name. settings: for the record, and so that shards of different options never end up in one store.
        attributes: for readers of the store. notes: what is odd about the files. rounding: what float16 did to the values.

    Raises (when it is made):
        UserError: the files are missing or unusable. TypeError: unknown or missing options.
    """

    format: str
    features: tuple[Feature, ...]
    arrays: dict[str, ArraySpec]

    def __init__(self, provenance: str, **settings: Any) -> None:
        self.rounding = Rounding()
        self.settings = {"format": self.format, **settings, "provenance": provenance}
        self.attributes: dict[str, Any] = {}
        self.notes: list[str] = []

    def read(self, rows: range) -> tuple[Rows, Failures]:
        """All arrays of these rows of the index, and what is wrong with single images, whose rows keep fill values."""
        raise NotImplementedError


class PerImageReader(Reader):
    """A reader that finds each image's features by its name.

    Args:
        images: of the index. path: of the files.

    Attributes:
        unit: what holds an image's features, for messages: ".npz file for".
    """

    unit: str

    def __init__(self, images: ImageRows, path: str, provenance: str, **settings: Any) -> None:
        super().__init__(provenance, **settings)
        self.path, self.sizes = path, images.sizes
        self.names = all_names(images.ids, images.paths)
        self.attributes["files_digest"] = self.open()
        self.describe(self._usual(f"{path} has no usable {self.unit} any image of the index"))

    def open(self) -> str:
        """Find out what lies at `path`. Returns: a digest, part of the store's fingerprint. UserError: it cannot be used."""
        raise NotImplementedError

    def describe(self, example: Any) -> None:
        """Set `arrays` to those of images like this one, as `load` gave it."""
        raise NotImplementedError

    def find(self, row: int, known: Mapping[str, T], what: str) -> T:
        """An image's entry among those `known` by name. ValueError: there is none, or there are several.

        Args:
            what: a name's form in messages: "{}.npz".
        """
        found = {name: known[name] for name in self.names[row] if name in known}
        if not found:
            tried = ", ".join(repr(what.format(name)) for name in self.names[row])
            there = ", ".join(repr(what.format(name)) for name in itertools.islice(known, 2))
            raise ValueError(f"nothing for it in {self.path}; looked for {tried}; there are {there or 'none'}")
        first, *others = dict.fromkeys(found.values())
        # A file in a subfolder is found by its path and by its name; the same content under two names is one.
        if not all(self.same(first, other) for other in others):
            several = " and ".join(repr(what.format(name)) for name in found)
            raise ValueError(f"{several} in {self.path} could both be of it; remove one")
        return first

    def same(self, one: Any, other: Any) -> bool:
        """Whether two entries that could be of an image hold the same, so that either is right."""
        return (
            isinstance(one, str)
            and os.path.isfile(one)
            and os.path.isfile(other)
            and filecmp.cmp(one, other, shallow=False)
        )

    def load(self, row: int) -> Any:
        """What the files hold of an image. ValueError: what is wrong with it."""
        raise NotImplementedError

    def put(self, row: int, result: Rows, at: int) -> None:
        """Write an image's arrays to place `at` of `result`. ValueError: what is wrong with it."""
        raise NotImplementedError

    def layout(self, content: Any) -> Hashable:
        """What images of one store have in common, of one image's content."""
        raise NotImplementedError

    def check(self, content: Any, row: int) -> None:
        """ValueError: an image's content, by itself, cannot be what it is said to be."""

    def doubt(self, contents: Sequence[Any], rows: Sequence[int]) -> None:
        """Add to `notes` what is odd about the contents of some images, each of which by itself may be right."""

    def _doubt_equal(self, features: Sequence[np.ndarray], rows: Sequence[int]) -> None:
        """Add to `notes` that some images have the features of another: a program may have written one image's for all."""
        seen: dict[bytes, int] = {}
        for values, row in zip(features, rows, strict=True):
            if (first := seen.setdefault(values.tobytes(), row)) != row:
                one, other = self.names[first][0], self.names[row][0]
                self.notes.append(
                    f"{one!r} and {other!r} have the very same features in {self.path}; are they the same picture?"
                )
                return

    def _usual(self, otherwise: str) -> Any:
        """The content of an image with the layout that most of the first usable ones have: one odd file must not decide for all.

        UserError with the message `otherwise` and the first's fault: there is none.
        """
        first, found, rows = "", [], []
        for row in range(len(self.names)):
            try:
                content = self.load(row)
                self.check(content, row)
                found.append(content)
                rows.append(row)
            except ValueError as error:
                first = first or f"; {self.names[row][0]!r}: {error}"
            if len(found) == _EXAMPLES:
                break
        if not found:
            raise UserError(otherwise + first)
        self.doubt(found, rows)
        layouts = [self.layout(content) for content in found]
        return found[layouts.index(Counter(layouts).most_common(1)[0][0])]

    def read(self, rows: range) -> tuple[Rows, Failures]:
        """See `Reader.read`."""
        result = {name: spec.empty(len(rows)) for name, spec in self.arrays.items()}
        failures: Failures = []
        for at, row in enumerate(rows):
            try:
                self.put(row, result, at)
            except ValueError as error:
                failures.append((row, str(error)))
        return result, failures

    def rounded(self, row: int, features: np.ndarray) -> np.ndarray:
        """An image's features as float16. ValueError: values beyond it."""
        try:
            return self.rounding(features, f"features of {self.names[row][0]!r} in {self.path}")
        except UserError as error:
            raise ValueError(str(error)) from error


def image_names(image_id: str, path: str) -> list[str]:
    """Names other programs may give an image, each once: its id, its file's name without and with suffix, and, where the file is
    called by a number or as COCO calls it, the number and COCO's twelve digits."""
    file = PurePosixPath(path.partition("#")[0])
    names = [image_id, file.stem, file.name]
    for name in (image_id, file.stem):
        if number := NUMBER.fullmatch(name):
            names += [str(int(number[1])), number[1].zfill(12)]
    return list(dict.fromkeys(normal(name) for name in names))


def all_names(ids: Sequence[str], paths: Sequence[str]) -> list[list[str]]:
    """`image_names` of every image, without those that could mean two: an image's own id means that image alone."""
    names = [image_names(*pair) for pair in zip(ids, paths, strict=True)]
    owners = Counter(name for own in names for name in own)
    known = {normal(image_id) for image_id in ids}
    return [
        [name for name in own if name == normal(i) or (owners[name] == 1 and name not in known)]
        for i, own in zip(ids, names, strict=True)
    ]


def named_files(folder: str, suffix: str) -> tuple[dict[str, str], str]:
    """Path by file name without suffix, in subfolders by path too, hidden files apart; and a digest of names and sizes.

    A bare name that files of two folders have means neither. The digest is part of a store's fingerprint: shards of a folder that changed in between never end up in one store.
    """
    if not os.path.isdir(folder):
        raise UserError(f"imports.path: {folder!r} is not a folder of {suffix} files")
    files = [entry.path for entry in files_below(folder) if entry.name.lower().endswith(suffix)]
    found = {os.path.relpath(path, folder).replace(os.sep, "/"): path for path in sorted(files)}
    # A link to nowhere is found out about when it is read.
    digest = digest_json({n: os.path.getsize(path) if os.path.exists(path) else -1 for n, path in found.items()})
    bare = Counter(PurePosixPath(name).name for name in found)
    named = {normal(name[: -len(suffix)]): path for name, path in found.items()}
    for name, path in found.items():
        own = PurePosixPath(name).name
        if bare[own] == 1:
            named.setdefault(normal(own[: -len(suffix)]), path)
    return named, digest
