from __future__ import annotations

import dataclasses
import json
import sys
import tracemalloc

import numpy as np
import pytest

from core.console import UserError
from evaluation import ensemble as module
from evaluation.embeddings import Embeddings, write_embeddings
from evaluation.ensemble import check_same_items, combine, ensemble_metrics
from evaluation.metrics import retrieval_metrics, retrieval_metrics_from_similarity


def member(seed, width, noise, images=20, run="run"):
    generator = np.random.default_rng(seed)
    caption_image = np.repeat(np.arange(images, dtype=np.int32), 5)
    image_rows = generator.normal(size=(images, width))
    caption_rows = image_rows[caption_image] + noise * generator.normal(size=(len(caption_image), width))
    return Embeddings(
        images=(image_rows / np.linalg.norm(image_rows, axis=1, keepdims=True)).astype(np.float32),
        captions=(caption_rows / np.linalg.norm(caption_rows, axis=1, keepdims=True)).astype(np.float32),
        caption_image=caption_image,
        image_ids=np.array([f"i{row}" for row in range(images)]),
        caption_ids=np.array([f"c{row}" for row in range(len(caption_image))]),
        attributes={"run": run, "split": "test"},
    )


def test_the_mean_of_similarities_equals_naive_averaging():
    members = [member(0, 8, 2.0), member(1, 24, 4.0), member(2, 5, 1.5)]
    mean = np.mean([m.images.astype(np.float64) @ m.captions.astype(np.float64).T for m in members], axis=0)
    combined = combine(members)
    assert combined.images.dtype == np.float32
    np.testing.assert_allclose(combined.images @ combined.captions.T, mean, atol=1e-6)
    expected = retrieval_metrics_from_similarity(mean, members[0].caption_image)
    actual = ensemble_metrics(members, ["a", "b", "c"], folds=2)
    assert {key: actual[key] for key in expected} == expected
    singles = [retrieval_metrics(m.images, m.captions, m.caption_image)["rsum"] for m in members]
    assert actual["rsum"] not in singles, "the case must distinguish the ensemble from its members"
    assert actual["folds"]["images_per_fold"] == 10


def test_an_ensemble_of_one_is_that_one():
    one = member(0, 8, 2.0)
    np.testing.assert_array_equal(combine([one]).images, one.images)


def test_memory_does_not_grow_with_images_times_captions():
    """COCO's 5K test set, three runs: the matrix alone would be 500 MB, in float32 and for one of them."""
    members = [member(seed, 16, 2.0, images=5000) for seed in range(3)]
    tracemalloc.start()
    try:
        metrics = ensemble_metrics(members, ["a", "b", "c"], folds=5)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert metrics["captions"] == 25000 and metrics["intervals"]["resamples"] == 1000
    assert peak < 250e6


def test_differing_items_are_errors_that_name_the_first_difference():
    first, same = member(0, 8, 1.0), member(1, 4, 1.0)
    check_same_items([first, same], ["a.zarr", "b.zarr"])
    swapped = dataclasses.replace(same, image_ids=same.image_ids[[0, 1, 3, 2, *range(4, 20)]])
    with pytest.raises(UserError, match=r"image number 3 is 'i2' of 20 in a.zarr and 'i3' of 20 in b.zarr"):
        check_same_items([first, swapped], ["a.zarr", "b.zarr"])
    shorter = member(1, 4, 1.0, images=19)
    with pytest.raises(UserError, match=r"image number 20 is 'i19' of 20 in a.zarr and nothing of 19 in b.zarr"):
        check_same_items([first, shorter], ["a.zarr", "b.zarr"])
    captions = same.caption_ids.copy()
    captions[7] = "c0"
    with pytest.raises(UserError, match=r"caption number 8 is 'c7' .* and 'c0' "):
        check_same_items([first, dataclasses.replace(same, caption_ids=captions)], ["a.zarr", "b.zarr"])
    owners = same.caption_image.copy()
    owners[[4, 5]] = owners[[5, 4]]
    with pytest.raises(UserError, match="caption 'c4' belongs to different images"):
        check_same_items([first, dataclasses.replace(same, caption_image=owners)], ["a.zarr", "b.zarr"])


def test_command_line(tmp_path, monkeypatch):
    members = {"region": member(0, 8, 2.0, run="region"), "grid": member(1, 6, 2.0, run="grid")}
    for name, embeddings in members.items():
        write_embeddings(tmp_path / f"{name}.zarr", embeddings)
    paths = [str(tmp_path / f"{name}.zarr") for name in members]
    output = tmp_path / "metrics.json"
    monkeypatch.setattr(sys, "argv", ["prog", "--embeddings", *paths, "--folds", "5", "--output", str(output)])
    module.main()
    metrics = json.loads(output.read_text())
    assert metrics["runs"] == ["region", "grid"]
    assert metrics["folds"]["count"] == 5
    assert {"control", "chance", "images", "captions"} <= metrics.keys()
