"""Shards are the files zarr-python would have written, whoever writes them and however often."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import zarr

import stores.places
from core.console import UserError
from stores.plan import ShardPlan
from stores.schema import COMPRESSIONS, ArraySpec
from stores.writer import check_store_path, create_array, encode_shard, publish, write_metadata, write_zarr_shard


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("images, shards", [(21, 2), (16, 2), (1, 1), (5, 9)])
@pytest.mark.filterwarnings("error")
def test_store_is_what_zarr_itself_writes(parts, tmp_path, images, shards, compression):
    made = parts(images, shards, compression=compression).write()
    made.seal()
    naive = tmp_path / "naive.zarr"
    zarr.create_group(naive)
    for name, values in made.values.items():
        fill = {"class_ids": -1, "seg_maps": 255}.get(name, 0)
        spec = ArraySpec(values.shape[1:], values.dtype.name, fill, compression)
        create_array(str(naive), name, spec, images, made.plan.shard_rows)[...] = values
    found = {f.relative_to(naive).as_posix(): f.read_bytes() for f in naive.rglob("*") if f.is_file()}
    own = {key: (made.store / key).read_bytes() for key in made.digests() if not key.startswith("image_ids/")}
    del found["zarr.json"], own["zarr.json"]  # root attributes
    assert own == found
    assert len(own) == len(made.values) * (1 + made.plan.zarr_shard_count)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.filterwarnings("error")
def test_plain_zarr_reads_the_store(parts, compression):
    made = parts(compression=compression).write()
    made.ids[3], made.ids[4] = "日本/🐈", "x" * 300
    made.seal()
    group = zarr.open_group(made.store, mode="r")
    for name, values in made.values.items():
        np.testing.assert_array_equal(group[name][...], values)
        assert group[name].dtype == values.dtype
    assert list(group["image_ids"][:]) == made.ids
    assert group.attrs["feature"] == "regions"


def test_small_rows_share_a_chunk_and_large_ones_do_not(parts):
    made = parts().write()
    made.seal()
    group = zarr.open_group(made.store, mode="r")
    assert group["features"].chunks[0] == 1
    assert group["counts"].chunks == (made.plan.shard_rows,)
    assert group["features"].shards[0] == group["counts"].shards[0] == made.plan.shard_rows


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_encoding_is_deterministic_and_keeps_float16_bits(compression):
    spec = ArraySpec((600,), "float16", 0, compression)
    values = np.arange(5 * 600, dtype=np.uint16).reshape(5, 600).view(np.float16)  # zeros, subnormals, small numbers
    first = encode_shard(values, spec, 8)
    assert encode_shard(values.copy(), spec, 8) == first
    assert encode_shard(-values, spec, 8) != first


def test_sizes_of_rows_that_are_half_zeros():
    values = np.maximum(np.random.default_rng(0).standard_normal((4, 36, 2048), np.float32), 0).astype(np.float16)
    sizes = {
        compression: len(encode_shard(values, ArraySpec((36, 2048), "float16", 0, compression), 4)) / values.nbytes
        for compression in COMPRESSIONS
    }
    assert 0.5 < sizes["zstd"] < 0.62 < sizes["lz4"] < 0.75 < 1 < sizes["none"] < 1.001


def test_equal_bytes_are_not_written_again_and_others_unseal(tmp_path):
    store = tmp_path / "s.zarr"
    digest = publish(store, "a/c/0", b"one")
    (store / "zarr.json").write_text("{}")
    inode = (store / "a/c/0").stat().st_ino
    assert publish(store, "a/c/0", b"one") == digest
    assert (store / "a/c/0").stat().st_ino == inode
    assert (store / "zarr.json").exists()
    assert publish(store, "a/c/0", b"two") != digest
    assert not (store / "zarr.json").exists()
    assert (store / "a/c/0").read_bytes() == b"two"


def test_a_job_that_dies_while_publishing_leaves_the_old_file_and_no_root(tmp_path, monkeypatch):
    store = tmp_path / "s.zarr"
    publish(store, "a/c/0", b"one")
    (store / "zarr.json").write_text("{}")

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", die)
    with pytest.raises(KeyboardInterrupt):
        publish(store, "a/c/0", b"two")
    assert (store / "a/c/0").read_bytes() == b"one"
    assert [f.name for f in store.rglob("*") if f.is_file()] == ["0"]


def test_two_writers_of_one_shard_never_show_half_a_file(tmp_path, monkeypatch):
    # Make every publication a real one, also where the bytes are the same.
    monkeypatch.setattr(stores.places, "digest_file", lambda _: "")
    spec = ArraySpec((400,), "float32", 0)
    values = np.random.default_rng(0).random((6, 400), np.float32)
    plan = ShardPlan(6, 1)
    wanted = encode_shard(values, spec, plan.shard_rows)
    store, done, seen = tmp_path / "s.zarr", threading.Event(), []

    def watch():
        while not done.is_set():
            if (store / "a/c/0/0").exists():
                seen.append((store / "a/c/0/0").read_bytes() == wanted)
            done.wait(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(write_zarr_shard, store, 0, {"a": values}, {"a": spec}, plan) for _ in range(12)]
        results = [job.result() for job in jobs]
    done.set()
    watcher.join()
    assert all(result == results[0] for result in results)
    assert seen and all(seen)
    assert [f.name for f in store.rglob("*") if f.is_file()] == ["0"]


@pytest.mark.parametrize(
    "rows, message",
    [
        ({"a": np.zeros((4, 3), np.float32), "b": np.zeros(4, np.int16)}, r"not \['a', 'b'\]"),
        ({"a": np.zeros((4, 3), np.float64)}, r"wants float32 \(4, 3\), not float64"),
        ({"a": np.zeros((4, 2), np.float32)}, r"not float32 \(4, 2\)"),
        ({"a": np.zeros((3, 3), np.float32)}, r"not float32 \(3, 3\)"),
    ],
)
def test_rows_that_do_not_fit_are_refused_before_anything_is_written(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        write_zarr_shard(tmp_path / "s.zarr", 0, rows, {"a": ArraySpec((3,), "float32", 0)}, ShardPlan(4, 1))
    assert not (tmp_path / "s.zarr").exists()


def test_a_store_folder_is_told_by_its_suffix():
    check_store_path("results/x.zarr")
    check_store_path("s3://bucket/results/x.zarr")
    with pytest.raises(UserError, match="results/x: a store's folder ends in .zarr"):
        check_store_path("results/x")


def test_arrays_name_their_dimensions(tmp_path):
    """As xarray wants it: equal names are equally long in a store, and no array has one twice."""
    from stores.features import PANOPTIC_ARRAYS, dimension_names, grid_arrays, region_arrays

    known = ("boxes", "scores", "class_ids", "class_scores", "attribute_ids", "attribute_scores")
    for arrays in (region_arrays(3, 8, known), grid_arrays(4, 8), PANOPTIC_ARRAYS):
        sizes: dict[str, int] = {}
        for name, spec in arrays.items():
            axes = dimension_names(name, 1 + len(spec.shape))
            assert len(axes) == len(set(axes)) == 1 + len(spec.shape) and axes[0] == "image"
            for axis, size in zip(axes[1:], spec.shape, strict=True):
                assert sizes.setdefault(axis, size) == size, (name, axis)
    assert dimension_names("own", 3) == ["image", "own_1", "own_2"]
    store = tmp_path / "grids.zarr"
    write_metadata(store, grid_arrays(4, 8), ShardPlan(2, 1), ["a", "b"], {})
    group = zarr.open_group(store, mode="r")
    assert group["features"].metadata.dimension_names == ("image", "place", "feature")
    assert group["image_ids"].metadata.dimension_names == ("image",)
