"""Extraction as the workflow does it: an index, one shard job, a seal. A photograph."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from catalog.index import CAPTIONS_SCHEMA, ImageRows, describe_images, write_index
from extractors.run import main
from stores import open_store
from stores.seal import seal
from tests.unit.extractors.photos import PHOTOS, by_pillow


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
