"""Small stores, built by the functions that shard jobs use."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from catalog.index import ImageRows
from stores.job import ShardJob
from stores.plan import ShardPlan
from stores.schema import COMPRESSIONS, ArraySpec, Source
from stores.seal import seal

ARRAYS = {
    # One row of `features` is large enough for a chunk of its own, the others are not.
    "features": ArraySpec((3, 200), "float16", 0),
    "boxes": ArraySpec((3, 4), "float32", 0),
    "class_ids": ArraySpec((3,), "int16", -1),
    "counts": ArraySpec((), "int16", 0),
    "seg_maps": ArraySpec((4, 4), "uint8", 255),
}


@dataclass
class Parts:
    """Shards and receipts of a store, with the values that went in."""

    root: Path
    images: int
    shards: int
    extractor: dict[str, Any] = field(default_factory=lambda: {"architecture": "tiny", "recipe": 1})
    index_digest: str = "index"
    weights_digest: str = "weights"
    compression: str = COMPRESSIONS[0]

    def __post_init__(self) -> None:
        self.store = self.root / "regions.zarr"
        self.receipts = [self.root / "regions.receipts" / f"{shard}.json" for shard in range(self.shards)]
        self.ids = [f"image {i} é" for i in range(self.images)]
        self.plan = ShardPlan(self.images, self.shards)
        self.failures: set[int] = set()
        generator = np.random.default_rng(7)
        self.values = {
            name: (generator.normal(0, 50, (self.images, *spec.shape))).astype(spec.dtype)
            for name, spec in ARRAYS.items()
        }
        self.values["features"][generator.random(self.values["features"].shape) < 0.5] = 0

    @property
    def rows(self) -> ImageRows:
        """The index."""
        return ImageRows(self.ids, self.index_digest, [f"photos/{i}.jpg" for i in range(self.images)])

    def fail(self, row: int) -> None:
        """Make an image unreadable."""
        self.failures.add(row)
        for name, spec in ARRAYS.items():
            self.values[name][row] = spec.fill

    def write(self, *shards: int) -> Parts:
        """Do what shard jobs do; all of them by default."""
        for shard in shards or range(self.shards):
            source = Source("regions", ARRAYS, self.extractor, self.weights_digest, {"class_names": ["cat", "dog"]})
            place = {"store": self.store, "receipt": self.receipts[shard], "shard": shard, "shards": self.shards}
            with ShardJob(source, self.rows, **place, compression=self.compression) as job:
                for index, part in job.parts:
                    job.write(index, {name: values[part.start : part.stop] for name, values in self.values.items()})
                    for row in self.failures & set(part):
                        job.fail(row, "is damaged")
        return self

    def seal(self, **changes: Any) -> dict[str, Any]:
        """Seal as the workflow would; `changes` replace arguments."""
        arguments = {
            "store": self.store,
            "receipts": self.receipts,
            "images": self.rows,
            **changes,
        }
        return seal(**arguments)

    def digests(self) -> dict[str, str]:
        """sha256 of every file below the store."""
        return {
            path.relative_to(self.store).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in self.store.rglob("*")
            if path.is_file()
        }


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """A sealed store of 21 images that several tests share: look, don't touch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stores.plan.MAX_SHARD_ROWS", 8)
        made = Parts(tmp_path_factory.mktemp("intact"), 21, 2).write()
        made.seal()
    return made


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """Factory of `Parts`; Zarr shards of at most 8 rows keep everything small."""
    monkeypatch.setattr("stores.plan.MAX_SHARD_ROWS", 8)

    def make(images: int = 21, shards: int = 2, **settings: Any) -> Parts:
        return Parts(tmp_path, images, shards, **settings)

    return make
