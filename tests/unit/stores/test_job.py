"""What a shard job leaves behind, whenever it ends."""

from __future__ import annotations

import json
import types

import numpy as np
import pytest

from catalog.index import ImageRows
from core.console import UserError
from stores import open_store
from stores.job import ShardJob
from stores.schema import ArraySpec, Source
from stores.seal import seal

ARRAYS = {"features": ArraySpec((2,), "float16", 0), "counts": ArraySpec((), "int16", 0)}
SOURCE = Source("regions", ARRAYS, {"architecture": "tiny", "recipe": 1}, "weights", {"class_names": ["cat"]})


def index(count: int = 10, first: int = 0) -> ImageRows:
    names = [f"{i}" for i in range(first, first + count)]
    return ImageRows(
        names, f"digest of {first}", [f"{n}.jpg" for n in names], [(4, 4)] * count, [f"#{n}" for n in names]
    )


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Two shard jobs with Zarr shards of at most four rows."""
    monkeypatch.setattr("stores.plan.MAX_SHARD_ROWS", 4)
    receipts = [tmp_path / f"{shard}.json" for shard in range(2)]
    return types.SimpleNamespace(store=tmp_path / "regions.zarr", receipts=receipts, folder=tmp_path)


def job(place, shard: int = 0, images: ImageRows | None = None, **options) -> ShardJob:
    images = images or index()
    return ShardJob(SOURCE, images, store=place.store, receipt=place.receipts[shard], shard=shard, shards=2, **options)


def rows(images: ImageRows, part: range) -> dict[str, np.ndarray]:
    numbers = np.array([int(images.ids[row]) for row in part])
    return {"features": np.stack([numbers, -numbers], 1).astype(np.float16), "counts": numbers.astype(np.int16)}


def make(place, images: ImageRows | None = None, **options) -> list[dict]:
    """Both jobs; their receipts."""
    images, results = images or index(), []
    for shard in range(2):
        with job(place, shard, images, **options) as done:
            for number, part in done.parts:
                values, taken = done.former_rows(part)
                for row in set(part) - taken:
                    for name, made in rows(images, range(row, row + 1)).items():
                        values[name][row - part.start] = made[0]
                done.write(number, values)
        results.append(done.result)
    return results


def test_the_receipt_is_what_was_written(place):
    for shard, receipt in enumerate(make(place)):
        assert receipt == json.loads(place.receipts[shard].read_text())
        assert receipt["files"].keys() == {
            key for i, _ in job(place, shard).parts for key in (f"features/c/{i}/0", f"counts/c/{i}")
        }
    seal(store=place.store, receipts=place.receipts, images=index())
    np.testing.assert_array_equal(open_store(place.store).rows("counts", range(10)), range(10))


@pytest.mark.parametrize("moment", ["before", "between", "write", "last write"])
def test_a_job_that_dies_leaves_no_receipt_and_nothing_to_open(place, monkeypatch, moment):
    make(place)
    seal(store=place.store, receipts=place.receipts, images=index())
    real, calls = ShardJob._publish, []

    def publish(self, number, values):
        calls.append(number)
        if (moment, len(calls)) in (("write", 1), ("last write", 2)):
            raise OSError("disk full")
        real(self, number, values)

    monkeypatch.setattr(ShardJob, "_publish", publish)
    with pytest.raises((OSError, KeyboardInterrupt)), job(place) as dying:
        assert not place.receipts[0].exists(), "dropped before anything else"
        with pytest.raises(UserError, match="not a finished store"):
            open_store(place.store)
        if moment == "before":
            raise KeyboardInterrupt
        for number, part in dying.parts:
            dying.write(number, rows(index(), part))
            if moment == "between":
                raise KeyboardInterrupt
    assert not place.receipts[0].exists() and place.receipts[1].exists()
    with pytest.raises(UserError, match=r"shard 0: .*0.json is missing"):
        seal(store=place.store, receipts=place.receipts, images=index())
    monkeypatch.undo()
    monkeypatch.setattr("stores.plan.MAX_SHARD_ROWS", 4)
    make(place)
    seal(store=place.store, receipts=place.receipts, images=index())


def test_wrong_arguments_touch_nothing(place):
    make(place)
    seal(store=place.store, receipts=place.receipts, images=index())
    with pytest.raises(UserError, match="there is no shard 2"):
        ShardJob(SOURCE, index(), store=place.store, receipt=place.receipts[0], shard=2, shards=2)
    with pytest.raises(UserError, match="ends in .zarr"):
        ShardJob(SOURCE, index(), store=place.folder, receipt=place.receipts[0], shard=0, shards=2)
    assert place.receipts[0].exists() and len(open_store(place.store)) == 10


def test_failures_are_listed_in_the_order_of_the_index(place):
    with job(place) as done:
        for number, part in done.parts:
            done.write(number, {name: spec.empty(len(part)) for name, spec in ARRAYS.items()})
        for row in (3, 1, 2):
            done.fail(row, "is damaged")
        done.note(rounding=0)
    assert done.failed == 3 and done.result["rounding"] == 0
    assert done.result["failures"] == [{"image_id": n, "path": f"{n}.jpg", "error": "is damaged"} for n in "123"]


@pytest.mark.parametrize("take_over", [False, True])
def test_rows_of_a_former_store_are_taken_over_only_where_the_source_allows_it(place, take_over):
    make(place)
    seal(store=place.store, receipts=place.receipts, images=index())
    later = index(first=6)
    receipts = make(place, later, take_over=take_over)
    assert sum(receipt["taken_over"] for receipt in receipts) == 4 * take_over
    assert len(list(place.folder.glob("regions.former-*.zarr"))) == take_over
    seal(store=place.store, receipts=place.receipts, images=later)
    np.testing.assert_array_equal(open_store(place.store).rows("counts", range(10)), range(6, 16))
    assert not list(place.folder.glob("regions.former-*.zarr"))


def test_the_very_store_is_taken_over_where_nobody_wants_it_made_again(place, monkeypatch):
    """As links: shards that no job makes again stay as they are."""
    make(place)
    seal(store=place.store, receipts=place.receipts, images=index())
    assert [receipt["taken_over"] for receipt in make(place, take_over=True)] == [0, 0]
    seal(store=place.store, receipts=place.receipts, images=index())
    files = {path: path.read_bytes() for path in place.store.rglob("*") if path.is_file()}
    with job(place, 1, take_over=True, itself=True) as done:  # the other's receipt stays
        for number, part in done.parts:
            values, taken = done.former_rows(part)
            assert taken == set(part)
            done.write(number, values)
    assert (
        done.result["taken_over"] == len(done.rows) > 0 and len(list(place.folder.glob("regions.former-*.zarr"))) == 1
    )
    seal(store=place.store, receipts=place.receipts, images=index())
    assert {path: path.read_bytes() for path in place.store.rglob("*") if path.is_file()} == files
    assert [receipt["taken_over"] for receipt in make(place, take_over=True, itself=True)] == [
        len(done.rows) for done in (job(place, 0), job(place, 1))
    ]
    seal(store=place.store, receipts=place.receipts, images=index())
    assert not list(place.folder.glob("*former*")) and not list(place.folder.glob(".*former*"))
    # A disk without links: made again.
    monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(OSError))
    assert [receipt["taken_over"] for receipt in make(place, take_over=True, itself=True)] == [0, 0]
    assert not list(place.folder.glob(".*former*"))


def test_killed_while_the_very_store_is_taken_over(place):
    """What has gone from the former store is made again, never taken for zeros."""
    make(place)
    seal(store=place.store, receipts=place.receipts, images=index())
    with pytest.raises(KeyboardInterrupt), job(place, 0, take_over=True, itself=True) as dying:
        number, part = dying.parts[0]
        dying.write(number, dying.former_rows(part)[0])
        dying._finish_writing()
        raise KeyboardInterrupt
    receipts = make(place, take_over=True, itself=True)
    assert receipts[0]["taken_over"] == len(job(place, 0).rows) - len(part) and receipts[1]["taken_over"] == len(
        job(place, 1).rows
    )
    seal(store=place.store, receipts=place.receipts, images=index())
    np.testing.assert_array_equal(open_store(place.store).rows("counts", range(10)), range(10))
