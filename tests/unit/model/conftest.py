"""A tiny world in memory: stores whose features say what their image shows, and captions that say it in words."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

COLOURS = ("red", "green", "blue", "white", "black", "brown")
THINGS = ("dog", "cat", "car", "bus", "bird", "boat")


class FakeStore:
    """What `stores.open_store` gives, over arrays in memory."""

    def __init__(self, arrays, image_ids, attributes=None, dropped=()):
        self.arrays, self.image_ids, self.dropped = arrays, np.array(image_ids), set(dropped)
        self.attributes = attributes or {}
        self.reads = 0

    def rows(self, array, indices):
        self.reads += 1
        return self.arrays[array][np.asarray(indices)]

    def shape(self, array):
        return self.arrays[array].shape

    def dtype(self, array):
        return self.arrays[array].dtype

    def __len__(self):
        return len(self.image_ids)


def make_world(folder: Path, *, train: int = 24, val: int = 12, tokens: int = 6, width: int = 16, seed: int = 0):
    """An index on disk and two stores; row order mixes the splits, and some images have fewer tokens than others."""
    import pyarrow as pa

    from catalog.index import CAPTIONS_SCHEMA, IMAGES_SCHEMA, write_index

    generator = np.random.default_rng(seed)
    count = train + val
    ids = [f"image{i:03d}" for i in range(count)]
    splits = np.array(["train"] * train + ["val"] * val)
    generator.shuffle(splits)
    colour, thing = generator.integers(0, 6, count), generator.integers(0, 6, count)
    counts = generator.integers(2, tokens + 1, count)
    features = generator.normal(scale=0.1, size=(count, tokens, width))
    features[np.arange(count), :, colour] += 2
    features[np.arange(count), :, 6 + thing] += 2
    features[np.arange(tokens) >= counts[:, None]] = 0
    maps = np.full((count, 64, 64), 255, dtype=np.uint8)
    maps[:, 20:50, 10:40] = thing[:, None, None]
    onehots = np.zeros((count, 133), dtype=np.uint8)
    onehots[np.arange(count), thing] = 1
    segments = np.zeros((count, 133, 7, 7), dtype=np.float16)
    segments[np.arange(count), thing, 2:5, 1:4] = 1
    texts = ("a {c} {t}", "the {t} is {c}", "there is a {c} {t} here", "one {c} {t} , nothing else", "{c} {t}", "sixth")
    images = pa.Table.from_pydict(
        {
            "image_id": ids,
            "path": [f"{i}.jpg" for i in ids],
            "width": [64] * count,
            "height": [64] * count,
            "split": splits.tolist(),
            "content_hash": [f"{i:064x}" for i in range(count)],
            "error": [None] * count,
        },
        schema=IMAGES_SCHEMA,
    )
    rows = [
        (f"{image}#{k}", image, text.format(c=COLOURS[colour[i]], t=THINGS[thing[i]]))
        for i, image in enumerate(ids)
        for k, text in enumerate(texts)
    ]
    captions = pa.Table.from_pylist(
        [dict(zip(("caption_id", "image_id", "text"), row, strict=True)) for row in rows], schema=CAPTIONS_SCHEMA
    )
    digest = write_index(folder / "images.parquet", folder / "captions.parquet", images, captions)

    def attributes(feature):
        return {"feature": feature, "extractor": {"recipe": 1}, "weights_digest": "w", "index_digest": digest}

    return SimpleNamespace(
        images=folder / "images.parquet",
        captions=folder / "captions.parquet",
        ids=ids,
        splits=splits,
        texts=[text for _, _, text in rows],
        digest=digest,
        visual=FakeStore(
            {"features": features.astype(np.float16), "counts": counts.astype(np.int16)}, ids, attributes("regions")
        ),
        panoptic=FakeStore(
            {"seg_maps": maps, "category_onehots": onehots, "seg_features": segments}, ids, attributes("panoptic")
        ),
    )


@pytest.fixture
def world(tmp_path):
    return make_world(tmp_path)


@pytest.fixture
def make_store():
    return FakeStore
