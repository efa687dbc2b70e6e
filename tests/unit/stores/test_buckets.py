"""Stores in S3 buckets: the same bytes as in folders, sealed and checked alike."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import zarr

from core.console import UserError
from stores import open_store
from stores.arrays import BucketArray, ZarrArray
from stores.places import Bucket, location, place_of


@pytest.fixture
def in_bucket(parts, make_bucket):
    made = parts(21, 2)
    made.store = f"{make_bucket()}/some results/regions.zarr"
    return made


def test_a_bucket_holds_the_bytes_that_a_folder_would(in_bucket, intact):
    in_bucket.write().seal()
    place = place_of(in_bucket.store)
    assert {key: place.digest(key) for key in place.keys()} == intact.digests()
    features = zarr.open_group(place.zarr_store(), mode="r")["features"]
    np.testing.assert_array_equal(features[...], in_bucket.values["features"])


def test_rows_equal_the_naive_lookup(in_bucket):
    in_bucket.write().seal()
    store = pickle.loads(pickle.dumps(open_store(in_bucket.store)))
    assert len(store) == 21 and store.image_ids.tolist() == in_bucket.ids
    assert store.arrays == tuple(sorted(in_bucket.values)) and repr(store) == f"Store({in_bucket.store!r})"
    assert isinstance(store._array("features"), BucketArray)
    for name, values in in_bucket.values.items():
        np.testing.assert_array_equal(store.rows(name, [20, 3, 3, 0, 12]), values[[20, 3, 3, 0, 12]])
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda k: store.rows("features", [k, 20 - k]), range(21)))
    np.testing.assert_array_equal(found, [in_bucket.values["features"][[k, 20 - k]] for k in range(21)])


def test_it_opens_when_it_is_sealed_and_not_before(in_bucket, tmp_path):
    in_bucket.write(0)
    with pytest.raises(UserError, match="not a finished store"):
        open_store(in_bucket.store)
    with pytest.raises(UserError, match="shard 1: .* is missing; make it again with"):
        in_bucket.seal()
    in_bucket.write(1)
    place = place_of(in_bucket.store)
    place.write("scores/c/9", b"of other settings")
    in_bucket.seal(marker=tmp_path / "marker.json")
    assert (tmp_path / "marker.json").read_bytes() == place.read("zarr.json")
    assert "scores/c/9" not in place.keys()
    assert open_store(in_bucket.store).attributes["feature"] == "regions"
    in_bucket.write(0)  # the very same bytes: but a job has begun, nobody can know
    with pytest.raises(UserError, match="not a finished store"):
        open_store(in_bucket.store)


@pytest.mark.parametrize("damage", ["flipped", "cut", "deleted", "index"])
def test_damage_is_an_error_to_readers_and_to_the_seal(in_bucket, damage):
    in_bucket.write().seal()
    place, key = place_of(in_bucket.store), "features/c/1/0/0"
    data = bytearray(place.read(key))
    if damage == "deleted":
        place.remove(key)
    else:
        data[-1 if damage == "index" else 40] ^= 1
        place.write(key, bytes(data[:-200]) if damage == "cut" else bytes(data))
    store = open_store(in_bucket.store)
    np.testing.assert_array_equal(store.rows("features", [0]), in_bucket.values["features"][:1])
    with pytest.raises(
        UserError, match=r"array .features. is damaged: s3://.*/features/c/1/0/0: .* --force .*storage/s3/b"
    ):
        store.rows("features", range(21))
    with pytest.raises(UserError, match="shard 0: .*/features/c/1/0/0 is .*; make it again with"):
        in_bucket.seal()


def test_arrays_of_other_layouts_are_read_through_zarr(in_bucket):
    in_bucket.write().seal()
    place = place_of(in_bucket.store)
    memory: dict = {}
    values = np.arange(21 * 3, dtype=np.float64).reshape(21, 3)
    zarr.create_array(zarr.storage.MemoryStore(memory), name="foreign", data=values, chunks=(4, 2))
    for key, value in memory.items():
        if key.startswith("foreign/"):
            place.write(key, value.to_bytes())
    store = open_store(in_bucket.store)
    assert isinstance(store._array("foreign"), ZarrArray)
    np.testing.assert_array_equal(store.rows("foreign", [20, 1]), values[[20, 1]])
    with pytest.raises(UserError, match="no array 'absent' in the store s3://"):
        store.rows("absent", [0])


def test_a_bucket_that_cannot_be_reached_is_an_error_that_says_so(make_bucket, monkeypatch):
    make_bucket()
    with pytest.raises(UserError, match="s3://nobody-has-this/x.zarr cannot be reached"):
        place_of("s3://nobody-has-this/x.zarr").write("a", b"")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    with pytest.raises(UserError, match="no credentials for S3; set AWS_ACCESS_KEY_ID"):
        open_store("s3://another/x.zarr")


@pytest.mark.parametrize("address", ["gs://bucket/x.zarr", "s3://", "https://host/x.zarr"])
def test_other_addresses_are_refused(address):
    with pytest.raises(UserError, match="s3://BUCKET/PREFIX"):
        open_store(address)


def test_an_argument_is_a_path_or_an_address(tmp_path):
    assert location(str(tmp_path)) == tmp_path and location("s3://a/b//c.zarr") == "s3://a/b//c.zarr"
    assert isinstance(place_of("s3://a/b"), Bucket) and str(place_of(tmp_path)) == str(tmp_path)
