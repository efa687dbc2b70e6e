"""What all readers of other programs' feature files share: rows are read a few at a time, no file ever enters memory as a whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from catalog.index import ImageRows
from core.console import UserError
from core.features import Feature
from core.files import digest_json
from stores.schema import ArraySpec

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
        attributes: for readers of the store. rounding: what float16 did to the values.

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

    def read(self, rows: range) -> tuple[Rows, Failures]:
        """All arrays of these rows of the index, and what is wrong with single images, whose rows keep fill values."""
        raise NotImplementedError


class PerImageReader(Reader):
    """A reader that finds each image's features by its name.

    Args:
        images: of the index. path: of the files.
    """

    def __init__(self, images: ImageRows, path: str, provenance: str, **settings: Any) -> None:
        super().__init__(provenance, **settings)
        self.path, self.sizes = path, images.sizes
        self.names = [image_names(*pair) for pair in zip(images.ids, images.paths, strict=True)]

    def load(self, row: int) -> Any:
        """What the files hold of an image. ValueError: what is wrong with it."""
        raise NotImplementedError

    def put(self, row: int, result: Rows, at: int) -> None:
        """Write an image's arrays to place `at` of `result`. ValueError: what is wrong with it."""
        raise NotImplementedError

    def example(self, otherwise: str) -> Any:
        """The first image's content that can be loaded. UserError with the message `otherwise`: there is none."""
        for row in range(len(self.names)):
            try:
                return self.load(row)
            except ValueError:
                continue
        raise UserError(otherwise)

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
        """An image's features as float16."""
        return self.rounding(features, f"features of {self.names[row][0]!r} in {self.path}")


def image_names(image_id: str, path: str) -> list[str]:
    """Names other programs may give an image: its id, its file's name, COCO's twelve digits."""
    names = [image_id, Path(path).stem]
    return [*names, image_id.zfill(12)] if image_id.isdigit() else names


def named_files(folder: str, suffix: str) -> tuple[dict[str, str], str]:
    """Path by file name without suffix, hidden files apart; and a digest of names and sizes.

    The digest is part of a store's fingerprint: shards of a folder that changed in between never end up in one store.
    """
    if not os.path.isdir(folder):
        raise UserError(f"imports.path: {folder!r} is not a folder of {suffix} files")
    with os.scandir(folder) as entries:
        found = {e.name: (e.path, e.stat().st_size) for e in entries if e.name.endswith(suffix) and e.name[0] != "."}
    digest = digest_json({name: size for name, (_, size) in found.items()})
    return {name.removesuffix(suffix): path for name, (path, _) in found.items()}, digest
