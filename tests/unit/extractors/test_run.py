"""Shard jobs, with a tiny extractor in place of the networks."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pyarrow as pa
import pytest

from catalog.index import CAPTIONS_SCHEMA, IMAGES_SCHEMA, write_index
from core.console import UserError
from extractors.images import decode_image, resize_shortest_edge
from stores import open_store
from tests.unit.extractors.conftest import BAD, IMAGES, MeanColour


def test_store_holds_what_the_extractor_says_about_each_image(job):
    for shard in range(2):
        job.run(shard)
    job.seal()
    store = open_store(job.store)
    for row, path in enumerate(job.paths):
        if row == BAD:
            wanted = [np.zeros((1, 3)), np.zeros((1, 4)), np.array([-1]), np.array(0)]
        else:
            picture = decode_image(path)
            mean = resize_shortest_edge(picture, 16, 24).astype(np.float64).mean((0, 1)).astype(np.float16)
            box = np.array([[0, 0, picture.shape[1], picture.shape[0]]])
            wanted = [mean[None], box, np.array([0]), np.array(1)]
        for name, value in zip(("features", "boxes", "class_ids", "counts"), wanted, strict=True):
            np.testing.assert_array_equal(store.rows(name, [row])[0], value)
    assert store.image_ids.tolist() == job.ids
    assert store.attributes["extractor"] == {"architecture": "tiny", "batch_size": 3, "recipe": 3}
    assert store.attributes["class_names"] == ["colour"]
    assert store.attributes["index_digest"] == job.digest
    assert store.dropped == {f"photo-{BAD}"}


def test_receipt(job, capsys):
    receipt = job.run(0)
    assert {key: receipt[key] for key in ("feature", "shard", "shards", "rows", "images", "device")} == {
        "feature": "regions",
        "shard": 0,
        "shards": 2,
        "rows": [0, 8],
        "images": 8,
        "device": "cpu",
    }
    (failure,) = receipt["failures"]
    assert failure["image_id"] == f"photo-{BAD}" and failure["path"] == job.paths[BAD]
    assert "truncated" in failure["error"]
    assert receipt["seconds"].keys() == {"total", "startup", "decode", "network", "write"}
    # Writing goes on beside the rest.
    parts = sum(value for key, value in receipt["seconds"].items() if key not in ("total", "write"))
    assert 0 < parts <= receipt["seconds"]["total"] + 0.01
    assert receipt["images_per_second"] > 0
    # A job writes whole Zarr shards of (here) 4 rows.
    assert sorted(receipt["files"]) == sorted(
        f"{name}/c/{index}{tail}"
        for index in (0, 1)
        for name, tail in (("features", "/0/0"), ("boxes", "/0/0"), ("class_ids", "/0"), ("counts", ""))
    )
    for name, digest in receipt["files"].items():
        assert hashlib.sha256((job.store / name).read_bytes()).hexdigest() == digest
    printed = capsys.readouterr()
    assert "regions shard 1/2: 8 images, 1 of them unreadable" in printed.out
    assert "regions 1/2" in printed.err and "8/8" in printed.err


def test_batches_are_full_and_never_beyond_the_setting(job, module):
    job.run(0, 1, {"batch_size": 2})
    assert max(module.built[0].batch_sizes) == 2
    assert sum(module.built[0].batch_sizes) == IMAGES - 1


def test_same_bytes_whatever_the_workers_and_however_often(job):
    for shard in range(2):
        job.run(shard)
    job.seal()
    wanted = job.digests()
    for workers in (0, 3):
        job.run(1, workers=workers)
        with pytest.raises(UserError, match="not a finished store"):
            open_store(job.store)
        job.seal()
        assert job.digests() == wanted


def test_same_features_in_any_number_of_shards(job):
    found = []
    for shards in (1, 2, 20):
        for shard in range(shards):
            job.run(shard, shards)
        job.seal(shards)
        store = open_store(job.store)
        found.append({name: store.rows(name, range(IMAGES)) for name in store.arrays})
    assert json.loads(job.receipt(19).read_text())["rows"] == [13, 13]
    for other in found[1:]:
        for name, values in found[0].items():
            np.testing.assert_array_equal(other[name], values)


def test_shards_of_changed_settings_do_not_seal_together(job):
    job.run(0)
    job.run(1, settings={"scale": 0.5})
    with pytest.raises(UserError, match="shard 0: made with other extractor than shard 1"):
        job.seal()


def test_all_bad_images_are_named_and_the_others_extracted(job):
    for row in (1, 9):
        open(job.paths[row], "wb").close()
    for shard in range(2):
        job.run(shard)
    with pytest.raises(UserError) as caught:
        job.seal(on_bad_image="fail")
    for row in (1, BAD, 9):
        assert f"image 'photo-{row}' ({job.paths[row]})" in str(caught.value)
    job.seal()
    assert open_store(job.store).rows("counts", range(IMAGES)).sum() == IMAGES - 3


@pytest.mark.parametrize("trouble", [RuntimeError("out of memory"), KeyboardInterrupt()])
def test_trouble_in_the_network_ends_the_job_and_leaves_no_receipt(job, monkeypatch, trouble):
    job.run(0)

    def fail(self, batch):
        raise trouble

    monkeypatch.setattr(MeanColour, "__call__", fail)
    with pytest.raises(type(trouble)):
        job.run(0)
    assert not job.receipt(0).exists()


@pytest.mark.parametrize(
    "changed, error, message",
    [
        (
            {"features": np.full((1, 3), np.inf, np.float16)},
            UserError,
            "photo-.*array features has values .* not finite",
        ),
        ({"boxes": np.full((1, 4), np.nan, np.float32)}, UserError, "array boxes has values that are not finite"),
        ({"features": np.zeros((1, 3), np.float32)}, ValueError, r"features is float32 \(1, 3\) instead of float16"),
        ({"features": np.zeros((3,), np.float16)}, ValueError, r"features is float16 \(3,\) instead of"),
        ({"extra": np.zeros(1)}, ValueError, "the extractor gave arrays"),
    ],
)
def test_rows_the_store_cannot_hold_are_refused(job, monkeypatch, changed, error, message):
    real = MeanColour.__call__
    monkeypatch.setattr(MeanColour, "__call__", lambda self, batch: [r | changed for r in real(self, batch)])
    with pytest.raises(error, match=message):
        job.run(0)
    assert not job.receipt(0).exists() and not job.digests()


def test_too_few_results_are_an_error(job, monkeypatch):
    monkeypatch.setattr(MeanColour, "__call__", lambda self, batch: [])
    with pytest.raises(ValueError, match="zip"):
        job.run(0)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"recipe": 2}, "--recipe 2 is not the RECIPE 3 of extractors/regions.py"),
        ({"shard": 2}, "there is no shard 2"),
        ({"shards": 0}, "shards must be at least 1"),
        ({"store": "features/regions"}, "ends in .zarr"),
        ({"images": "nowhere.parquet"}, "nowhere.parquet does not exist"),
        ({"settings": "{"}, "--settings"),
        ({"settings": "[]"}, "--settings"),
        ({"settings": '{"batch_size": 0}'}, "batch_size of regions must be a whole number of at least 1, not 0"),
        ({"settings": '{"batch_size": true}'}, "not True"),
        ({"settings": "{}"}, "settings of engine native: missing a required (keyword-only )?argument: 'architecture'"),
        ({"settings": {"scael": 2}}, "settings of engine native: got an unexpected keyword argument 'scael'"),
        ({"device": "cuda:99"}, "--device cuda:99: this machine has"),
        ({"device": "gpu"}, "--device gpu: no such device"),
        ({"on-bad-image": "fail"}, r"1 images cannot be read: '.*\.png: .*set features.on_bad_image: drop"),
    ],
)
def test_wrong_arguments_are_user_errors_that_touch_nothing(job, changes, message):
    for shard in range(2):
        job.run(shard)
    job.seal()
    before = job.digests()
    with pytest.raises(UserError, match=message):
        job.run(**{"shard": 0, **changes})
    assert job.digests() == before
    assert job.receipt(0).exists()


def test_an_empty_index_is_a_user_error(job):
    write_index(
        job.root / "images.parquet",
        job.root / "captions.parquet",
        pa.table(IMAGES_SCHEMA.empty_table()),
        CAPTIONS_SCHEMA.empty_table(),
    )
    with pytest.raises(UserError, match="no images"):
        job.run(0)
