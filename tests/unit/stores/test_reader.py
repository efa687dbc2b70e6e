"""Reading: any rows in any order equal the naive lookup; damage is an error, never a feature."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import shutil
import warnings

import numpy as np
import pytest
import zarr

from core.console import UserError
from stores import open_store
from stores.arrays import ShardedArray, ZarrArray
from stores.verify import verify


@pytest.fixture
def sealed(parts):
    made = parts(21, 2).write()
    made.seal()
    return made


@pytest.mark.parametrize(
    "indices",
    [
        [0],
        [20],
        [],
        list(range(21)),
        list(range(20, -1, -1)),
        [5, 5, 5],
        [20, 0, 13, 0, 7, 8, 20],
        np.array([3, 1], np.uint8),
        np.array([19, 2], np.int32),
        range(4, 12),
    ],
    ids=str,
)
def test_rows_equal_the_naive_lookup(intact, indices):
    store = open_store(intact.store)
    for name, values in intact.values.items():
        naive = [values[i] for i in indices]
        found = store.rows(name, indices)
        assert found.shape == (len(naive), *values.shape[1:])
        assert found.dtype == values.dtype
        np.testing.assert_array_equal(found, np.array(naive, values.dtype).reshape(found.shape))
        assert found.flags.writeable


def test_random_batches_equal_the_naive_lookup(intact):
    store, generator = open_store(intact.store), np.random.default_rng(1)
    for _ in range(20):
        indices = generator.integers(0, 21, generator.integers(1, 40))
        for name, values in intact.values.items():
            np.testing.assert_array_equal(store.rows(name, indices), values[indices])


@pytest.mark.parametrize("compression", ["zstd", "none"])
def test_every_compression_is_read_directly_and_faults_are_found(parts, compression):
    made = parts(21, 2, compression=compression).write()
    made.seal()
    store = open_store(made.store)
    for name, values in made.values.items():
        assert isinstance(store._array(name), ShardedArray)
        for indices in ([20, 3, 3, 11], list(range(21))):
            np.testing.assert_array_equal(store.rows(name, indices), values[indices])
    path = made.store / "features/c/1/0/0"
    good = path.read_bytes()
    for place in range(0, len(good), 97):
        bad = bytearray(good)
        bad[place] ^= 1
        path.write_bytes(bad)
        with pytest.raises(UserError, match="array 'features' is damaged"):
            open_store(made.store).rows("features", range(21))


def test_own_layout_is_read_directly_and_foreign_layouts_by_zarr(sealed):
    group = zarr.open_group(sealed.store, mode="r+")
    group.create_array("foreign", data=sealed.values["boxes"], chunks=(5, 3, 4))
    store = open_store(sealed.store)
    assert isinstance(store._array("features"), ShardedArray)
    assert isinstance(store._array("foreign"), ZarrArray)
    for indices in ([20, 3, 3, 11], [4, 5, 6, 7], []):
        np.testing.assert_array_equal(store.rows("foreign", indices), sealed.values["boxes"][indices])


def test_facts_about_a_store(intact):
    store = open_store(str(intact.store))
    assert len(store) == 21
    assert store.arrays == tuple(sorted(intact.values))
    assert store.image_ids.tolist() == intact.ids
    assert store.image_ids.dtype.kind == "U"
    assert store.shape("features") == (21, 3, 200)
    assert store.dtype("seg_maps") == np.uint8
    assert store.dropped == set()
    assert store.content_hashes([3, 0]) == ["", ""], "nobody has said them"
    assert store.attributes["class_names"] == ["cat", "dog"]


@pytest.mark.parametrize(
    "indices, error, message",
    [
        ([0, 21], IndexError, "row 21 of array 'boxes' .* its 21 rows"),
        ([0, -1], IndexError, "row -1 of array 'boxes'"),
        ([0.0], TypeError, "must be integers, not float64"),
        (np.zeros(21, bool), TypeError, "must be integers, not bool"),
        ([[0, 1]], TypeError, "one dimension, not 2"),
        (3, TypeError, "one dimension, not 0"),
    ],
)
def test_bad_indices(intact, indices, error, message):
    with pytest.raises(error, match=message):
        open_store(intact.store).rows("boxes", indices)


def test_unknown_array(intact):
    with pytest.raises(UserError, match="no array 'attributes' in the store"):
        open_store(intact.store).rows("attributes", [0])


def test_pickled_store_reads_on_and_carries_no_data(intact):
    store = open_store(intact.store)
    store.rows("features", range(21)), store.image_ids
    data = pickle.dumps(store)
    assert len(data) < 2000
    again = pickle.loads(data)
    np.testing.assert_array_equal(again.rows("features", [20, 1]), intact.values["features"][[20, 1]])
    assert again.image_ids.tolist() == intact.ids


def _read_in_child(store, queue):
    queue.put((store.rows("features", [20, 1]), store.image_ids.tolist()))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_store_in_use_survives_a_fork(intact):
    store = open_store(intact.store)
    store.rows("features", range(21)), store.image_ids
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_read_in_child, args=(store, queue), daemon=True)
    child.start()
    rows, ids = queue.get(timeout=60)
    child.join(60)
    np.testing.assert_array_equal(rows, intact.values["features"][[20, 1]])
    assert ids == intact.ids


def test_what_cannot_be_opened(sealed, tmp_path):
    root = sealed.store / "zarr.json"
    metadata = json.loads(root.read_text())

    def refused(content: str, message: str) -> None:
        root.write_text(content)
        with pytest.raises(UserError, match=message):
            open_store(sealed.store)

    refused(json.dumps(metadata | {"attributes": {"schema_version": 2}}), "schema version 2, .* update the program")
    refused(json.dumps(metadata | {"attributes": {"schema_version": 0}}), "schema version 0, .* make the store again")
    refused(json.dumps(metadata | {"attributes": {}}), "not a feature store")
    refused("[]", "not a feature store")
    refused("{", "damaged")
    root.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="damaged"):
        open_store(sealed.store)
    root.unlink()
    with pytest.raises(UserError, match="not a finished store"):
        open_store(sealed.store)
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "nowhere.zarr"):
        with pytest.raises(UserError, match="not a finished store"):
            open_store(path)


def test_a_flipped_byte_anywhere_in_a_shard_is_an_error(sealed):
    for name, file in {"counts": "counts/c/1", "boxes": "boxes/c/2/0/0", "features": "features/c/1/0/0"}.items():
        path = sealed.store / file
        good = path.read_bytes()
        # Every byte of the small ones; of the large one, its index whole and a sample of the rest.
        index_bytes = 16 * sealed.plan.shard_rows + 4
        places = list(range(len(good)))
        if name == "features":
            places = places[:-index_bytes:53] + places[-index_bytes:]
        for place in places:
            bad = bytearray(good)
            bad[place] ^= 1 << place % 8
            path.write_bytes(bad)
            with pytest.raises(UserError, match=f"array '{name}' is damaged"):
                open_store(sealed.store).rows(name, range(21))
        path.write_bytes(good)
        np.testing.assert_array_equal(open_store(sealed.store).rows(name, range(21)), sealed.values[name])


def test_missing_and_cut_off_shards_are_errors(sealed):
    path = sealed.store / "features/c/1/0/0"
    good = path.read_bytes()
    for length in (0, 3, 100, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:length])
        with pytest.raises(UserError, match="array 'features' is damaged"):
            open_store(sealed.store).rows("features", [8])
    path.unlink()
    with pytest.raises(UserError, match="features/c/1/0/0: missing file"):
        open_store(sealed.store).rows("features", [8])
    # Other shards are unharmed.
    np.testing.assert_array_equal(open_store(sealed.store).rows("features", [0]), sealed.values["features"][[0]])
    shutil.rmtree(sealed.store / "counts")
    with pytest.raises(UserError, match="no array 'counts'"):
        open_store(sealed.store).rows("counts", [0])


def test_zarr_opens_a_store_without_a_warning(intact):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set(dict(zarr.open_group(intact.store, mode="r").members())) == {*intact.values, "image_ids"}
        # Where xarray looks first; it warns if there is nothing.
        listed = zarr.open_consolidated(str(intact.store), mode="r")
        for name in listed:
            assert listed[name].metadata == zarr.open_array(str(intact.store / name), mode="r").metadata


def test_a_store_that_was_sealed_before_its_root_listed_arrays_is_whole(sealed):
    """And none whose root says otherwise."""
    root = sealed.store / "zarr.json"
    content = json.loads(root.read_text())
    del content["consolidated_metadata"]
    root.write_text(json.dumps(content, indent=4))
    verify(store=sealed.store, receipts=sealed.receipts, images=sealed.rows)
    content["attributes"]["class_names"] = ["dog", "cat"]
    for text in (json.dumps(content), "[]", "{"):
        root.write_text(text)
        with pytest.raises(UserError):
            verify(store=sealed.store, receipts=sealed.receipts, images=sealed.rows)
