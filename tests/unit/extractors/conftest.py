"""Extraction as the workflow does it: an index, shard jobs, a seal; with a tiny extractor in place of the networks. A photograph."""

from __future__ import annotations

import hashlib
import json
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

from catalog.index import CAPTIONS_SCHEMA, ImageRows, describe_images, write_index
from core.files import digest_file
from extractors.images import InputSpec
from extractors.loading import RUNNERS
from extractors.run import main
from stores import open_store
from stores.schema import ArraySpec
from stores.seal import seal
from tests.unit.extractors.photos import PHOTOS, by_pillow

IMAGES = 13
BAD = 6


@pytest.fixture
def photo():
    """A real photo, small: (60, 90, 3) uint8, no two corners alike."""
    return np.array(Image.fromarray(by_pillow(PHOTOS[1])).resize((90, 60)))


@pytest.fixture
def extract_store(tmp_path):
    """`extract_store(feature, paths, settings)`: the opened store of these images, made by `python -m extractors.run`."""
    threads = torch.get_num_threads()

    def run(feature, paths, settings):
        module = __import__(f"extractors.{feature}", fromlist=["RECIPE"])
        images, store, receipt = tmp_path / "images.parquet", tmp_path / f"{feature}.zarr", tmp_path / "0.json"
        ids = [str(i) for i in range(len(paths))]
        table = describe_images(ids, [str(p) for p in paths], ["test"] * len(paths), 1)
        digest = write_index(images, tmp_path / "captions.parquet", table, CAPTIONS_SCHEMA.empty_table())
        arguments = {"feature": feature, "images": images, "shard": 0, "shards": 1, "store": store, "receipt": receipt}
        arguments |= {"settings": json.dumps(settings), "recipe": module.RECIPE, "device": "cpu", "workers": 1}
        main([part for name, value in arguments.items() for part in (f"--{name}", str(value))])
        seal(store=store, receipts=[receipt], images=ImageRows(ids, digest))
        return open_store(store)

    yield run
    torch.set_num_threads(threads)


class MeanColour:
    """The mean colour of the resized image, its original size as a box, and 1 as the count."""

    input = InputSpec(16, 24, "RGB", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), 8)
    arrays = {
        "features": ArraySpec((1, 3), "float16", 0),
        "boxes": ArraySpec((1, 4), "float32", 0),
        "class_ids": ArraySpec((1,), "int16", -1),
        "counts": ArraySpec((), "int16", 0),
    }
    weights_digest = "weights"
    attributes = {"class_names": ["colour"]}

    def __init__(self, scale: float = 1.0, weights: str | None = None) -> None:
        self.scale = scale
        if weights is not None:
            self.weights_digest = digest_file(weights)
        self.batch_sizes: list[int] = []

    def to(self, device):
        return self

    def __call__(self, batch):
        self.batch_sizes.append(len(batch.rows))
        results = []
        for pixels, (h, w), (height, width) in zip(batch.pixels, batch.sizes, batch.original_sizes, strict=True):
            mean = pixels[:, :h, :w].double().mean((1, 2)).numpy() * self.scale
            results.append(
                {
                    "features": mean.astype(np.float16)[None],
                    "boxes": np.array([[0, 0, width, height]], np.float32),
                    "class_ids": np.array([0], np.int16),
                    "counts": np.array(1, np.int16),
                }
            )
        return results


@pytest.fixture
def module(monkeypatch):
    """A stand-in for extractors/regions.py and its network, and small Zarr shards."""
    fake = types.ModuleType("extractors.regions")
    fake.RECIPE = 3
    fake.built = []

    def extractor(runner: str | None, *, scale: float = 1.0):
        fake.built.append(MeanColour(scale, weights=runner))
        return fake.built[-1]

    def runner(*, architecture: str, weights: str | None = None):
        return weights

    fake.EXTRACTOR = extractor
    monkeypatch.setitem(sys.modules, "extractors.regions", fake)
    monkeypatch.setitem(RUNNERS, "regions", runner)
    monkeypatch.setattr("stores.plan.MAX_SHARD_ROWS", 4)
    threads = torch.get_num_threads()
    yield fake
    torch.set_num_threads(threads)


@pytest.fixture
def job(tmp_path, module, capsys):
    """An index of 13 images, one of them damaged, and functions that run the command and seal."""
    (tmp_path / "photos").mkdir()
    generator = np.random.default_rng(3)
    paths = []
    for i in range(IMAGES):
        size = [(20, 30), (30, 20), (18, 18)][i % 3]
        paths.append(str(tmp_path / f"photos/{i}.png"))
        Image.fromarray(generator.integers(0, 256, (*size, 3), np.uint8)).save(paths[-1])
    with open(paths[BAD], "r+b") as file:
        file.truncate(70)
    ids = [f"photo-{i}" for i in range(IMAGES)]
    table = describe_images(ids, paths, ["test"] * IMAGES, 1)
    digest = write_index(
        tmp_path / "images.parquet", tmp_path / "captions.parquet", table, CAPTIONS_SCHEMA.empty_table()
    )
    capsys.readouterr()
    job = types.SimpleNamespace(root=tmp_path, ids=ids, paths=paths, digest=digest, store=tmp_path / "regions.zarr")

    def receipt(shard: int):
        return tmp_path / f"regions.receipts/{shard}.json"

    def run(shard: int = 0, shards: int = 2, settings: dict | str | None = None, **changes) -> dict:
        if not isinstance(settings, str):
            settings = json.dumps({"architecture": "tiny", "batch_size": 3} | (settings or {}))
        arguments = {
            "feature": "regions",
            "images": tmp_path / "images.parquet",
            "shard": shard,
            "shards": shards,
            "store": job.store,
            "receipt": receipt(shard),
            "settings": settings,
            "recipe": 3,
            "threads": 1,
            "workers": 0,
            "device": "cpu",
            **changes,
        }
        main([text for key, value in arguments.items() for text in (f"--{key}", str(value))])
        return json.loads(receipt(shard).read_text())

    def seal_(shards: int = 2, **changes) -> None:
        arguments = {"images": ImageRows(ids, digest), "on_bad_image": "drop", **changes}
        seal(store=job.store, receipts=[receipt(shard) for shard in range(shards)], **arguments)

    def digests() -> dict[str, str]:
        files = [path for path in job.store.rglob("*") if path.is_file()]
        return {str(path.relative_to(job.store)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    def reindex(ids: list[str], paths: list[str]) -> None:
        """Another index in the place of the first, and sealing for it."""
        job.ids, job.paths = ids, paths
        job.table = describe_images(ids, paths, ["test"] * len(ids), 1)
        job.digest = write_index(
            tmp_path / "images.parquet", tmp_path / "captions.parquet", job.table, CAPTIONS_SCHEMA.empty_table()
        )

    def all_shards(shards: int = 2, **changes) -> list[dict]:
        """Every shard and the seal, as the workflow does it; the receipts."""
        receipts = [run(shard, shards, **changes) for shard in range(shards)]
        hashes = job.table.column("content_hash").to_pylist()
        seal_(shards, images=ImageRows(job.ids, job.digest, content_hashes=hashes))
        return receipts

    job.table = table
    job.run, job.seal, job.receipt, job.digests = run, seal_, receipt, digests
    job.reindex, job.all_shards = reindex, all_shards
    return job
