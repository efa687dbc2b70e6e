"""Shard jobs over a store that is there: rows of images that did not change are taken over."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from PIL import Image

from core.console import UserError
from stores import open_store
from tests.unit.extractors.conftest import BAD, IMAGES


def photograph(folder, name: str, seed: int) -> str:
    path = str(folder / f"photos/{name}.png")
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 30, 3), np.uint8)).save(path)
    return path


def changed_dataset(job) -> list[int]:
    """Three images more, one less, one replaced, in another order; the rows that no former store has."""
    pairs = dict(zip(job.ids, job.paths, strict=True))
    del pairs["photo-2"]
    photograph(job.root, "4", 104)
    new = {f"new-{i}": photograph(job.root, f"new-{i}", 200 + i) for i in range(3)}
    pairs = dict(reversed((pairs | new).items()))
    job.reindex(list(pairs), list(pairs.values()))
    return sorted(job.ids.index(name) for name in (*new, "photo-4", f"photo-{BAD}"))


def test_after_a_change_of_the_dataset_only_new_images_are_extracted(job, module, capsys):
    job.all_shards()
    rows = changed_dataset(job)
    module.built.clear()
    receipts = job.all_shards(3)
    assert sum(sum(built.batch_sizes) for built in module.built) == len(rows) - 1, "the damaged one is tried again"
    assert sum(r["taken_over"] for r in receipts) == len(job.ids) - len(rows)
    assert sum(r["extracted"] for r in receipts) == len(rows) - 1
    assert "taken over from the former store" in capsys.readouterr().out
    assert [path.name for path in job.root.glob("*.zarr")] == ["regions.zarr"]
    found = job.digests()
    assert open_store(job.store).image_ids.tolist() == job.ids and open_store(job.store).dropped == {f"photo-{BAD}"}

    # From nothing: the same bytes.
    job.store = job.root / "other" / "regions.zarr"
    assert all(receipt["taken_over"] == 0 for receipt in job.all_shards(3))
    assert job.digests() == found


def test_what_changes_no_row_needs_no_network(job, module):
    """How many images go at a time, and where the weights lie."""
    job.all_shards(2)
    found = job.digests()
    module.built.clear()
    receipts = job.all_shards(2, settings={"batch_size": 2})
    assert [receipt["extracted"] for receipt in receipts] == [0, 0] and sum(
        receipt["taken_over"] for receipt in receipts
    ) == IMAGES - 1
    assert open_store(job.store).attributes["extractor"]["batch_size"] == 2
    assert {name: digest for name, digest in job.digests().items() if "zarr.json" not in name} == {
        name: digest for name, digest in found.items() if "zarr.json" not in name
    }


def test_jobs_that_die_and_come_back_find_the_former_store_again(job, module, monkeypatch):
    job.all_shards()
    rows = changed_dataset(job)
    with monkeypatch.context() as patch:
        patch.setattr("stores.job.write_zarr_shard", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            job.run(0)
    with pytest.raises(UserError, match="not a finished store"):
        open_store(job.store)
    (former,) = job.root.glob("regions.former-*.zarr")
    job.run(1)
    job.run(1)
    receipts = job.all_shards()
    assert sum(r["taken_over"] for r in receipts) == len(job.ids) - len(rows)
    assert not former.exists()


def test_nothing_new_needs_no_network(job, module):
    (job.root / "weights.bin").write_bytes(b"weights")
    settings = {"weights": str(job.root / "weights.bin")}
    job.reindex([i for i in job.ids if i != f"photo-{BAD}"], [p for i, p in enumerate(job.paths) if i != BAD])
    job.all_shards(settings=settings)
    wanted = {i: open_store(job.store).rows("features", [row])[0] for row, i in enumerate(job.ids)}
    job.reindex(job.ids[::-1], job.paths[::-1])
    module.built.clear()
    receipts = job.all_shards(settings=settings)
    assert module.built == [] and {r["device"] for r in receipts} == {"none"}
    for row, image_id in enumerate(job.ids):
        np.testing.assert_array_equal(open_store(job.store).rows("features", [row])[0], wanted[image_id])

    # One more image, and the network is there.
    job.reindex([*job.ids, "new"], [*job.paths, photograph(job.root, "new", 1)])
    job.all_shards(settings=settings)
    assert sum(sum(built.batch_sizes) for built in module.built) == 1

    # Other weights: nothing of the old ones is left.
    (job.root / "weights.bin").write_bytes(b"other")
    job.reindex(job.ids[::-1], job.paths[::-1])
    assert sum(r["taken_over"] for r in job.all_shards(settings=settings)) == 0


def test_another_compression_needs_no_network(job, module):
    (job.root / "weights.bin").write_bytes(b"weights")
    settings = {"weights": str(job.root / "weights.bin")}
    job.reindex([i for i in job.ids if i != f"photo-{BAD}"], [p for i, p in enumerate(job.paths) if i != BAD])
    job.all_shards(settings=settings)
    plain = job.digests()
    features = open_store(job.store).rows("features", range(len(job.ids)))
    module.built.clear()
    receipts = job.all_shards(settings=settings, compression="zstd")
    assert module.built == [] and sum(r["taken_over"] for r in receipts) == len(job.ids)
    assert {a["compression"] for a in open_store(job.store).attributes["arrays"].values()} == {"zstd"}
    np.testing.assert_array_equal(open_store(job.store).rows("features", range(len(job.ids))), features)
    changed = job.digests()
    assert changed.keys() == plain.keys() and changed["features/c/0/0/0"] != plain["features/c/0/0/0"]
    job.all_shards(settings=settings, compression="lz4")
    assert job.digests() == plain


def test_rows_of_another_extractor_are_never_taken_over(job):
    job.all_shards()
    changed_dataset(job)
    assert sum(r["taken_over"] for r in job.all_shards(settings={"scale": 0.5})) == 0
    job.reindex(job.ids[::-1], job.paths[::-1])
    assert sum(r["taken_over"] for r in job.all_shards(settings={"scale": 0.5})) == len(job.ids) - 1
    assert sum(r["taken_over"] for r in job.all_shards()) == 0


def test_a_part_that_is_made_again_is_really_made_again(job):
    job.all_shards()
    wanted = job.digests()
    assert job.run(0)["taken_over"] == 0
    job.all_shards()
    assert job.digests() == wanted


def test_a_store_without_content_hashes_is_not_looked_into(job):
    job.run(0)
    job.run(1)
    job.seal()
    changed_dataset(job)
    assert sum(r["taken_over"] for r in job.all_shards()) == 0


def test_damaged_rows_are_extracted_not_taken_over(job, capsys):
    job.all_shards()
    changed_dataset(job)
    file = job.store / "features/c/1/0/0"
    data = bytearray(file.read_bytes())
    data[12] ^= 255
    file.write_bytes(data)
    receipts = job.all_shards()
    assert "are extracted, not taken over" in capsys.readouterr().out
    assert 0 < sum(r["taken_over"] for r in receipts) < len(job.ids) - 5
    found = job.digests()
    job.store = job.root / "other" / "regions.zarr"
    job.all_shards()
    assert job.digests() == found


def test_copies_of_an_image_share_its_row(job):
    job.all_shards()
    copies = [str(job.root / f"photos/copy-{i}.png") for i in range(2)]
    for path in copies:
        shutil.copy(job.paths[3], path)
    job.reindex([*job.ids, "copy-0", "copy-1"], [*job.paths, *copies])
    assert sum(r["taken_over"] for r in job.all_shards()) == IMAGES - 1 + 2
    store = open_store(job.store)
    np.testing.assert_array_equal(store.rows("features", [13, 14]), store.rows("features", [3, 3]))
