from __future__ import annotations

import threading
import tracemalloc

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from core.console import UserError
from model.data import Features, Split, TrainingPairs, image_tensors, kept_tokens, prefetch, read_split
from model.tokenizer import CaptionTokenizer, train_vocabulary


def features_of(world):
    return Features(world.visual, world.panoptic, index_digest=world.digest)


def pairs_of(world, *, features=None, **options):
    split = read_split(world.images, world.captions, "train")
    tokenizer = CaptionTokenizer(train_vocabulary(split.captions, vocabulary_size=200))
    return TrainingPairs(split, features or features_of(world), tokenizer, **({"batch_size": 8} | options))


def test_a_split_holds_its_rows_and_the_first_five_captions(world):
    split = read_split(world.images, world.captions, "val", dropped=["image000"])
    rows = [i for i in np.flatnonzero(world.splits == "val") if i != 0]
    assert split.image_rows.tolist() == rows
    assert split.image_ids == [world.ids[i] for i in rows]
    assert split.captions == [world.texts[6 * i + k] for i in rows for k in range(5)]
    assert split.caption_ids[:2] == [f"{world.ids[rows[0]]}#0", f"{world.ids[rows[0]]}#1"]
    assert split.caption_image.tolist() == [i for i in range(len(rows)) for _ in range(5)]
    assert split.index_digest == world.digest
    assert split.skipped == int(world.splits[0] == "val")


def test_a_split_that_is_not_there_is_named(world):
    with pytest.raises(UserError, match=r"split 'tset' has no images.*train, val"):
        read_split(world.images, world.captions, "tset")
    with pytest.raises(
        UserError, match="no image of split 'val' could be read: features.on_bad_image: drop has left out all 12"
    ):
        read_split(world.images, world.captions, "val", dropped=world.ids)
    pq.write_table(pq.read_table(world.captions).slice(0, 0), world.captions)
    with pytest.raises(UserError, match="no image of split 'val' has a caption"):
        read_split(world.images, world.captions, "val")


def test_stores_that_do_not_belong_together_are_refused(world, make_store):
    with pytest.raises(UserError, match=r"visual store .* was made from another index"):
        Features(world.visual, world.panoptic, index_digest="f" * 64)
    shuffled = make_store(world.panoptic.arrays, world.panoptic.image_ids[::-1], world.panoptic.attributes)
    with pytest.raises(UserError, match="hold different images"):
        Features(world.visual, shuffled)
    with pytest.raises(UserError, match=r"panoptic store .* has no array 'seg_maps'"):
        Features(world.visual, world.visual)
    broken = dict(world.panoptic.arrays, seg_maps=world.panoptic.arrays["seg_maps"].copy())
    broken["seg_maps"][4, 0, 0] = 200
    with pytest.raises(UserError, match="class number 200 at image row 4"):
        Features(world.visual, make_store(broken, world.ids)).rows(np.array([3, 4]))


def test_token_drop_packs_what_is_left(world):
    found = features_of(world).rows(np.arange(len(world.ids)))
    whole, lengths, *_ = image_tensors(found)
    assert lengths.tolist() == found["counts"].tolist()
    np.testing.assert_array_equal(whole.numpy(), found["features"][:, : max(found["counts"])])
    dropped, fewer, *_ = image_tensors(found, token_drop=0.5, generator=np.random.default_rng(0))
    assert 0.3 < fewer.sum() / lengths.sum() < 0.7
    assert dropped.shape[1] == fewer.max()
    for i, n in enumerate(fewer):
        assert (dropped[i, n:] == 0).all()
        # What is left is a subsequence of the image's own tokens.
        rest = iter(found["features"][i, : found["counts"][i]])
        assert all(any(np.array_equal(token, other) for other in rest) for token in dropped[i, :n].numpy())
    kept = [
        kept_tokens(found["counts"], 6, token_drop=0.2, generator=np.random.default_rng(seed)).sum()
        for seed in range(60)
    ]
    assert np.mean(kept) / lengths.sum().item() == pytest.approx(0.8, abs=0.02)


def test_images_without_tokens_still_make_a_batch(world):
    found = features_of(world).rows(np.array([0, 1]))
    found["counts"] = np.zeros(2, dtype=np.int16)
    visual, lengths, *_ = image_tensors(found)
    assert visual.shape == (2, 1, 16) and lengths.tolist() == [0, 0] and (visual == 0).all()


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.inputs(), b.inputs(), strict=True))


def test_a_batch_depends_on_seed_epoch_and_position_alone(world):
    pairs = pairs_of(world, seed=3)
    assert len(pairs) == 24 * 5 // 8
    everything = list(pairs.batches(1))
    assert len(everything) == len(pairs)
    seen = np.concatenate([batch.captions for batch in everything])
    assert len(np.unique(seen)) == len(seen) == 120  # each caption once
    for batch in everything:
        assert batch.images.tolist() == pairs.split.caption_image[batch.captions].tolist()
    again = pairs_of(world, seed=3)
    again.batch(5, 0)
    assert all(same(a, b) for a, b in zip(everything[4:], again.batches(1, start=4, workers=2), strict=True))
    assert not same(everything[0], pairs.batch(2, 0))
    assert not same(everything[0], pairs_of(world, seed=4).batch(1, 0))


def test_preloaded_rows_are_the_same_rows(world):
    plain, held = features_of(world), features_of(world)
    split = read_split(world.images, world.captions, "train")
    held.preload(split.image_rows)
    assert held.nbytes(2) == 2 * (6 * 16 * 2 + 2 + 64 * 64 + 133 + 133 * 49 * 2)
    reads = world.visual.reads
    asked = split.image_rows[[3, 0, 3]]
    found = held.rows(asked)
    assert world.visual.reads == reads
    for name, values in plain.rows(asked).items():
        np.testing.assert_array_equal(found[name], values)
    other = read_split(world.images, world.captions, "val").image_rows
    for row in other[[0, -1]]:
        with pytest.raises(IndexError, match="not been preloaded"):
            held.rows(np.array([row]))


def test_a_batch_larger_than_the_split_is_refused(world):
    with pytest.raises(UserError, match="batch_size is 121, but split 'train' has only 120 captions"):
        pairs_of(world, batch_size=121)


def test_prefetch_keeps_order_stays_bounded_and_passes_errors_on():
    running, lock = [], threading.Lock()

    def make(item):
        with lock:
            running.append(item)
        if item == 30:
            raise ValueError("thirty")
        return item

    batches = prefetch(make, range(31), workers=2)
    assert [next(batches) for _ in range(10)] == list(range(10))
    assert max(running) <= 10 + 2 * 2
    with pytest.raises(ValueError, match="thirty"):
        list(batches)


@pytest.mark.parametrize("preload", [False, True])
def test_parts_of_a_batch_are_the_whole_batch(world, preload):
    """Whatever the number of processes: same pairs, same augmentation, padded to the whole batch's longest item."""
    counts = world.visual.arrays["counts"]
    counts[:] = np.minimum(counts, 3)
    counts[np.flatnonzero(world.splits == "train")[0]] = 6
    pairs = pairs_of(world, seed=3, batch_size=7)
    if preload:
        pairs.features.preload(pairs.split.image_rows)
    longer = 0
    for position in range(len(pairs)):
        whole = pairs.batch(1, position)
        parts = [pairs.batch(1, position, process=process, processes=3) for process in range(3)]
        assert [len(part.text[1]) for part in parts] == [2, 2, 3]
        for k, values in enumerate(whole.image):
            assert torch.equal(torch.cat([part.image[k] for part in parts]), values), k
        assert torch.equal(torch.cat([part.text[1] for part in parts]), whole.text[1])
        for part in parts:
            assert torch.equal(part.images, whole.images) and (part.captions == whole.captions).all()
            visual, lengths = part.image[:2]
            longer += visual.shape[1] > lengths.max()
        tokens = [row[:n].tolist() for part in parts for row, n in zip(*part.text, strict=True)]
        assert tokens == [row[:n].tolist() for row, n in zip(*whole.text, strict=True)]
    assert longer  # some parts lack the longest item and are padded all the same


def test_a_process_reads_its_own_part_alone(world):
    asked = []
    rows = world.visual.rows
    world.visual.rows = lambda array, indices: asked.append((array, len(indices))) or rows(array, indices)
    pairs_of(world, batch_size=8).batch(0, 0, process=1, processes=4)
    assert ("features", 2) in asked and ("counts", 8) in asked and ("features", 8) not in asked


def test_a_batch_is_in_host_memory_in_the_precision_of_the_stores(world):
    batch = pairs_of(world).batch(0, 0)
    assert {part.device.type for part in batch.inputs()} == {"cpu"}
    assert batch.image[0].dtype == torch.float16 and batch.image[2].dtype == torch.uint8


@pytest.mark.parametrize("workers", [0, 2])
def test_memory_does_not_grow_with_the_data(make_store, workers):
    """Without preloading, what an epoch allocates depends on the batch alone: a 16 times larger store adds nothing."""
    shapes = {
        "features": ((36, 256), np.float16), "counts": ((), np.int16), "seg_maps": ((64, 64), np.uint8),
        "category_onehots": ((133,), np.uint8), "seg_features": ((133, 7, 7), np.float16),
    }  # fmt: skip
    peaks = {}
    for images in (100, 1600):

        def made(array, indices, images=images):
            # A store as large as one likes: its rows are made when they are asked for.
            assert indices.max() < images
            shape, dtype = shapes[array]
            return np.ones((len(indices), *shape), dtype=dtype)

        empty = {name: np.empty((0, *shape), dtype=dtype) for name, (shape, dtype) in shapes.items()}
        ids = [str(i) for i in range(images)]
        stores = make_store(empty, ids), make_store(empty, ids)
        for store in stores:
            store.rows = made
        at = np.arange(images)
        split = Split("train", at, ids, ["a red dog"] * images, ids, at)
        pairs = TrainingPairs(
            split,
            Features(*stores),
            CaptionTokenizer(train_vocabulary(["a red dog"], vocabulary_size=50)),
            batch_size=20,
        )
        tracemalloc.start()
        for _, batch in zip(range(5), pairs.batches(0, workers=workers), strict=False):
            del batch
        peaks[images] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    batch = 20 * (36 * 256 * 2 + 64 * 64 + 133 + 133 * 49 * 2)
    few = (2 * workers + 4) * 2 * batch  # ahead of time, being packed, and in use
    assert batch < peaks[1600] < few < 80 * batch / 4
    if not workers:  # how far threads get is up to them
        assert peaks[1600] < peaks[100] + batch
