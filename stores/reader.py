"""Reading a sealed store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from core import layout
from core.console import UserError
from core.files import location
from core.machine import snakemake_command, snakemake_target
from stores.arrays import DamagedRows, RowArray, open_array
from stores.places import Location, place_of
from stores.plan import ShardPlan
from stores.schema import CONTENT_HASHES, IMAGE_IDS, SCHEMA_VERSION


class Store:
    """A sealed feature store: rows by number, in any order and as often as wanted.

    Opening reads the root metadata alone; arrays are opened when first used, and again in every process, so a store can
    be pickled and handed to loader workers, and used after a fork.

    Attributes:
        path: the folder, or the address as text. attributes: the root attributes (see `stores.schema`).

    Raises:
        UserError: not a store, not sealed, or of another schema version.
    """

    def __init__(self, path: Location) -> None:
        self._place = place_of(path)
        self.path: Path | str = location(str(self._place))
        root = f"{self.path}/zarr.json"
        try:
            metadata = json.loads(self._place.read("zarr.json"))
            self.attributes: dict[str, Any] = metadata["attributes"]
            version = self.attributes["schema_version"]
        except (FileNotFoundError, NotADirectoryError) as error:
            raise UserError(
                f"{self.path} is not a finished store (no zarr.json in it); run the stage that makes it to its end"
            ) from error
        except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(
                f"{self.path} is not a feature store, or {root} is damaged; run the stage that makes it again"
            ) from error
        if version != SCHEMA_VERSION:
            newer = isinstance(version, int) and version > SCHEMA_VERSION
            raise UserError(
                f"{self.path} has schema version {version}, this program reads {SCHEMA_VERSION}; "
                + ("update the program" if newer else "make the store again")
            )
        self._arrays: dict[str, RowArray] = {}
        self._ids: np.ndarray | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_arrays": {}, "_ids": None}

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r})"

    def __len__(self) -> int:
        return self._array(IMAGE_IDS).shape[0]

    @property
    def arrays(self) -> tuple[str, ...]:
        """Names of the store's arrays of features: without `image_ids` and `content_hashes`."""
        paths = (key.split("/") for key in self._place.keys())
        names = {path[0] for path in paths if path[1:] == ["zarr.json"]}
        return tuple(sorted(names - {IMAGE_IDS, CONTENT_HASHES}))

    @property
    def image_ids(self) -> np.ndarray:
        """(N,) str, in the index' row order."""
        if self._ids is None:
            self._ids = np.array(self._array(IMAGE_IDS).read(np.arange(len(self))).tolist(), dtype=str)
        return self._ids

    @property
    def dropped(self) -> set[str]:
        """Ids of images that could not be read; their rows hold fill values."""
        return set(self.attributes.get("dropped", ()))

    def content_hashes(self, indices) -> list[str]:
        """Digests of the image files that these rows were made from; "" where nobody knows it, as of imported features."""
        try:
            return self.rows(CONTENT_HASHES, indices).tolist()
        except UserError:  # older stores have none
            return [""] * len(indices)

    def shape(self, array: str) -> tuple[int, ...]:
        """(N, ...) of an array."""
        return self._array(array).shape

    def dtype(self, array: str) -> np.dtype:
        """dtype of an array."""
        return self._array(array).dtype

    def rows(self, array: str, indices) -> np.ndarray:
        """Rows of `array`.

        Args:
            array: name, e.g. "features". indices: (n,) integers in any order, repeats allowed.

        Returns:
            (n, ...) in the array's dtype, a new array.

        Raises:
            IndexError: an index is negative or beyond the last row. TypeError: indices are no integers.
            UserError: there is no such array, or its data is missing or damaged.
        """
        source = self._array(array)
        indices = np.asarray(indices)
        if indices.ndim != 1:
            raise TypeError(f"indices into array {array!r} must have one dimension, not {indices.ndim}")
        if not len(indices):
            indices = indices.astype(np.int64)
        if indices.dtype.kind not in "iu":
            raise TypeError(f"indices into array {array!r} must be integers, not {indices.dtype}")
        count = source.shape[0]
        outside = (indices < 0) | (indices >= count)
        if outside.any():
            raise IndexError(
                f"row {indices[outside][0]} of array {array!r} in {self.path} does not exist: "
                f"its {count} rows are numbered from 0"
            )
        indices = indices.astype(np.int64)
        try:
            if (indices[1:] > indices[:-1]).all():
                return source.read(indices)
            order = np.argsort(indices, kind="stable")
            if len(indices) and (np.diff(indices[order]) > 0).all():
                return source.read(indices[order], order)
            unique, inverse = np.unique(indices, return_inverse=True)
            return source.read(unique)[inverse]
        except DamagedRows as error:
            raise UserError(f"{error}; {self._cure(error.row)}") from error

    def _cure(self, row: int) -> str:
        """How the shard of a row is made again."""
        plan = self.attributes.get("plan")
        if plan is None:
            return "make the store again"
        shard = ShardPlan(plan["images"], plan["shards"]).shard_of(row)
        receipt = snakemake_target(layout.receipt_of(self.path, shard))
        return f"make its shard again with: {snakemake_command()} --force {receipt}"

    def _array(self, name: str) -> RowArray:
        if name not in self._arrays:
            self._arrays[name] = open_array(self._place, name)
        return self._arrays[name]


def open_store(path: Location) -> Store:
    """Open a sealed store in a folder or at an `s3://` address. UserError if it is unsealed, damaged or of another schema version."""
    return Store(path)
