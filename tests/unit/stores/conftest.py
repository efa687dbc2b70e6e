"""Small stores, built by the functions that shard jobs use."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stores.plan import ShardPlan
from stores.receipts import write_receipt
from stores.schema import COMPRESSIONS, ArraySpec, compressed, describe_store
from stores.seal import seal
from stores.writer import unseal, write_zarr_shard

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
        self.arrays = compressed(ARRAYS, self.compression)
        self.failures: dict[int, dict[str, str]] = {}
        generator = np.random.default_rng(7)
        self.values = {
            name: (generator.normal(0, 50, (self.images, *spec.shape))).astype(spec.dtype)
            for name, spec in ARRAYS.items()
        }
        self.values["features"][generator.random(self.values["features"].shape) < 0.5] = 0

    def fail(self, row: int) -> None:
        """Make an image unreadable."""
        self.failures[row] = {"image_id": self.ids[row], "path": f"photos/{row}.jpg", "error": "is damaged"}
        for name, spec in ARRAYS.items():
            self.values[name][row] = spec.fill

    def write(self, *shards: int) -> Parts:
        """Do what shard jobs do; all of them by default."""
        for shard in shards or range(self.shards):
            unseal(self.store)
            files = {}
            for index, rows in self.plan.zarr_shards(shard):
                values = {name: array[rows.start : rows.stop] for name, array in self.values.items()}
                files |= write_zarr_shard(self.store, index, values, self.arrays, self.plan)
            rows = self.plan.rows(shard)
            write_receipt(
                self.receipts[shard],
                description=describe_store(
                    feature="regions",
                    arrays=self.arrays,
                    plan=self.plan,
                    extractor=self.extractor,
                    weights_digest=self.weights_digest,
                    index_digest=self.index_digest,
                    attributes={"class_names": ["cat", "dog"]},
                ),
                shard=shard,
                rows=rows,
                failures=[self.failures[row] for row in rows if row in self.failures],
                seconds={"total": 2.0, "startup": 1.0, "decode": 0.1, "network": 0.8, "write": 0.1},
                device="cpu",
                files=files,
            )
        return self

    def seal(self, **changes: Any) -> dict[str, Any]:
        """Seal as the workflow would; `changes` replace arguments."""
        arguments = {
            "store": self.store,
            "receipts": self.receipts,
            "image_ids": self.ids,
            "index_digest": self.index_digest,
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
