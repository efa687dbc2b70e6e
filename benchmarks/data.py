"""Random features and captions of COCO's shape, in memory and in stores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from core.console import progress
from model.data import Features, Split
from model.tokenizer import SPECIAL_TOKENS, CaptionTokenizer

CATEGORIES, MAP_SIDE, CELLS = 133, 64, 7
CAPTIONS_PER_IMAGE = 5
COCO_TRAIN_IMAGES = 113_287
VOCABULARY_SIZE = 30522
_AT_ONCE = 512


def image_arrays(images: int, *, tokens: int, width: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Features of some images, as the stores hold them: half-zero float16 visual tokens, class maps made of areas."""
    generator = np.random.default_rng(seed)
    features = generator.standard_normal((images, tokens, width), dtype=np.float32).astype(np.float16)
    coarse = generator.integers(0, CATEGORIES, (images, 8, 8), dtype=np.uint8)
    cells = np.zeros((images, CATEGORIES, CELLS * CELLS), np.float16)
    present = generator.integers(0, CATEGORIES, (images, CELLS * CELLS))
    np.put_along_axis(cells, present[:, None], np.float16(1), axis=1)
    return {
        "features": np.maximum(features, 0),
        "counts": np.full(images, tokens, np.int16),
        "seg_maps": np.kron(coarse, np.ones((1, MAP_SIDE // 8, MAP_SIDE // 8), np.uint8)),
        "category_onehots": (cells.max(axis=2) > 0).astype(np.uint8),
        "seg_features": cells.reshape(images, CATEGORIES, CELLS, CELLS),
    }


def as_baseline_reads(found: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same rows as the original holds them: all float32."""
    return {name: found[name].astype(np.float32) for name in found if name != "counts"}


def caption_lengths(count: int, generator: np.random.Generator) -> np.ndarray:
    """Word pieces with [CLS] and [SEP], spread as COCO's captions are: 11 and more, 13.6 on average, few above 20."""
    return 11 + np.rint(generator.gamma(1.2, 2.2, count)).astype(np.int64)


def token_batch(lengths: np.ndarray, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Random token ids (B, T), padded with 0, and their lengths."""
    ids = generator.integers(len(SPECIAL_TOKENS), VOCABULARY_SIZE, (len(lengths), int(lengths.max())))
    ids[np.arange(ids.shape[1]) >= lengths[:, None]] = 0
    return torch.from_numpy(ids), torch.from_numpy(lengths)


def tokenizer() -> CaptionTokenizer:
    """A vocabulary of BERT's size, of invented words."""
    return CaptionTokenizer([*SPECIAL_TOKENS, *(f"w{i}" for i in range(VOCABULARY_SIZE - len(SPECIAL_TOKENS)))])


def split(images: int, *, seed: int = 0) -> Split:
    """So many images with five random captions each; a word is one piece of `tokenizer`."""
    generator = np.random.default_rng(seed)
    count = images * CAPTIONS_PER_IMAGE
    lengths = caption_lengths(count, generator) - 2
    words = generator.integers(0, VOCABULARY_SIZE - len(SPECIAL_TOKENS), int(lengths.sum()))
    ends = np.cumsum(lengths)
    captions = [" ".join(f"w{word}" for word in words[end - n : end]) for n, end in zip(lengths, ends, strict=True)]
    return Split(
        name="random",
        image_rows=np.arange(images),
        image_ids=[str(i) for i in range(images)],
        captions=captions,
        caption_ids=[str(i) for i in range(count)],
        caption_image=np.repeat(np.arange(images), CAPTIONS_PER_IMAGE),
    )


class MemoryStore:
    """What `stores.open_store` gives, over arrays in memory: for machines without the libraries that stores need."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.arrays, self.attributes, self.dropped = arrays, {"feature": "memory"}, set[str]()
        self.image_ids = np.arange(len(self)).astype(str)

    def rows(self, array: str, indices: np.ndarray) -> np.ndarray:
        return self.arrays[array][np.asarray(indices)]

    def shape(self, array: str) -> tuple[int, ...]:
        return self.arrays[array].shape

    def dtype(self, array: str) -> np.dtype:
        return self.arrays[array].dtype

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))


def features_in_memory(images: int, *, tokens: int, width: int, seed: int = 0) -> Features:
    """Features of float16, in memory."""
    blocks = [
        image_arrays(min(_AT_ONCE, images - start), tokens=tokens, width=width, seed=seed + start)
        for start in range(0, images, _AT_ONCE)
    ]
    store = MemoryStore({name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]})
    return Features(store, store)


def features_in_stores(folder: Path, images: int, *, tokens: int, width: int, seed: int = 0) -> Features:
    """The same in two stores below `folder`, written as extraction jobs do."""
    from stores.plan import ShardPlan
    from stores.schema import SCHEMA_VERSION, ArraySpec
    from stores.writer import write_metadata, write_zarr_shard

    plan = ShardPlan(images, max(1, images // _AT_ONCE))
    example = image_arrays(1, tokens=tokens, width=width)
    specs = {name: ArraySpec(array.shape[1:], array.dtype.name, 0) for name, array in example.items()}
    visual = {name: specs.pop(name) for name in ("features", "counts")}
    stores = {"regions": visual, "panoptic": specs}
    shards = range(plan.zarr_shard_count)
    for index in progress(shards, total=len(shards), desc="random stores", unit="shard"):
        rows = plan.zarr_shard_rows(index)
        block = image_arrays(len(rows), tokens=tokens, width=width, seed=seed + rows.start)
        for name, arrays in stores.items():
            write_zarr_shard(folder / f"{name}.zarr", index, {key: block[key] for key in arrays}, arrays, plan)
    for name, arrays in stores.items():
        attributes: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "feature": name}
        write_metadata(folder / f"{name}.zarr", arrays, plan, [str(i) for i in range(images)], attributes)
    return open_stores(folder)


def open_stores(folder: Path) -> Features:
    """What `features_in_stores` wrote."""
    from stores import open_store

    return Features(open_store(folder / "regions.zarr"), open_store(folder / "panoptic.zarr"))


def arrays_for_baseline(features: Features, images: int) -> dict[str, np.ndarray]:
    """The rows of `images` images as the original has them in memory: all of them, in float32."""
    arrays: dict[str, np.ndarray] = {}
    for start in range(0, images, _AT_ONCE):
        rows = np.arange(start, min(start + _AT_ONCE, images))
        for name, block in as_baseline_reads(features.rows(rows)).items():
            if name not in arrays:
                arrays[name] = np.empty((images, *block.shape[1:]), np.float32)
            arrays[name][rows] = block
    return arrays
